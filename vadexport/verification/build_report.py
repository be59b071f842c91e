"""`report/build.json`: what differs from build to build.

The manifest does not cover it, so whatever it holds is only believed when all of a part makes
sense; a part that does not is as good as none.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

_T = TypeVar("_T")

#: Larger files, longer lists or longer texts no build writes.
_MOST_BYTES: Final = 16 * 2**20
_MOST: Final = 100_000
_LONGEST: Final = 10_000


def read_part(path: Path, parse: Callable[[Any], _T]) -> _T | None:
    """A part of a build's report.

    Args:
        path: of `build.json`.
        parse: takes the whole report and gives the part; raises ValueError, TypeError, KeyError or
            OverflowError where anything is amiss.

    Returns:
        None where there is no such file, it has no such part, or it is damaged.
    """
    try:
        if not path.is_file():  # a pipe would never end
            return None
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        return None if len(text) > _MOST_BYTES else parse(json.loads(text))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def hold(truth: bool) -> None:  # noqa: FBT001 (what must be true, no flag)
    """Raises ValueError unless something is true."""
    if not truth:
        raise ValueError("the report of the build does not make sense")


def items(value: Any, most: int = _MOST) -> Sequence[Any]:
    """A list of no more than `most`; else raises ValueError, as all of these do."""
    hold(type(value) is list and len(value) <= most)
    found: Sequence[Any] = value
    return found


def text(value: Any, longest: int = _LONGEST) -> str:
    """A text that is neither empty nor too long."""
    hold(type(value) is str and 0 < len(value) <= longest)
    return str(value)


def truth(value: Any) -> bool:
    """True or false."""
    hold(type(value) is bool)
    return bool(value)


def count(value: Any) -> int:
    """A whole number from 0 on."""
    hold(type(value) is int and 0 <= value <= _MOST)
    return int(value)


def number(value: Any) -> float:
    """A number that may be infinite or none: a graph that fails gives such."""
    hold(type(value) in (int, float))
    return float(value)
