"""The plots of the page: score against score, drift against score, and latency.

What a plot cannot show (values that are no numbers, values far off, lines outside) it says in its
notes, which belong under it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vadexport.reporting import svg
from vadexport.reporting.axes import LARGEST, Axis
from vadexport.reporting.wording import figure, kind, measured
from vadexport.verification.latency import LatencyFigures
from vadexport.verification.records import ImageRecord
from vadexport.verification.result import Latency

_WIDTH: Final = 480
_LEFT: Final = 72.0
_RIGHT: Final = 464.0
_TOP: Final = 34.0
#: Above this number of points, those that cover one another are drawn once.
_MANY: Final = 1500


@dataclass(frozen=True)
class Plot:
    """A drawing and what it does not show.

    Attributes:
        svg: empty where there is nothing to draw.
        notes: sentences for its caption.
    """

    svg: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    kind: str
    words: str
    flipped: bool = False


def left_out(records: Sequence[ImageRecord], drawn: Sequence[object]) -> list[str]:
    """A note of images that cannot be drawn, if there are any."""
    missing = len(records) - len(drawn)
    return [f"Images left out, as their scores are not finite: {missing}."] if missing else []


def nothing_to_draw(records: Sequence[ImageRecord]) -> Plot:
    """What stands in the place of a plot of no points."""
    return Plot("", (f"None of the {len(records)} images has finite scores to draw.",))


def score_plot(records: Sequence[ImageRecord], threshold: float | None) -> Plot:
    """Raw score of the artifact against that of the reference, on equal axes."""
    points = _points([(record, record.raw) for record in records])
    if not points:
        return nothing_to_draw(records)
    both = _array([point.x for point in points] + [point.y for point in points])
    lines = [] if threshold is None else [threshold]
    x = Axis.linear(both, (_LEFT, _RIGHT), lines=lines)
    y = Axis.linear(both, (_TOP + _RIGHT - _LEFT, _TOP), lines=lines)
    drawing = svg.canvas(_WIDTH, 474, "Raw score of the artifact against the reference's, by image")
    svg.x_axis(drawing, x, "raw score of the reference", (_TOP, y.start))
    svg.y_axis(drawing, y, "raw score of the artifact", (_LEFT, _RIGHT))
    svg.line(drawing, (x.start, y.start), (x.end, y.end), "identity")
    notes = left_out(records, points)
    if threshold is not None and x.holds(threshold):
        svg.line(drawing, (x.at(threshold), y.start), (x.at(threshold), y.end), "limit")
        svg.line(drawing, (x.start, y.at(threshold)), (x.end, y.at(threshold)), "limit")
        svg.text(drawing, "threshold", x.end - 4, y.at(threshold) - 5, "end", "tick")
        notes.append("Upper left and lower right of the threshold's dotted lines are flips.")
    elif threshold is not None:
        notes.append(f"The threshold, {figure(threshold, '.4g')}, lies outside the axes.")
    return _finished(drawing, points, x, y, notes)


def drift_plot(
    records: Sequence[ImageRecord],
    threshold: float | None,
    drift_unit: float,
    limit: float | None,
) -> Plot:
    """Signed drift in drift units against the reference's raw score.

    Args:
        records: of all images.
        threshold: raw score units; None where none is decided on.
        drift_unit: raw score units.
        limit: of the largest drift, in drift units; None without one.
    """
    points = _points([(one, (one.raw - one.reference_raw) / drift_unit) for one in records])
    if not points:
        return nothing_to_draw(records)
    limits = [] if limit is None else [-limit, limit]
    lines = [] if threshold is None else [threshold]
    x = Axis.linear(_array([point.x for point in points]), (_LEFT, _RIGHT), lines=lines)
    y = Axis.linear(_array([point.y for point in points]), (286, _TOP), origin=0, lines=limits)
    drawing = svg.canvas(_WIDTH, 328, "Drift of the artifact against the reference's score")
    svg.x_axis(drawing, x, "raw score of the reference", (_TOP, y.start))
    svg.y_axis(drawing, y, "drift (drift units)", (_LEFT, _RIGHT))
    svg.line(drawing, (x.start, y.at(0)), (x.end, y.at(0)), "identity")
    notes = left_out(records, points)
    if threshold is not None and x.holds(threshold):
        svg.line(drawing, (x.at(threshold), y.start), (x.at(threshold), y.end), "limit")
        svg.text(drawing, "threshold", x.at(threshold), _TOP - 3, "middle", "tick")
    drawn = [value for value in limits if y.holds(value)]
    for value in drawn:
        svg.line(drawing, (x.start, y.at(value)), (x.end, y.at(value)), "limit")
        svg.text(drawing, "limit", x.end - 4, y.at(value) - 4, "end", "tick")
    if limit is not None and not drawn:
        notes.append(f"The limits, ±{limit:g}, lie outside the axes.")
    return _finished(drawing, points, x, y, notes)


def latency_plot(latency: Latency) -> Plot:
    """Every timed call of reference and artifact, a row each, first round on top."""
    rows = [("reference", latency.reference), ("artifact", latency.artifact)]
    samples = {name: _positive(found.samples_ms) for name, found in rows}
    everything = np.concatenate(list(samples.values()))
    if not len(everything):
        return Plot("", ("There are no timed calls to draw.",))
    x = Axis.logarithmic(everything, (16, _RIGHT))
    drawing = svg.canvas(_WIDTH, 240, "Milliseconds of every timed call of reference and artifact")
    svg.x_axis(drawing, x, "milliseconds a call, logarithmic", (12, 198))
    for row, (name, found) in enumerate(rows):
        _strip(drawing, x, 12 + 92 * row, (name, found), samples[name])
    missing = sum(len(found.samples_ms) for _, found in rows) - len(everything)
    notes = (f"Calls left out, as their time is not positive: {missing}.",) if missing else ()
    return Plot(svg.as_text(drawing), notes)


def _strip(
    drawing: svg.Drawing,
    x: Axis,
    top: float,
    contestant: tuple[str, LatencyFigures],
    samples: NDArray[np.float64],
) -> None:
    name, found = contestant
    y = Axis(0, max(len(samples) - 1, 1), top + 24, top + 76, ())
    points = [
        _Point(float(value), number, name, f"round {number + 1}: {measured(value)} ms")
        for number, value in enumerate(samples)
    ]
    _draw(drawing, points, x, y)
    words = f"{name}, {found.execution.precision}: median {measured(found.median_ms)} ms"
    if x.holds(found.median_ms):
        at = x.at(found.median_ms)
        svg.line(drawing, (at, top + 18), (at, top + 82), "median")
    svg.text(drawing, words, x.start + 2, top + 13)


def _points(values: Iterable[tuple[ImageRecord, float]]) -> list[_Point]:
    """Points of the images that can be drawn; what matters most comes last, so on top."""
    points = [
        _Point(record.reference_raw, y, kind(record.anomalous), _words(record), record.flipped)
        for record, y in values
        if abs(record.reference_raw) <= LARGEST and abs(y) <= LARGEST
    ]
    order = ["unknown", "normal", "anomalous"]
    return sorted(points, key=lambda point: (point.flipped, order.index(point.kind)))


def _words(record: ImageRecord) -> str:
    reference = f"{measured(record.reference_raw, 5)} ({kind(record.reference_label)})"
    artifact = f"{measured(record.raw, 5)} ({kind(record.label)})"
    return f"{record.name}: reference {reference}, artifact {artifact}"


def _finished(
    drawing: svg.Drawing, points: Sequence[_Point], x: Axis, y: Axis, notes: list[str]
) -> Plot:
    """Draw the points and the legend, and say how many are beyond the axes."""
    outside = sum(not (x.holds(point.x) and y.holds(point.y)) for point in points)
    if outside:
        notes.append(f"Far-off images, drawn hollow on the border: {outside}.")
    _draw(drawing, points, x, y)
    counts = Counter(point.kind for point in points)
    kinds = ("normal", "anomalous", "unknown")
    entries = [(one, f"{one} ({counts[one]})") for one in kinds if counts[one]]
    flips = sum(point.flipped for point in points)
    if flips:
        entries.append(("flip", f"flips ({flips})"))
    svg.legend(drawing, entries, _LEFT, 16)
    return Plot(svg.as_text(drawing), tuple(notes))


def _draw(drawing: svg.Drawing, points: Sequence[_Point], x: Axis, y: Axis) -> None:
    for point, others in _thinned(points, x, y):
        at = (x.at(point.x), y.at(point.y))
        inside = x.holds(point.x) and y.holds(point.y)
        element = svg.mark(drawing, point.kind, at, "" if inside else "outside")
        svg.hover(element, point.words + (f" (and {others} more here)" if others else ""))
        if point.flipped:
            svg.ring(drawing, at)


def _thinned(points: Sequence[_Point], x: Axis, y: Axis) -> Iterable[tuple[_Point, int]]:
    """Points and how many more they stand for: of very many, one a place and kind."""
    if len(points) <= _MANY:
        return [(point, 0) for point in points]
    places: dict[tuple[float, float, str, bool], list[_Point]] = defaultdict(list)
    for point in points:
        place = (round(x.at(point.x) / 2), round(y.at(point.y) / 2), point.kind, point.flipped)
        places[place].append(point)
    return [(first, len(others)) for first, *others in places.values()]


def _positive(samples: Iterable[float]) -> NDArray[np.float64]:
    return _array([one for one in samples if 1e-9 < one < 1e9])


def _array(values: Iterable[float]) -> NDArray[np.float64]:
    return np.array(list(values), np.float64)
