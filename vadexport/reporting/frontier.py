"""What a build's search for INT8 layers found: a plot of its frontier, and tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import numpy as np

from vadexport.reporting import svg
from vadexport.reporting.axes import LARGEST, Axis
from vadexport.reporting.plots import Plot
from vadexport.reporting.wording import MISSING, figure, flips, measured, ratio
from vadexport.terminal import printable
from vadexport.verification.searched import FoundCost, FoundPoint, FoundSearch

_WIDTH: Final = 480
_LEFT: Final = 72.0
_LEGEND: Final = 20.0
_RIGHT: Final = 464.0
_TOP: Final = 34.0
_BOTTOM: Final = 286.0
#: Room of a mark to each side, and of a label: width of a digit, and height.
_MARK: Final = 7.5
_DIGIT: Final = 7.0
_LINE: Final = 11.0
#: Of a group of more layers, the first and the last are named.
_NAMED: Final = 3
_LONGEST: Final = 48
_ORDERS: Final = {"cost": "costliest first", "front": "from the front"}
#: Kinds of marks, in the legend's order.
_KINDS: Final = {
    "artifact": "costliest first",
    "front": "from the front",
    "narrow": "bfloat16",
    "reference": "float32",
}
#: Before the name that an operator has in PyTorch, torch.onnx writes this.
_PREFIX: Final = "node_"

_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class SearchSection:
    """What the page shows of a search.

    Attributes:
        words: what was chosen.
        judged: on what images, and what had to hold.
        plot: of the forms that were timed.
        points: rows of the table of forms.
        layers: rows of the table of layers; none where they were not judged one by one.
    """

    words: str
    judged: str
    plot: Plot
    points: tuple[tuple[str, ...], ...]
    layers: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Place:
    """A point of the plot: speed-up with its interval, drift, and what is read at it."""

    gain: tuple[float, float, float]
    drift: float
    kind: str
    label: str
    words: str
    built: bool


def search_section(found: FoundSearch | None) -> SearchSection | None:
    """The section of the page; None where there was no search."""
    if found is None:
        return None
    one_by_one = any(group.cost is not None for group in found.groups)
    return SearchSection(
        words=found.words,
        judged=_judged(found),
        plot=frontier_plot(found),
        points=tuple(_point_rows(found)),
        layers=tuple(_layer_rows(found)) if one_by_one else (),
    )


def frontier_plot(found: FoundSearch) -> Plot:
    """Largest drift of a normal image against the speed-up over float32.

    A number at a point says how many layers are not INT8, a ring what was built.
    """
    timed = [point for point in found.points if point.speedup is not None]
    places = list(_places(found))
    notes = []
    if len(timed) < len(found.points):
        notes.append(f"Not timed, so only in the table: {len(found.points) - len(timed)}.")
    if len(places) < len(timed):
        notes.append(f"Left out, as their drift is not finite: {len(timed) - len(places)}.")
    if not places:
        return Plot("", ("There is no form that was timed and can be drawn.", *notes))
    end = _Place((1, 1, 1), 0, "reference", "", "float32", found.built is None)
    places.append(end)
    limit = found.max_drift
    x = Axis.linear(np.array([one.gain for one in places]).ravel(), (_LEFT, _RIGHT), origin=1)
    drifts = np.array([one.drift for one in places])
    lines = [] if limit is None else [limit]
    y = Axis.linear(drifts, (_BOTTOM, _TOP), origin=0, lines=lines)
    drawing = svg.canvas(_WIDTH, 328, "Drift against speed-up, by how many layers are not INT8")
    svg.x_axis(drawing, x, "speed-up over float32, when built", (_TOP, y.start))
    svg.y_axis(drawing, y, "largest drift (drift units)", (_LEFT, _RIGHT))
    if limit is not None and y.holds(limit):
        svg.line(drawing, (x.start, y.at(limit)), (x.end, y.at(limit)), "limit")
        svg.text(drawing, "limit of the search", x.end - 4, y.at(limit) - 4, "end", "tick")
    elif limit is not None:
        notes.append(f"The search's limit of drift, {measured(limit)}, lies outside the axes.")
    if limit is not None and any(one.cost.drift <= limit for one in timed if not one.holds):
        notes.append("A form within the limit of drift may fall short of another: see the table.")
    outside = sum(not _inside(one, x, y) for one in places)
    if outside:
        notes.append(f"Far-off forms, drawn hollow on the border: {outside}.")
    _draw(drawing, places, x, y)
    kinds = {one.kind for one in places}
    entries = [(kind, words) for kind, words in _KINDS.items() if kind in kinds]
    svg.legend(drawing, [*entries, ("ring", "built")], _LEGEND, 16)
    return Plot(svg.as_text(drawing), tuple(notes))


def _places(found: FoundSearch) -> Iterator[_Place]:
    """Of the forms that were timed and have a place."""
    for point in found.points:
        gain, count = point.speedup, len(point.float_layers)
        if gain is None or not abs(point.cost.drift) <= LARGEST:
            continue
        words = (
            f"{count} of {found.layers} layers in {_order(point, found)}: {ratio(gain)} times as "
            f"fast, largest drift {figure(point.cost.drift)}"
        )
        ends = (gain.value, gain.low, gain.high)
        kind = "front" if point.order == "front" else "artifact"
        if point.float_type == "bf16":
            kind = "narrow"
        yield _Place(ends, point.cost.drift, kind, str(count), words, point is found.built)


def _order(point: FoundPoint, found: FoundSearch) -> str:
    """What its layers that are not INT8 compute in, and how they were chosen."""
    some = 0 < len(point.float_layers) < found.layers
    return f"{point.float_words}, {_ORDERS[point.order]}" if some else point.float_words


def _inside(place: _Place, x: Axis, y: Axis) -> bool:
    return y.holds(place.drift) and all(map(x.holds, place.gain))


def _draw(drawing: svg.Drawing, places: Sequence[_Place], x: Axis, y: Axis) -> None:
    at = [(x.at(place.gain[0]), y.at(place.drift)) for place in places]
    for kind in ("artifact", "front"):
        # Both begin at all INT8 and end at float32.
        ways = [
            point
            for place, point in zip(places, at, strict=True)
            if place.kind in {kind, "reference"} or place.label == "0"
        ]
        if any(place.kind == kind for place in places):
            svg.polyline(drawing, ways, "route")
    taken = [(a - _MARK, b - _MARK, a + _MARK, b + _MARK) for a, b in at]
    for place, (across, up) in zip(places, at, strict=True):
        _, low, high = place.gain
        if low < high:
            svg.line(drawing, (x.at(low), up), (x.at(high), up), "axis")
        hollow = "" if _inside(place, x, y) else "outside"
        svg.hover(svg.mark(drawing, place.kind, (across, up), hollow), place.words)
        if place.built:
            svg.ring(drawing, (across, up))
    for place, point in zip(places, at, strict=True):
        box = place.label and _free(point, _DIGIT * len(place.label), taken)
        if box:
            taken.append(box)
            svg.text(drawing, place.label, (box[0] + box[2]) / 2, box[3] - 1, "middle")


def _free(at: tuple[float, float], width: float, taken: Sequence[_Box]) -> _Box | None:
    """Room for a label above, below, or beside a mark; None where others are in the way."""
    x, y = at
    beside = _MARK + 1 + width / 2
    away = _MARK + 1 + _LINE / 2
    for a, b in ((x, y - away), (x, y + away), (x + beside, y - away), (x - beside, y - away)):
        box = (a - width / 2, b - _LINE / 2, a + width / 2, b + _LINE / 2)
        if not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
            for other in taken
        ):
            return box
    return None


def _judged(found: FoundSearch) -> str:
    normal, planted = found.images
    held = ["no decision flips"]
    if found.least_spearman is not None:
        held.insert(0, f"Spearman to expect at least {found.least_spearman:.7g}")
    if found.max_drift is not None:
        held.insert(0, f"largest drift at most {measured(found.max_drift)}")
    ended = "" if found.finished else " Its time was over before it was done."
    return (
        f"The build judged forms of the network on {normal} normal images and {planted} with "
        "planted defects, against the float graph, and put groups of layers back to float32, the "
        "costliest first and from the front, until scores and maps held: "
        f"{', '.join(held)}. {_narrow(found)}"
        f"Its limits are tighter than those below, for it has few images.{ended}"
    )


def _narrow(found: FoundSearch) -> str:
    """What else was tried where the processor is fast at bfloat16."""
    if all(point.float_type == "fp32" for point in found.points):
        return ""
    return "What went back, and the whole network, was tried in bfloat16 as well. "


def _point_rows(found: FoundSearch) -> Iterator[tuple[str, ...]]:
    """Layers that are not INT8, speed-up, figures, and what became of it."""
    for point in found.points:
        outcome = "held" if point.holds else "fell short"
        if point is found.built:
            outcome = "held, and was built"
        elif point is found.best:
            outcome = "held, not surely faster"
        yield (
            f"{len(point.float_layers)} in {_order(point, found)}" if point.float_layers else "0",
            MISSING if point.speedup is None else ratio(point.speedup),
            *_figures(point.cost, found),
            outcome,
        )


def _layer_rows(found: FoundSearch) -> Iterator[tuple[str, ...]]:
    """A group's layers, figures, and where they ended."""
    every = [name for group in found.groups for name in group.layers]
    shared = _shared(every)
    ends = dict.fromkeys(every, "float32")
    if found.built is not None:
        narrow = "bfloat16" if found.built.float_type == "bf16" else "float32"
        ends = dict.fromkeys(every, "INT8") | dict.fromkeys(found.built.float_layers, narrow)
        ends |= dict.fromkeys(found.built.full_layers, "float32")
    for group in found.groups:
        names = [_short(name, shared) for name in group.layers]
        words = ", ".join(names)
        if len(names) > _NAMED:
            words = f"{names[0]} … {names[-1]} ({len(names)} layers)"
        ended = sorted({ends[name] for name in group.layers})
        yield words, *_figures(group.cost, found), ended[0] if len(ended) == 1 else "both"


def _figures(cost: FoundCost | None, found: FoundSearch) -> tuple[str, ...]:
    """Drift of all images and of normal ones, rank correlation, flips, map difference."""
    if cost is None:
        return (MISSING,) * 5
    return (
        figure(cost.rms),
        figure(cost.drift),
        figure(cost.spearman, ".5f"),
        flips(cost.flips, sum(found.images)),
        figure(cost.maps),
    )


def _shared(names: Sequence[str]) -> str:
    """Folders that all names begin with."""
    folders = zip(*(name.split("/")[:-1] for name in names), strict=False)
    return "".join(f"{parts[0]}/" for parts in takewhile(lambda one: len(set(one)) == 1, folders))


def _short(name: str, shared: str) -> str:
    short = printable(name.removeprefix(shared).removeprefix(_PREFIX))
    return short if len(short) <= _LONGEST else f"…{short[1 - _LONGEST :]}"
