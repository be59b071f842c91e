"""Programs of `torch.export.save`, `.pt2`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from vadexport.errors import InputError
from vadexport.sources.base import Source
from vadexport.sources.checking import quiet, reason
from vadexport.sources.exported_archive import check_archive
from vadexport.sources.plain import (
    PLAIN_OPTIONS,
    PlainModel,
    PlainReference,
    Untouched,
    plain_detector,
)
from vadexport.sources.spec import SourceSpec
from vadexport.torchvision_operators import declare_torchvision_operators

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_KIND: Final = "exported program"
_MEND: Final = "call .eval() on the model before torch.export.export"


def open_exported_program(spec: SourceSpec) -> Source:
    """Read a program that `torch.export.save` wrote.

    Raises:
        InputError: it is none, damaged, would run code that it brings, was exported in training
            mode, takes no images, or gives neither score nor map.
    """
    spec.only("an exported program", *PLAIN_OPTIONS)
    path = spec.path
    if not spec.trust_pickle:
        check_archive(path)
    program = _loaded(path)
    _refuse_training(program, path)
    image = _image(program, path)
    # Its guards on sizes would be traced too; what they say is checked here, in words.
    network = Untouched(program.module(check_guards=False).requires_grad_(requires_grad=False))
    detector = plain_detector(
        spec,
        PlainModel(
            family="ExportedProgram",
            network=network,
            mend=_MEND,
            size=image.size,
            channels=image.channels,
            batch=image.batch,
            facts={"framework": "torch.export"},
        ),
    )
    trusted = "its pickle was trusted" if spec.trust_pickle else None
    return Source.of_file(_KIND, spec, detector, PlainReference(network, detector), trusted)


def _loaded(path: Path) -> "ExportedProgram":
    from torch.export.pt2_archive._package import load_pt2

    declare_torchvision_operators()
    try:
        # Not `torch.export.load`: where this fails, it tries a format that is unpickled.
        with quiet(), path.open("rb") as file:
            programs = load_pt2(file).exported_programs
        return programs["model"]
    except Exception as error:
        raise InputError(
            f"PyTorch {torch.__version__.split('+')[0]} cannot load {path}: {reason(error)}"
        ) from error


def _refuse_training(program: "ExportedProgram", path: Path) -> None:
    """Operators in training mode, and what a program keeps from image to image: no graph can."""
    for node in program.graph.nodes:
        arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
        for argument, value in zip(arguments, node.args, strict=False):
            if argument.name in ("train", "training") and value is True:
                raise InputError(f"{path} is in training mode, {node.name} for one: {_MEND}")
    signature = program.graph_signature
    written = sorted(
        (*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values())
    )
    if written:
        raise InputError(
            f"{path} writes to {written[0]} whenever it runs: a detector must keep nothing from "
            "image to image"
        )


@dataclass(frozen=True)
class _Image:
    """The program's input; None for what it leaves open."""

    size: tuple[int, int] | None
    channels: int
    batch: int | None


def _image(program: "ExportedProgram", path: Path) -> _Image:
    inputs = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
        raise InputError(
            f"{path} takes {len(inputs)} inputs: wanted is one, images float32 [N, 3, h, w]"
        )
    shape: list[Any] = list(inputs[0].shape)
    fixed = [size if type(size) is int else None for size in shape]
    channels = fixed[1] if len(fixed) == 4 else 0
    if inputs[0].dtype != torch.float32 or channels not in (1, 3, None):
        dtype = str(inputs[0].dtype).removeprefix("torch.")
        raise InputError(
            f"{path} takes {dtype} [{', '.join(map(str, shape))}]: wanted are images float32 "
            "[N, 3, h, w]"
        )
    height, width = fixed[2:]
    size = None if height is None or width is None else (height, width)
    return _Image(size, channels or 3, fixed[0])
