"""Options that several commands share, so that they are spelled alike everywhere."""

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vadexport.cli.console import Console
from vadexport.errors import InputError
from vadexport.targets import Target

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: A path whose problems vadexport names itself, in its own words and status.
PATH = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads that may be used. [default: all]"
)
streams_option = click.option(
    "--streams",
    type=click.IntRange(min=1),
    metavar="N",
    help="Measure throughput too: N streams of each artifact share its threads.",
)
torch_compile_option = click.option(
    "--torch-compile",
    is_flag=True,
    help="Time the reference under torch.compile as well; it takes a minute to compile.",
)


def rounds_option(*, least: int) -> Callable[[_Command], _Command]:
    """Add `--rounds`, of a latency measurement; 0, where it is allowed, leaves it out."""
    return click.option(
        "--rounds",
        type=click.IntRange(min=least),
        help=f"Of the latency measurement{'; 0 leaves it out' if least == 0 else ''}. "
        "[default: 100, or what a minute allows]",
    )


skip_unreadable_option = click.option(
    "--skip-unreadable", is_flag=True, help="Leave out images that cannot be read; each is named."
)


def console_options(function: _Command) -> _Command:
    """Add `-q` and `-v`, and pass the console as first argument."""

    @click.option("-q", "--quiet", is_flag=True, help="No progress, only results and warnings.")
    @click.option("-v", "--verbose", is_flag=True, help="Show tracebacks with errors.")
    @functools.wraps(function)
    def wrapped(*, quiet: bool, verbose: bool, **arguments: Any) -> Any:
        console = click.get_current_context().find_object(Console) or Console()
        console.quiet, console.verbose = quiet, verbose
        return function(console, **arguments)

    return wrapped  # type: ignore[return-value]


class NumberType(click.FloatRange):
    """A number in a range, which neither NaN nor infinity is in."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """See the base class."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


class TargetType(click.ParamType[Target]):
    """A target, such as `openvino:int8`."""

    name = "target"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Target:
        """See the base class."""
        if isinstance(value, Target):
            return value
        try:
            return Target.parse(str(value))
        except InputError as error:
            self.fail(str(error), param, ctx)


class ApproximateType(click.ParamType[bool | float]):
    """Drift units above 0, or whether to approximate at all."""

    name = "DRIFT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> bool | float:
        """See the base class."""
        if isinstance(value, bool):
            return value
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self.fail(
                f"{value!r} is no number of drift units above 0; SOURCE goes before --approximate",
                param,
                ctx,
            )
        return number


class SizeType(click.ParamType[tuple[int, int]]):
    """Height and width in pixels, such as `256x320`; one number for a square."""

    name = "HxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """See the base class."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", str(value))
        if match is None or not (height := int(match[1])) or not (width := int(match[2] or height)):
            self.fail(f"{value!r} is no size such as 256x320 (height x width)", param, ctx)
        return height, width


class BatchType(click.ParamType[int | None]):
    """A batch size, or `dynamic`."""

    name = "N|dynamic"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """See the base class."""
        if value in (None, "dynamic"):
            return None
        if isinstance(value, int) or re.fullmatch(r"[1-9]\d{0,3}", str(value)):
            return int(value)
        return self.fail(f"{value!r} is neither a number of images nor 'dynamic'", param, ctx)


class SizeOrSideType(SizeType):
    """Height and width in pixels, or one number for the shorter side."""

    name = "HxW|N"

    def convert(  # type: ignore[override]
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int] | int:
        """See the base class."""
        height, width = super().convert(value, param, ctx)
        return (height, width) if isinstance(value, tuple) or "x" in str(value) else height


class LevelsType(click.ParamType[tuple[int, ...]]):
    """Ascending feature levels, such as `2,3`."""

    name = "L,L"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """See the base class."""
        if isinstance(value, tuple):
            return value
        if re.fullmatch(r"\d(,\d)*", str(value)):
            levels = tuple(int(level) for level in str(value).split(","))
            if list(levels) == sorted(set(levels)):
                return levels
        return self.fail(f"{value!r} is no ascending list such as 2,3", param, ctx)
