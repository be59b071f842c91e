"""Graph passes of a build as its report has them: where each applied, and what it brought."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from vadexport.verification.build_report import hold, items, number, read_part, text
from vadexport.verification.statistics import Interval, median_interval

#: More passes no build applies.
_MOST: Final = 1000
#: Taken for the floor of what was not timed against itself: a graph seldom seems faster by more.
_USUAL_FLOOR: Final = 1.05

#: Seconds of calls of two graphs, a round after the other.
Pair = tuple[list[float], list[float]]


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

    def with_more(self, places: Mapping[str, int]) -> "Passes":
        """With passes that were applied behind these, by name."""
        more = (AppliedPass(name, count) for name, count in places.items())
        return replace(self, applied=(*self.applied, *more))

    def to_json(self) -> dict[str, Any]:
        """As `read_passes` takes it."""
        return asdict(self)


def timed(
    applied: Sequence[AppliedPass], again: Pair | None, pairs: Sequence[Pair]
) -> tuple[AppliedPass, ...]:
    """Passes with what each brought.

    Args:
        applied: passes; those that were undone are left as they are.
        again: the graph before all passes beside itself; None where it was not timed so.
        pairs: for each pass that was not undone, the graphs before and behind it.
    """
    floor = _USUAL_FLOOR
    if again is not None:
        same = _ratio(again)
        floor = max(same.high, 1 / same.low, 1.0)
    left = iter(pairs)
    found = []
    for one in applied:
        if one.undone is not None:
            found.append(one)
            continue
        pair = next(left)
        before, after = (1e3 * float(np.median(each)) for each in pair)
        found.append(replace(one, time=PassTime(before, after, _ratio(pair), floor)))
    return tuple(found)


def _ratio(pair: Pair) -> Interval:
    return median_interval(np.array(pair[0]) / np.array(pair[1]))


def read_passes(path: Path) -> Passes | None:
    """The passes that a build's report tells of.

    Args:
        path: of `build.json`.

    Returns:
        None where there is no such file, it tells of none, or it is damaged.
    """
    return read_part(path, lambda report: _passes(report["passes"]))


def _passes(value: Any) -> Passes:
    """Raises ValueError, TypeError or KeyError where anything is amiss."""
    return Passes(
        applied=tuple(map(_applied, items(value["applied"], _MOST))),
        left_out=tuple(map(text, items(value["left_out"], _MOST))),
        timed_on=None if value["timed_on"] is None else text(value["timed_on"]),
    )


def _applied(value: Any) -> AppliedPass:
    """Raises ValueError, TypeError or KeyError where anything is amiss."""
    places, time = value["places"], value["time"]
    hold(type(places) is int and places > 0)
    if time is not None:
        ratio = Interval(*(_positive(time["ratio"][name]) for name in ("value", "low", "high")))
        before, after, floor = (
            _positive(time[name]) for name in ("before_ms", "after_ms", "floor")
        )
        time = PassTime(before, after, ratio, floor)
    undone = None if value["undone"] is None else text(value["undone"])
    return AppliedPass(text(value["name"]), places, time, undone)


def _positive(value: Any) -> float:
    found = number(value)
    hold(math.isfinite(found) and found > 0)
    return found
