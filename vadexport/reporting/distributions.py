"""The plot of how raw scores are distributed, normal and anomalous apart.

The artifact's are bars and the reference's an outline on the same baseline: where the two part,
the distributions do, be it of five images or of thousands.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vadexport.reporting import svg
from vadexport.reporting.axes import LARGEST, Axis, nice_ticks
from vadexport.reporting.plots import Plot, left_out, nothing_to_draw
from vadexport.reporting.wording import kind, measured
from vadexport.verification.records import ImageRecord

_WIDTH: Final = 480
_LEFT: Final = 72.0
_RIGHT: Final = 464.0
_TOP: Final = 34.0
_PANEL: Final = 80.0
_GAP: Final = 36.0
_KEY: Final = 320.0
_FEWEST_BARS: Final = 10
_MOST_BARS: Final = 40

_Scores = NDArray[np.float64]


def distribution_plot(records: Sequence[ImageRecord], threshold: float | None) -> Plot:
    """Histograms of the raw scores, a panel a label, and in its notes medians and decisions.

    No bar crosses the threshold: those on its right are of images that are called anomalous.
    """
    kept = [one for one in records if all(abs(score) <= LARGEST for score in _scores(one))]
    if not kept:
        return nothing_to_draw(records)
    panels = {
        kind(label): np.array([_scores(one) for one in kept if one.anomalous is label]).T
        for label in (False, True, None)
        if any(one.anomalous is label for one in kept)
    }
    everything = np.concatenate([both.ravel() for both in panels.values()])
    x = Axis.linear(everything, (_LEFT, _RIGHT), lines=[] if threshold is None else [threshold])
    line = threshold if threshold is not None and x.holds(threshold) else None
    edges = _edges(x, len(kept), x.low if line is None else line)
    bottom = _TOP + len(panels) * (_PANEL + _GAP) - _GAP
    drawing = svg.canvas(_WIDTH, int(bottom) + 42, "Distribution of the raw scores, by label")
    svg.x_axis(drawing, x, "raw score", (_TOP, bottom))
    _key(drawing)
    for number, (label, both) in enumerate(panels.items()):
        top = _TOP + number * (_PANEL + _GAP)
        svg.legend(
            drawing, [(label, f"{label} ({len(both[0])})")], _LEFT, top - (9 if number else 18)
        )
        _panel(drawing, x, top, label, [_counts(scores, edges) for scores in both], edges)
        if line is not None:
            svg.line(drawing, (x.at(line), top), (x.at(line), top + _PANEL), "limit")
    if line is not None:
        svg.text(drawing, "threshold", x.at(line), _TOP - 3, "middle", "tick")
    notes = [_in_words(label, both, threshold) for label, both in panels.items()]
    beyond = sum(not x.holds(score) for score in everything)
    if beyond:
        notes.append(f"Far-off scores of both together, beyond the axis: {beyond}.")
    return Plot(svg.as_text(drawing), (*notes, *left_out(records, kept)))


def _scores(record: ImageRecord) -> tuple[float, float]:
    return record.reference_raw, record.raw


def _edges(x: Axis, images: int, origin: float) -> _Scores:
    """Ends of the bars, `origin` one of them: more for more images."""
    bars = min(max(round(2 * math.sqrt(images)), _FEWEST_BARS), _MOST_BARS)
    width = (x.high - x.low) / bars
    first, last = math.floor((x.low - origin) / width), math.ceil((x.high - origin) / width)
    return origin + width * np.arange(first, last + 1, dtype=np.float64)


def _counts(scores: _Scores, edges: _Scores) -> list[int]:
    """Scores of each bar, its upper end with it: a score at the threshold is not above it."""
    inside = scores[(scores > edges[0]) & (scores <= edges[-1])]
    numbers = np.searchsorted(edges, inside, side="left") - 1
    return [int(count) for count in np.bincount(numbers, minlength=len(edges) - 1)]


def _panel(
    drawing: svg.Drawing,
    x: Axis,
    top: float,
    label: str,
    counts: Sequence[Sequence[int]],
    edges: _Scores,
) -> None:
    most = max(1, *map(max, counts))
    y = Axis(0, most, top + _PANEL, top, nice_ticks(0, most, min(most, 3)))
    svg.y_axis(drawing, y, "images", (_LEFT, _RIGHT))
    svg.line(drawing, (x.start, y.start), (x.end, y.start), "axis")
    outline = []
    for reference, artifact, low, high in zip(*counts, edges[:-1], edges[1:], strict=True):
        outline += [(x.at(low), y.at(reference)), (x.at(high), y.at(reference))]
        if artifact:
            bar = svg.box(
                drawing, (x.at(low), y.at(artifact)), (x.at(high), y.start), f"bar {label}"
            )
            span = f"from {measured(low, 4)} to {measured(high, 4)}"
            svg.hover(
                bar, f"{label}, {span}: {artifact} of the artifact, {reference} of the reference"
            )
    svg.polyline(drawing, outline, "outline")


def _key(drawing: svg.Drawing) -> None:
    """Which is the reference's, and which the artifact's."""
    svg.box(drawing, (_KEY, 7), (_KEY + 11, 16), "outline")
    svg.text(drawing, "reference", _KEY + 16, 16)
    svg.box(drawing, (_KEY + 80, 7), (_KEY + 91, 16), "bar")
    svg.text(drawing, "artifact", _KEY + 96, 16)


def _in_words(label: str, both: _Scores, threshold: float | None) -> str:
    """Medians, and images above the threshold, of the reference and of the artifact."""
    medians = " → ".join(measured(float(np.median(scores)), 4) for scores in both)
    words = f"{label.capitalize()}: median {medians}"
    if threshold is None:
        return f"{words}."
    above = " → ".join(str(np.count_nonzero(scores > threshold)) for scores in both)
    return f"{words}, above the threshold {above} of {both.shape[1]}."
