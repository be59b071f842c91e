"""Graph passes of a build: where each applied, and what it brought, as the build's report has it.

`report/build.json` is not covered by the manifest, so a report in which anything is amiss counts
as none.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from vadexport.verification.statistics import Interval, median_interval

#: Larger files, or more passes, no build writes.
_MOST_BYTES: Final = 16 * 2**20
_MOST: Final = 1000
_LONGEST: Final = 10_000


@dataclass(frozen=True)
class PassTime:
    """Calls of the graph before a pass and behind it, timed in the same rounds.

    Attributes:
        before_ms: median of a call of the graph before.
        after_ms: median of a call of the graph behind.
        ratio: of the two, median of paired ones.
        floor: factor, at least 1, by which a graph may seem faster than itself.
    """

    before_ms: float
    after_ms: float
    ratio: Interval
    floor: float

    @property
    def differs(self) -> bool:
        """Whether the difference is more than noise."""
        return self.ratio.low > self.floor or self.ratio.high < 1 / self.floor


@dataclass(frozen=True)
class AppliedPass:
    """What became of a pass.

    Attributes:
        name: of the pass.
        places: of the graph that it rewrote.
        time: what it brought; None where it was not timed.
        undone: why it is not in the graph; None where it is.
    """

    name: str
    places: int
    time: PassTime | None = None
    undone: str | None = None

    @property
    def brought(self) -> str:
        """In words."""
        if self.undone is not None:
            return f"undone: {self.undone}"
        if self.time is None:
            return "not timed"
        if not self.time.differs:
            return "no difference measured"
        return f"{self.time.before_ms:.3g} → {self.time.after_ms:.3g} ms"


@dataclass(frozen=True)
class Passes:
    """All of a build's passes that had to do with a target.

    Attributes:
        applied: those that found a place, in order.
        left_out: names of those that were not to be applied.
        timed_on: what they were timed on, in words; None where they were not.
    """

    applied: tuple[AppliedPass, ...] = ()
    left_out: tuple[str, ...] = ()
    timed_on: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As `read_passes` takes it."""
        return asdict(self)


def timed(
    applied: Sequence[AppliedPass], samples: Sequence[Sequence[float]]
) -> tuple[AppliedPass, ...]:
    """Passes with what each brought.

    Args:
        applied: passes; those that were undone are left as they are.
        samples: seconds of calls, a round after the other, of the graph before all passes, of the
            same once more, and behind each pass that was not undone.
    """
    first, again, *behind = (1e3 * np.array(each) for each in samples)
    same = median_interval(first / again)
    floor = max(same.high, 1 / same.low, 1.0)
    found, before = [], first
    graphs = iter(behind)
    for one in applied:
        if one.undone is not None:
            found.append(one)
            continue
        after = next(graphs)
        medians = float(np.median(before)), float(np.median(after))
        found.append(replace(one, time=PassTime(*medians, median_interval(before / after), floor)))
        before = after
    return tuple(found)


def read_passes(path: Path) -> Passes | None:
    """The passes that a build's report tells of.

    Args:
        path: of `build.json`.

    Returns:
        None where there is no such file, it tells of none, or it is damaged.
    """
    try:
        if not path.is_file():  # a pipe would never end
            return None
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            return None
        value = json.loads(text)["passes"]
        return Passes(
            applied=tuple(map(_applied, _items(value["applied"]))),
            left_out=tuple(map(_text, _items(value["left_out"]))),
            timed_on=None if value["timed_on"] is None else _text(value["timed_on"]),
        )
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _applied(value: Any) -> AppliedPass:
    """Raises ValueError, TypeError or KeyError where anything is amiss."""
    places, time = value["places"], value["time"]
    _hold(type(places) is int and places > 0)
    if time is not None:
        ratio = Interval(*(_number(time["ratio"][name]) for name in ("value", "low", "high")))
        before, after, floor = (_number(time[name]) for name in ("before_ms", "after_ms", "floor"))
        time = PassTime(before, after, ratio, floor)
    undone = None if value["undone"] is None else _text(value["undone"])
    return AppliedPass(_text(value["name"]), places, time, undone)


def _items(value: Any) -> list[Any]:
    _hold(type(value) is list and len(value) <= _MOST)
    items: list[Any] = value
    return items


def _text(value: Any) -> str:
    _hold(type(value) is str and 0 < len(value) <= _LONGEST)
    return str(value)


def _number(value: Any) -> float:
    _hold(type(value) in (int, float) and math.isfinite(value) and value > 0)
    return float(value)


def _hold(truth: bool) -> None:  # noqa: FBT001 (what must be true, no flag)
    if not truth:
        raise ValueError("the report of the passes does not make sense")
