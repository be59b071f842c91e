"""Backends by name. Importing this imports no backend's package."""

import importlib
from functools import partial
from pathlib import Path
from typing import Final, cast

from vadexport.backends.base import Backend, Runner, RunnerOpener
from vadexport.errors import InputError
from vadexport.targets import PRECISIONS, Target

#: Modules of backends, by their name in targets.
_MODULES: Final = {
    "openvino": "vadexport.backends.openvino",
    "onnxruntime": "vadexport.backends.onnxruntime",
    "tensorrt": "vadexport.backends.tensorrt.enterprise",
    "tensorrt-rtx": "vadexport.backends.tensorrt.rtx",
}


def get_backend(name: str) -> Backend:
    """The backend of targets `name:…`.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PRECISIONS:
        raise InputError(f"unknown backend {name!r}; known: {', '.join(PRECISIONS)}")
    return cast("Backend", importlib.import_module(_MODULES[name]))


def opener(target: Target, folder: Path, threads: int) -> RunnerOpener:
    """A function, fit for a child process, that opens the artifact's files in `folder`."""
    return partial(_open, target, folder, threads)


def _open(target: Target, folder: Path, threads: int) -> Runner:
    return get_backend(target.backend).open_runner(folder, target, threads)
