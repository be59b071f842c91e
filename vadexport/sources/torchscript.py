"""TorchScript files of `torch.jit.save`, `.pt`."""

import logging
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from vadexport.artifact import file_digest
from vadexport.backends.pytorch import PyTorchRunner
from vadexport.errors import InputError
from vadexport.sources.base import Source
from vadexport.sources.checking import reason
from vadexport.sources.outputs import leaves_of
from vadexport.sources.plain import (
    PLAIN_OPTIONS,
    PlainModel,
    PlainReference,
    Untouched,
    colour_or_gray,
)
from vadexport.sources.spec import SourceSpec
from vadexport.torchvision_operators import declare_torchvision_operators

_MEND: Final = "call .eval() on the model before torch.jit.script or torch.jit.trace"
#: TorchScript's interpreter runs no Python, but these of its operators reach files and networks.
_REACHES_OUT: Final = re.compile(
    r"\b(from_file|save|load_tensor|rpc_\w+)\(|\bops\.(c10d|dist_\w+)\b"
)
#: Relative to the largest value, of the graph made from it and the script itself.
_TOLERANCE: Final = 1e-4


def open_torchscript(spec: SourceSpec) -> Source:
    """Read a module that `torch.jit.save` wrote.

    Its code runs in TorchScript's own interpreter, which knows tensors and operators and no Python.

    Raises:
        InputError: it is none, damaged, reaches files or networks, is in training mode, gives
            neither score nor map, or no graph can be made of it.
    """
    spec.only("a TorchScript file", *PLAIN_OPTIONS)
    path = spec.path
    if not spec.trust_pickle:
        _refuse_reaching_out(path)
    script = _loaded(path)
    untouched = Untouched(script)
    model = PlainModel(
        family=str(getattr(script, "original_name", "ScriptModule")),
        network=untouched,
        mend=_MEND,
        facts={"framework": "TorchScript"},
    )
    detector = colour_or_gray(spec, model)
    reference = PlainReference(untouched, detector)
    detector.network = _converted(script, detector.sample(), path)
    return Source(
        kind="torchscript",
        name=path.name,
        sha256=file_digest(path),
        size=path.stat().st_size,
        detector=detector,
        open_reference=lambda threads: PyTorchRunner(reference, threads),
        options=spec.to_json(),
        runs_code="its TorchScript was trusted" if spec.trust_pickle else None,
    )


def _refuse_reaching_out(path: Path) -> None:
    """Before anything is loaded: modules may have code that runs while they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = [name for name in archive.namelist() if "/code/" in name]
            texts = [archive.read(name).decode() for name in files if name.endswith(".py")]
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path} is truncated or damaged: {reason(error)}") from None
    for text in texts:
        found = _REACHES_OUT.search(text)
        if found:
            raise InputError(
                f"{path} reaches files or networks ({found.group().strip('(')}): refused; "
                "--trust-pickle loads it, if you trust where it comes from"
            )


def _loaded(path: Path) -> Any:
    declare_torchvision_operators()
    try:
        with _quiet():
            return torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise InputError(
            f"{path} is no TorchScript that PyTorch can load: {reason(error)}"
        ) from error


class _Named(nn.Module):
    """A converted script, which returns lists for named tuples, with the script's names."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        values = (value for _, value in leaves_of(self.module(x)))
        return dict(zip(self.names, values, strict=True))


def _converted(script: Any, images: Tensor, path: Path) -> nn.Module:
    """The script as a module that `torch.export` can trace, which gives the same values.

    Raises:
        InputError: there is no such module.
    """
    from torch._export.converter import TS2EPConverter

    try:
        with _quiet():
            program = TS2EPConverter(script, (images,)).convert()
            module = Untouched(program.module(check_guards=False))
            with torch.inference_mode():
                wanted, found = leaves_of(script(images)), leaves_of(module(images))
        named = _Named(module, [name for name, _ in wanted])
    except Exception as error:
        raise InputError(
            f"no graph can be made of {path}: {reason(error)}; save the model with "
            "torch.export.save instead"
        ) from error
    for (name, one), (_, other) in zip(wanted, found, strict=True):
        if float((one - other).abs().max()) > _TOLERANCE * float(one.abs().max()):
            raise InputError(
                f"the graph made of {path} gives another {name}: save the model with "
                "torch.export.save instead"
            )
    return named.requires_grad_(requires_grad=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back that `torch.jit` is deprecated, and the converter's log."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
