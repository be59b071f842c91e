"""TorchScript files of `torch.jit.save`, `.pt`."""

import operator
import re
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from vadexport.errors import InputError
from vadexport.sources.base import Source
from vadexport.sources.checking import first_unlike, quiet, reason
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
    r"\b(from_file|save|load_tensor|rpc_\w+)\(|\bops\.(c10d|_c10d|dist)\w*"
    r"|\btorch\.classes\.(?!quantized\b)\w+"
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
        facts={
            "framework": "TorchScript",
            "weights": sum(value.numel() for value in script.parameters()),
        },
    )
    detector = colour_or_gray(spec, model)
    reference = PlainReference(untouched, detector)
    detector.network = _converted(script, detector.sample(), path)
    trusted = "its TorchScript was trusted" if spec.trust_pickle else None
    return Source.of_file("torchscript", spec, detector, reference, trusted)


def _refuse_reaching_out(path: Path) -> None:
    """Before anything is loaded: modules may have code that runs while they are."""
    try:
        # PyTorch's own reader: two readers of one ZIP file could be made to see different files.
        archive: Any = torch._C.PyTorchFileReader(str(path))  # noqa: SLF001 - it has no other name
        files = [name for name in archive.get_all_records() if name.startswith("code/")]
        texts = [archive.get_record(name).decode() for name in files if name.endswith(".py")]
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
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
        with quiet():
            return torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise InputError(
            f"{path} is no TorchScript that PyTorch can load: {reason(error)}"
        ) from error


def _program(script: Any, images: Tensor) -> Any:
    from torch._export.converter import TS2EPConverter

    class Converter(TS2EPConverter):
        """Of PyTorch, which hands lists of sizes to operators that take none of symbols."""

        def retrace_as_exported_program(
            self, gm: torch.fx.GraphModule, name_to_constant: dict[str, Any]
        ) -> Any:
            for node in gm.graph.nodes:
                node.target = _OF_LISTS.get(node.target, node.target)
            gm.recompile()
            return super().retrace_as_exported_program(gm, name_to_constant)

    return Converter(script, (images,)).convert()


def _slice(
    values: list[Any], start: int | None = None, end: int | None = None, step: int = 1
) -> list[Any]:
    return values[start:end:step]


#: TorchScript's operators of lists, as Python has them.
_OF_LISTS: Final[dict[Any, Any]] = {
    torch.ops.aten.slice.t: _slice,
    torch.ops.aten.add.t: operator.add,
}


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
    try:
        with quiet():
            program = _program(script, images)
            module = Untouched(program.module(check_guards=False))
            with torch.inference_mode():
                wanted, found = leaves_of(script(images)), leaves_of(module(images))
        named = _Named(module, [name for name, _ in wanted])
    except Exception as error:
        raise InputError(
            f"no graph can be made of {path}: {reason(error)}; save the model with "
            "torch.export.save instead"
        ) from error
    unlike = first_unlike(wanted, found, _TOLERANCE)
    if unlike is not None:
        raise InputError(
            f"the graph made of {path} gives another {unlike}: save the model with "
            "torch.export.save instead"
        )
    return named.requires_grad_(requires_grad=False)
