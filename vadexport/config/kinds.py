"""Kinds of values that a file may hold: what each takes, and what it says it wants."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, time
from typing import Any, Final

from vadexport.backends.tensorrt.settings import TensorRTSettings
from vadexport.errors import InputError
from vadexport.targets import Target

MAX_SIDE: Final = 16384
MAX_BATCH: Final = 1024
#: Larger than any machine has processors.
MAX_THREADS: Final = 4096
#: Graphs compute in float32.
MAX_NUMBER: Final = 3.4e38


class WrongValueError(Exception):
    """A value is not of the kind that is wanted."""


@dataclass(frozen=True)
class Kind:
    """One kind of value.

    Attributes:
        wanted: in words, to go on after "must be".
        take: turns what TOML holds into the value; raises WrongValueError.
    """

    wanted: str
    take: Callable[[Any], Any]


def one_of(*names: str) -> Kind:
    """One of some texts."""

    def take(value: Any) -> str:
        _hold(type(value) is str and value in names)
        return str(value)

    return Kind(" or ".join(f'"{name}"' for name in names), take)


def number(
    least: float = -MAX_NUMBER, most: float = MAX_NUMBER, *, above: float | None = None
) -> Kind:
    """A number from `least` to `most`, and above `above`; a whole number is one as well."""

    def take(value: Any) -> float:
        _hold(_is_number(value) and least <= value <= most and (above is None or value > above))
        return float(value)

    if above is not None:
        return Kind(f"a number above {above:g}", take)
    if most == MAX_NUMBER:
        return Kind("a number" if least < 0 else f"a number of at least {least:g}", take)
    return Kind(f"a number from {least:g} to {most:g}", take)


def whole(most: int) -> Kind:
    """A whole number from 1 to `most`."""

    def take(value: Any) -> int:
        _hold(type(value) is int and 1 <= value <= most)
        return int(value)

    return Kind(f"a whole number from 1 to {most}", take)


def numbers(*, above: float | None = None) -> Kind:
    """Three numbers, one for each channel."""
    one = number(above=above)

    def take(value: Any) -> tuple[float, ...]:
        _hold(type(value) is list and len(value) == 3)
        return tuple(map(one.take, value))

    beyond = "" if above is None else f" above {above:g}"
    return Kind(f"three numbers{beyond}, such as [0.485, 0.456, 0.406]", take)


def tensorrt(name: str) -> Kind:
    """A setting of TensorRT's builder; the settings' own rules say what it may be."""

    def take(value: Any) -> Any:
        try:
            return getattr(TensorRTSettings.of({name: value}), name)
        except InputError as error:
            raise WrongValueError(str(error)) from None

    return Kind("a setting of TensorRT's builder", take)


def _text(value: Any) -> str:
    # No file's name holds a NUL, and Python refuses to look for one.
    _hold(type(value) is str and value != "" and "\0" not in value)
    return str(value)


def _flag(value: Any) -> bool:
    _hold(type(value) is bool)
    return bool(value)


def _flag_or_above_0(value: Any) -> bool | float:
    if type(value) is bool:
        return value
    above_0: float = number(above=0).take(value)
    return above_0


def _size(value: Any) -> tuple[int, ...]:
    _hold(type(value) is list and len(value) == 2)
    return tuple(map(whole(MAX_SIDE).take, value))


def _size_or_side(value: Any) -> tuple[int, ...] | int:
    if type(value) is list:
        return _size(value)
    side: int = whole(MAX_SIDE).take(value)
    return side


def _batch(value: Any) -> int | str:
    if value == "dynamic":
        return "dynamic"
    batch: int = whole(MAX_BATCH).take(value)
    return batch


def _targets(value: Any) -> tuple[Target, ...]:
    _hold(type(value) is list and bool(value) and all(type(each) is str for each in value))
    try:
        targets = tuple(map(Target.parse, value))
    except InputError as error:
        raise WrongValueError(str(error)) from None
    if len(set(targets)) < len(targets):
        raise WrongValueError("name each target once")
    return targets


def _hold(condition: bool) -> None:  # noqa: FBT001 - an assertion
    if not condition:
        raise WrongValueError


def _is_number(value: Any) -> bool:
    if type(value) is int:
        return abs(value) <= MAX_NUMBER  # TOML's may have thousands of digits
    return type(value) is float and math.isfinite(value)


def _texts(value: Any) -> tuple[str, ...]:
    _hold(type(value) is list)
    return tuple(map(_text, value))


TEXT: Final = Kind("a text that is not empty", _text)
TEXTS: Final = Kind("a list of texts that are not empty", _texts)
FLAG: Final = Kind("true or false", _flag)
FLAG_OR_ABOVE_0: Final = Kind("true, false or a number above 0", _flag_or_above_0)
SIZE: Final = Kind(f"height and width from 1 to {MAX_SIDE}, such as [480, 640]", _size)
SIZE_OR_SIDE: Final = Kind(
    f"height and width, such as [256, 256], or the shorter side, from 1 to {MAX_SIDE}",
    _size_or_side,
)
BATCH: Final = Kind(f'a whole number from 1 to {MAX_BATCH}, or "dynamic"', _batch)
TARGETS: Final = Kind('a list of targets, such as ["openvino:fp32"]', _targets)


def shown(value: Any, most: int = 40) -> str:
    """A value from a file, short enough for a line of error."""
    match value:
        case bool():
            return str(value).lower()
        case int() if abs(value) > 10**most:
            return "a huge number"
        case dict():
            return "a table"
        case date() | time():
            return "a date or time"
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
