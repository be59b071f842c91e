"""A function of the user's own that returns a model: `python:package.module:factory`."""

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn

from vadexport.backends.pytorch import PyTorchRunner
from vadexport.errors import InputError
from vadexport.sources.base import Source
from vadexport.sources.checking import check_weights, told, training_layer
from vadexport.sources.plain import PLAIN_OPTIONS, PlainModel, PlainReference, colour_or_gray
from vadexport.sources.spec import SourceSpec
from vadexport.torchvision_operators import declare_torchvision_operators

_LOCATION: Final = re.compile(r"python:(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
_MEND: Final = "call .eval() in the factory before it returns"


def open_factory(spec: SourceSpec) -> Source:
    """Import the module, call the function, and take the `nn.Module` that it returns.

    The current folder is searched too, as `python -m` does.

    Raises:
        InputError: there is no such function, it raises or returns something else, or the model
            cannot be a detector.
    """
    spec.only("a factory", *PLAIN_OPTIONS)
    found = _LOCATION.fullmatch(spec.location)
    if found is None:
        raise InputError(f"{spec.location!r} names no factory: write python:package.module:factory")
    declare_torchvision_operators()
    with _current_folder_first():
        factory = _function(_module(found["module"]), found["name"])
        network = _made(factory, spec.location)
        if _digest(network, factory) != _digest(_made(factory, spec.location), factory):
            raise InputError(
                f"{spec.location} gives other weights each time that it is called, so no artifact "
                "can have its scores: load trained weights in it, or seed it"
            )
    layer = training_layer(network)
    if layer is not None:
        raise InputError(
            f"the model of {spec.location} is in training mode, {layer} for one: {_MEND}"
        )
    network.eval().requires_grad_(requires_grad=False)
    detector = colour_or_gray(
        spec,
        PlainModel(
            family=type(network).__name__,
            network=network,
            mend=_MEND,
            facts={"framework": "PyTorch"},
        ),
    )
    reference = PlainReference(network, detector)
    return Source(
        kind="factory",
        name=spec.location,
        sha256=_digest(network, factory),
        size=None,
        detector=detector,
        open_reference=lambda threads: PyTorchRunner(reference, threads),
        options=spec.to_json(),
        runs_code=f"{found['name']} of the Python module {found['module']}",
    )


@contextmanager
def _current_folder_first() -> Iterator[None]:
    # vadexport's child processes run without it.
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"importing {name} fails: {told(error)}") from error
        raise InputError(
            f"there is no Python module {error.name}: it is looked for in {Path.cwd()} and among "
            "the installed packages"
        ) from None
    except (Exception, SystemExit) as error:
        raise InputError(f"importing {name} fails: {told(error)}") from error


def _function(module: ModuleType, name: str) -> Callable[[], Any]:
    found = getattr(module, name, None)
    if found is None:
        raise InputError(f"{module.__name__} has no {name}: name a function that returns the model")
    if not callable(found):
        raise InputError(
            f"{name} of {module.__name__} is of type {type(found).__name__}: name a function that "
            "returns the model"
        )
    function: Callable[[], Any] = found
    return function


def _made(factory: Callable[[], Any], location: str) -> nn.Module:
    try:
        found = factory()
    except (Exception, SystemExit) as error:
        raise InputError(f"{location} fails: {told(error)}") from error
    if not isinstance(found, nn.Module):
        raise InputError(
            f"{location} returns a value of type {type(found).__name__}: wanted is an nn.Module"
        )
    check_weights(found)
    return found


def _digest(network: nn.Module, factory: Callable[[], Any]) -> str:
    """Of the weights, their names, and the file that the function stands in."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    try:
        file = inspect.getsourcefile(factory)
    except TypeError:
        file = None
    if file is not None and Path(file).is_file():
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()
