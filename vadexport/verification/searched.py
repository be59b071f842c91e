"""What a build's search for INT8 layers found, as far as its report still says so."""

import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, get_args

from vadexport.verification.build_report import (
    count,
    hold,
    items,
    number,
    read_part,
    text,
    truth,
)
from vadexport.verification.statistics import Interval

#: More, or longer ones, no build writes.
_MOST_ROWS: Final = 1000
_LONGEST_NAME: Final = 1000
_FASTEST: Final = 1e6

Order = Literal["cost", "front"]
FloatType = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class FoundCost:
    """What some INT8 layers do to scores. Values that are not finite are possible.

    Attributes:
        drift: largest of normal images, in drift units.
        rms: drift of all images, root of the mean square, in drift units.
        spearman: rank correlation of all raw scores with those of the float graph.
        flips: decisions that changed, of all images.
        maps: largest difference of a map, as a fraction of the maps' mean range.
    """

    drift: float
    rms: float
    spearman: float
    flips: int
    maps: float


@dataclass(frozen=True)
class FoundGroup:
    """Neighbouring layers that the search moved together.

    Attributes:
        layers: names of their nodes.
        cost: when they alone are INT8; None where it was not judged.
    """

    layers: tuple[str, ...]
    cost: FoundCost | None


@dataclass(frozen=True)
class FoundPoint:
    """A form that the search tried.

    Attributes:
        order: in which groups went back to float: `cost`, the costliest first, or `front`.
        float_layers: names of the layers that are not INT8.
        cost: of the form.
        holds: whether its scores and maps were within the search's limits.
        speedup: over the float graph, compiled for the target; None where it was not timed.
        float_type: what the layers that are not INT8 compute in.
        full_layers: those of them that are float32 though `float_type` is bfloat16.
    """

    order: Order
    float_layers: tuple[str, ...]
    cost: FoundCost
    holds: bool
    speedup: Interval | None
    float_type: FloatType = "fp32"
    full_layers: tuple[str, ...] = ()

    @property
    def float_words(self) -> str:
        """What the layers that are not INT8 compute in, in words."""
        if self.float_type == "fp32":
            return "float32"
        return "bfloat16 and float32" if self.full_layers else "bfloat16"


@dataclass(frozen=True)
class FoundSearch:
    """A search, and what the build made of it.

    Attributes:
        groups: the costliest first.
        points: all in INT8 first, then more and more in float32, in one order after the other; then
            those whose layers are bfloat16 in part, or all float.
        chosen: number of the point that was built; None where float32 was.
        finished: whether there was time enough.
        images: normal ones, and ones with planted defects, that were judged.
        max_drift: the search's own limit of drift, in drift units; None without one.
        least_spearman: likewise, of the rank correlation.
    """

    groups: tuple[FoundGroup, ...]
    points: tuple[FoundPoint, ...]
    chosen: int | None
    finished: bool
    images: tuple[int, int]
    max_drift: float | None
    least_spearman: float | None

    @property
    def layers(self) -> int:
        """How many there are."""
        return sum(len(group.layers) for group in self.groups)

    @property
    def shipped(self) -> str:
        """The lowest precision of the network's layers that was built."""
        point = self.built
        if point is None or len(point.float_layers) == self.layers:
            return "fp32" if point is None else point.float_type
        return "int8"

    def form(self, point: FoundPoint) -> str:
        """A form in words: what its layers compute in."""
        kept, full = len(point.float_layers), len(point.full_layers)
        narrow = point.float_type == "bf16"
        if kept == self.layers:
            rest = f" but for {full} of {self.layers} layers" if full else ""
            return f"bfloat16{rest}" if narrow else "float32 with a faster score head"
        also = f", {full} of them in float32" if full else ""
        inside = f" in bfloat16{also}" if narrow else ""
        return f"INT8 but for {kept} of {self.layers} layers{inside}" if kept else "INT8"

    @property
    def built(self) -> FoundPoint | None:
        """The point that was built; None where float32 was."""
        return None if self.chosen is None else self.points[self.chosen]

    @property
    def best(self) -> FoundPoint | None:
        """What was built, else the fastest that held; None where none held and was timed."""
        timed = [(one.speedup.value, one) for one in self.points if one.holds and one.speedup]
        fastest = max(timed, key=lambda pair: pair[0], default=(0.0, None))[1]
        return self.built or fastest

    @property
    def words(self) -> str:
        """What was chosen, in one sentence without a full stop."""
        point = self.best
        if point is None or point.speedup is None:
            reason = "no layer of its network can be INT8 within the limits"
            if not self.finished:
                reason = "the search found no INT8 layers in time (--search-minutes)"
            return f"auto: float32, as {reason}"
        form, gain = self.form(point), point.speedup
        if self.built is not None:
            return f"auto: {form}, {gain.value:.2f} times as fast as float32 when built"
        return (
            f"auto: float32, as {form} was not surely faster when built: {gain.value:.2f} times as "
            f"fast, 95% interval from {gain.low:.2f}, before the A/A floor"
        )


def read_search(path: Path) -> FoundSearch | None:
    """The search that a build's report tells of.

    Args:
        path: of `build.json`.

    Returns:
        None where there is no such file, it tells of none, or it is damaged.
    """
    return read_part(path, lambda report: _search(report["compiled"]["search"]))


def _search(value: Any) -> FoundSearch:
    """Raises ValueError, TypeError, KeyError or OverflowError where anything is amiss."""
    unit, share = number(value["drift_unit"]), number(value["share"])
    hold(0 < unit < math.inf and 0 < share <= 1)
    groups = tuple(_group(one, unit) for one in items(value["groups"], _MOST_ROWS))
    points = tuple(_point(one, unit) for one in items(value["points"], _MOST_ROWS))
    normal, planted = map(count, items(value["images"]))
    names = list(chain.from_iterable(group.layers for group in groups))
    known = set(names)
    hold(bool(groups) and len(names) == len(known) == count(value["layers"]))
    for point in points:
        kept = set(point.float_layers)
        hold(len(kept) == len(point.float_layers) and kept <= known)
        full = set(point.full_layers)
        hold(len(full) == len(point.full_layers) and full <= kept)
        hold(not full or point.float_type == "bf16")
    chosen = None if value["chosen"] is None else count(value["chosen"])
    if chosen is not None:
        hold(chosen < len(points) and points[chosen].holds and bool(points[chosen].speedup))
    drift, spearman = (
        None if value["limits"][name] is None else _finite(value["limits"][name])
        for name in ("drift", "spearman")
    )
    found = FoundSearch(
        groups=groups,
        points=points,
        chosen=chosen,
        finished=truth(value["finished"]),
        images=(normal, planted),
        max_drift=None if drift is None else share * drift,
        least_spearman=None if spearman is None else 1 - share * (1 - spearman),
    )
    hold(value["shipped"] == found.shipped)
    return found


def _group(value: Any, unit: float) -> FoundGroup:
    layers = _names(value["layers"])
    hold(bool(layers))
    return FoundGroup(layers, None if value["cost"] is None else _cost(value["cost"], unit))


def _point(value: Any, unit: float) -> FoundPoint:
    gain = value["speedup"]
    if gain is not None:
        middle, low, high = (number(gain[name]) for name in ("value", "low", "high"))
        hold(low <= high and all(1 / _FASTEST <= one <= _FASTEST for one in (middle, low, high)))
        gain = Interval(middle, low, high)
    hold(value["order"] in get_args(Order) and value["float_type"] in get_args(FloatType))
    return FoundPoint(
        order=value["order"],
        float_layers=_names(value["float_layers"]),
        cost=_cost(value["judged"], unit),
        holds=truth(value["holds"]),
        speedup=gain,
        float_type=value["float_type"],
        full_layers=_names(value["full_layers"]),
    )


def _cost(value: Any, unit: float) -> FoundCost:
    return FoundCost(
        drift=number(value["drift"]) / unit,
        rms=number(value["rms"]) / unit,
        spearman=number(value["spearman"]),
        flips=count(value["flips"]),
        maps=number(value["maps"]),
    )


def _names(value: Any) -> tuple[str, ...]:
    return tuple(text(name, _LONGEST_NAME) for name in items(value))


def _finite(value: Any) -> float:
    found = number(value)
    hold(math.isfinite(found))
    return found
