"""From a path to the source that reads it."""

from functools import partial
from pathlib import Path

from vadexport.artifact import file_digest
from vadexport.backends.base import Runner, RunnerOpener
from vadexport.detectors.checkpoint import load_detector
from vadexport.errors import InputError
from vadexport.sources.base import Source


def open_source(path: Path) -> Source:
    """Read the trained detector at `path`.

    Raises:
        InputError: there is no file, or none that holds a detector.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; a source is the file that `vadexport fit` wrote")
    detector = load_detector(path)
    return Source("native", path, file_digest(path), detector)


def reference_opener(path: Path, threads: int) -> RunnerOpener:
    """A function, fit for a child process, that opens the reference of the source at `path`."""
    return partial(_open_reference, path, threads)


def _open_reference(path: Path, threads: int) -> Runner:
    from vadexport.backends.pytorch import PyTorchRunner

    return PyTorchRunner(open_source(path).detector, threads)
