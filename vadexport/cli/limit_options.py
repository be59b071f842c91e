"""Limits of a verification, for all targets or for those of one precision."""

import functools
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from vadexport.cli.options import NumberType
from vadexport.config import LimitChoices
from vadexport.targets import ALL_PRECISIONS

_Command = TypeVar("_Command", bound=Callable[..., Any])


class LimitType(click.ParamType[tuple[str | None, float]]):
    """A number for all targets, or `int8=NUMBER` for those of a precision; that one, and it."""

    name = "[PRECISION=]X"

    def __init__(self, number: NumberType) -> None:
        self._number = number

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str | None, float]:
        """See the base class."""
        if isinstance(value, tuple):
            return value
        precision, sign, number = str(value).rpartition("=")
        if sign and precision not in ALL_PRECISIONS:
            self.fail(f"{precision!r} is none of {', '.join(ALL_PRECISIONS)}", param, ctx)
        return precision or None, self._number.convert(number, param, ctx)


_NOT_NEGATIVE: Final = NumberType(min=0)
_POSITIVE: Final = NumberType(min=0, min_open=True)
_OPTIONS: Final = {
    "max_drift": (_NOT_NEGATIVE, "Largest drift of an image, in drift units."),
    "max_flips": (NumberType(0, 1), "Largest fraction of decisions that differ."),
    "max_map_drift": (
        _NOT_NEGATIVE,
        "Largest difference of an anomaly map, as a fraction of the maps' range.",
    ),
    "min_spearman": (
        NumberType(-1, 1),
        "Smallest rank correlation of raw scores with the reference's.",
    ),
    "min_speedup": (
        _POSITIVE,
        "Over the reference; the 95% interval, divided by the A/A floor, must clear it.",
    ),
    "max_latency_ms": (_POSITIVE, "Of the median of one call; its 95% interval must clear it."),
    "min_auroc_delta": (
        NumberType(-1, 1),
        "Image AUROC minus the reference's, such as -0.002, where labels are known.",
    ),
    "max_size_mb": (_POSITIVE, "Of the artifact's files."),
    "max_memory_mb": (
        _POSITIVE,
        "Peak of a process that runs the artifact, while latency is measured.",
    ),
}


def limit_options(function: _Command) -> _Command:
    """Add the limits, and pass them on as one argument `limits`, a LimitChoices."""

    @functools.wraps(function)
    def wrapped(**arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in _OPTIONS}
        return function(limits=_choices(given), **arguments)

    for name, (number, words) in reversed(_OPTIONS.items()):
        option = click.option(
            f"--{name.replace('_', '-')}", type=LimitType(number), multiple=True, help=words
        )
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


def _choices(given: dict[str, tuple[tuple[str | None, float], ...]]) -> LimitChoices:
    """What was given last for all targets, and for those of each precision."""
    everywhere: dict[str, float] = {}
    of_precision: dict[str, dict[str, float]] = {}
    for name, values in given.items():
        for precision, value in values:
            table = everywhere if precision is None else of_precision.setdefault(precision, {})
            table[name] = value
    return LimitChoices(everywhere, of_precision)
