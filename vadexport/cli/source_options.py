"""Options that say how to read a source, for all commands that take one."""

import functools
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from vadexport.cli.options import SizeOrSideType, SizeType
from vadexport.config.choices import CAMERAS, INTERPOLATIONS, SourceChoices, flag_of
from vadexport.errors import InputError

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: Graphs compute in float32.
_LARGEST: Final = 3.4e38


class ChannelsType(click.ParamType[tuple[float, float, float]]):
    """A number for each of three channels, such as `0.485,0.456,0.406`."""

    name = "R,G,B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float, float]:
        """See the base class."""
        if isinstance(value, tuple):
            return value
        try:
            red, green, blue = map(float, str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list such as 0.485,0.456,0.406", param, ctx)
        if not all(abs(each) <= _LARGEST for each in (red, green, blue)):
            self.fail(f"{value!r} holds a number that is not finite", param, ctx)
        return red, green, blue


class FiniteType(click.ParamType[float]):
    """A number that float32 can hold, in which graphs compute."""

    name = "X"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """See the base class."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not abs(number) <= _LARGEST:
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


_OPTIONS: Final = (
    click.option("--model", metavar="NAME", help="Class of an anomalib checkpoint."),
    click.option(
        "--image-size", type=SizeType(), metavar="HxW", help="Size of the camera's images."
    ),
    click.option("--camera", type=click.Choice(CAMERAS), help="Its colours; gray16 has 16 bits."),
    click.option(
        "--resize",
        type=SizeOrSideType(),
        metavar="HxW|N",
        help="Before the network; one number: shorter side.",
    ),
    click.option(
        "--interpolation",
        type=click.Choice(INTERPOLATIONS),
        help="Of that resize. [default: bilinear]",
    ),
    click.option(
        "--no-antialias", "antialias", flag_value=False, default=None, help="Of that resize."
    ),
    click.option("--crop", type=SizeType(), metavar="HxW", help="The middle, after the resize."),
    click.option("--mean", type=ChannelsType(), help="Taken off each channel, from 0 to 1."),
    click.option("--std", type=ChannelsType(), help="That each channel is then divided by."),
    click.option(
        "--bgr", flag_value=True, default=None, help="The network takes blue first, as OpenCV."
    ),
    click.option(
        "--outputs", metavar="score=NAME,map=NAME", help="Which of the model's outputs are those."
    ),
    click.option(
        "--threshold",
        type=FiniteType(),
        help="Raw score above which an image is anomalous.",
    ),
    click.option(
        "--pixel-threshold",
        type=FiniteType(),
        help="Value of the map above which a pixel is.",
    ),
    click.option(
        "--trust-pickle", is_flag=True, help="Unpickle the source: that can run any code in it."
    ),
)
_NAMES: Final = tuple(each.name for each in fields(SourceChoices) if each.name != "location")


def source_options(function: _Command) -> _Command:
    """Add the options of a source, and pass them on as one argument `given`, a SourceChoices."""

    @functools.wraps(function)
    def wrapped(**arguments: Any) -> Any:
        chosen = {name: arguments.pop(name) for name in _NAMES}
        return function(given=SourceChoices(**chosen), **arguments)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


def is_artifact(location: str, given: SourceChoices) -> bool:
    """Whether a location is a folder, which only artifacts are.

    Raises:
        InputError: it is, and an option is given that only sources take.
    """
    if not Path(location).is_dir():
        return False
    for name in given.made():
        raise InputError(f"{location} is a folder, an artifact: it takes no {flag_of(name)}")
    return True
