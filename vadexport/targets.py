"""Targets: backend and precision, written `openvino:int8`."""

import re
from dataclasses import dataclass
from typing import Self

from vadexport.errors import InputError

_SYNTAX = re.compile(r"(?P<backend>[a-z][a-z0-9-]*):(?P<precision>[a-z][a-z0-9]*)")

#: Backends that are designed, and that a later version will know.
_PLANNED = ("tensorrt", "tensorrt-rtx")

#: Precisions that each backend can be asked for, in the order they are listed to users.
PRECISIONS: dict[str, tuple[str, ...]] = {
    "openvino": ("fp32", "int8"),
    "onnxruntime": ("fp32", "int8"),
}


@dataclass(frozen=True, order=True)
class Target:
    """What a detector is compiled for.

    `precision` is that of the network (the backbone); the score head always stays in float32.
    """

    backend: str
    precision: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `backend:precision`.

        Raises:
            InputError: the text has another form, or names a target that does not exist.
        """
        if text.partition(":")[0] in _PLANNED:
            raise InputError(
                f"TensorRT targets such as {text!r} are not available in this version yet; "
                f"{_known()}"
            )
        match = _SYNTAX.fullmatch(text)
        if match is None:
            raise InputError(f"target {text!r} is not of the form backend:precision; {_known()}")
        target = cls(**match.groupdict())
        if target.precision not in PRECISIONS.get(target.backend, ()):
            raise InputError(f"unknown target {text!r}; {_known()}")
        return target

    @property
    def folder(self) -> str:
        """Name of the target's folder in a build of several targets."""
        return f"{self.backend}-{self.precision}"

    def __str__(self) -> str:
        return f"{self.backend}:{self.precision}"


def all_targets() -> list[Target]:
    """Every target that this version knows, whether or not its package is installed."""
    return [Target(b, p) for b, precisions in PRECISIONS.items() for p in precisions]


def _known() -> str:
    return "known targets: " + ", ".join(map(str, all_targets()))
