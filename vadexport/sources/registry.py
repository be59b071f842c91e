"""From a specification to the source that reads it."""

import sys
import zipfile
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np

from vadexport.backends.base import Runner, RunnerOpener
from vadexport.backends.pytorch import PyTorchRunner
from vadexport.contract import Call
from vadexport.errors import InputError
from vadexport.sources.base import Source
from vadexport.sources.spec import SourceSpec

#: What a location starts with that names a function instead of a file.
FACTORY = "python:"
_KINDS = (
    ".safetensors of `vadexport fit`, .ckpt of anomalib, .pt2 of torch.export.save, TorchScript "
    "and ONNX"
)


def open_source(given: SourceSpec | Path) -> Source:
    """Read a trained detector, whatever kind of source it is.

    Args:
        given: its file, or a specification.

    Raises:
        InputError: there is no file, or none that holds a detector, or it must not be trusted.
        MissingPackageError: a package that the source needs is not installed.
    """
    # What a user's code prints while it runs must not mix with what a command prints.
    with redirect_stdout(sys.stderr):
        return _opened(SourceSpec.of(given))


def _opened(spec: SourceSpec, *, only_reference: bool = False) -> Source:
    """The source; where only its reference is wanted, nothing need be done for its detector."""
    if spec.location.startswith(FACTORY):
        from vadexport.sources.factory import open_factory

        return open_factory(spec)
    path = spec.path
    if path.is_dir():
        raise InputError(f"{path} is a folder; a source is a file: `vadexport build --help`")
    if path.suffix == ".py" and path.is_file():
        raise InputError(
            f"{path} is Python code: name the function in it that returns the model, "
            f"python:{path.stem}:factory ({_KINDS} are read as well)"
        )
    match _kind_of(path):
        case "onnx":
            from vadexport.sources.onnx import open_onnx

            return open_onnx(spec)
        case "exported program":
            from vadexport.sources.exported_program import open_exported_program

            return open_exported_program(spec)
        case "torchscript":
            from vadexport.sources.torchscript import open_torchscript

            return open_torchscript(spec)
        case "pickle":
            from vadexport.sources.anomalib import open_anomalib

            return open_anomalib(spec, only_reference=only_reference)
        case _:
            from vadexport.sources.native import open_native

            return open_native(spec)


def reference_opener(
    spec: SourceSpec, threads: int, *, on_gpu: bool = False, sample: Call | None = None
) -> RunnerOpener:
    """A function, fit for a child process, that opens the reference of a source.

    Args:
        spec: of the source.
        threads: of the processor, that a call may use.
        on_gpu: whether PyTorch shall run it on the first NVIDIA GPU, where it can.
        sample: a call that `torch.compile` compiles it for; None leaves it eager.
    """
    return partial(_open_reference, spec, threads, on_gpu, sample)


def _open_reference(
    spec: SourceSpec,
    threads: int,
    on_gpu: bool,  # noqa: FBT001
    sample: Call | None,
) -> Runner:
    with redirect_stdout(sys.stderr):
        source = _opened(spec, only_reference=True)
    runner = source.open_reference(threads)
    if on_gpu and isinstance(runner, PyTorchRunner):
        image_input = source.detector.image_input
        shape = (image_input.height, image_input.width, image_input.channels)
        runner.use_gpu(np.zeros((image_input.batch or 1, *shape), image_input.dtype))
    if sample is not None:
        if source.kind == "onnx" or not isinstance(runner, PyTorchRunner):
            raise InputError(f"{source.name} runs in ONNX Runtime: torch.compile has no part in it")
        runner.compile(sample)
    return runner


def _kind_of(path: Path) -> str:
    """By what the file holds, as far as that tells; never by its name where it does."""
    if not path.exists():
        return "native"  # whose error says that there is no such file
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _kind_of_archive(archive.namelist())
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise InputError(f"{path} is truncated, damaged: an archive without its end")
    except (OSError, zipfile.BadZipFile):
        pass
    return "onnx" if path.suffix == ".onnx" else "native"


def _kind_of_archive(names: list[str]) -> str:
    """The kind of a ZIP archive by the files that PyTorch puts into one of each kind."""
    ends = {name.split("/", 1)[-1] for name in names}
    if "archive_format" in ends or any(name.startswith("models/") for name in ends):
        return "exported program"
    if "constants.pkl" in ends or any(name.startswith("code/") for name in ends):
        return "torchscript"
    return "pickle" if "data.pkl" in ends else "native"
