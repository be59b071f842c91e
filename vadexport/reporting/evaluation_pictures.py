"""The pictures of an evaluation: one SVG file a metric, with a panel for each category.

Other than the plots of a report's page, they stand alone, also in viewers that know no style
sheet's variables: colours are written out, on white.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import numpy as np

from vadexport.errors import InputError
from vadexport.files import written_whole
from vadexport.reporting import svg
from vadexport.reporting.axes import Axis, nice_ticks
from vadexport.reporting.wording import measured
from vadexport.verification.curves import Curve, precision_recall
from vadexport.verification.evaluation import CategoryEvaluation, Evaluation
from vadexport.verification.segmentation import FPR_LIMIT

#: Fills the panel of a category and says its figure.
_Panel = Callable[[svg.Drawing, CategoryEvaluation], str]

_COLUMNS: Final = 3
_PANEL_WIDTH: Final = 320
_PANEL_HEIGHT: Final = 316
_HEADER: Final = 30
_LEFT: Final = 56.0
_RIGHT: Final = 308.0
_TOP: Final = 42.0
_BOTTOM: Final = 266.0
_LONGEST_NAME: Final = 36
_BINS: Final = 32

#: The report's colours in light mode (Okabe and Ito 2008).
_STYLE: Final = """
text { font: 12px system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; fill: #1b1d1f; }
text.tick { font-size: 11px; fill: #575d63; }
text.title { font-weight: 600; }
.paper { fill: #fff; }
.grid { stroke: #d5d9dc; stroke-width: .5; }
.axis { stroke: #575d63; stroke-width: 1; }
.identity { stroke: #575d63; stroke-width: 1; stroke-dasharray: 5 4; fill: none; }
.limit { stroke: #1b1d1f; stroke-width: .8; stroke-dasharray: 1.5 2.5; }
.curve { stroke: #0072b2; stroke-width: 1.6; stroke-linejoin: round; fill: none; }
.area { fill: #0072b2; fill-opacity: .12; }
.mark { fill-opacity: .5; stroke-width: .8; }
.mark.normal { fill: #0072b2; stroke: #0072b2; }
.mark.anomalous { fill: #d55e00; stroke: #d55e00; }
.ring { fill: none; stroke: #d55e00; stroke-width: 1.6; }
"""


def evaluation_pictures(evaluation: Evaluation) -> dict[str, str | None]:
    """The text of each picture by its file name; None where no category has such figures."""
    categories = evaluation.categories
    with_masks = [category for category in categories if category.pro is not None]
    sheets: dict[str, tuple[str, Sequence[CategoryEvaluation], _Panel]] = {
        "roc.svg": ("ROC curve of the images", categories, _roc_panel),
        "precision_recall.svg": (
            "precision and recall of the images, and the largest F1 score",
            categories,
            _precision_recall_panel,
        ),
        "scores.svg": ("raw scores of the images", categories, _scores_panel),
        "pixel_roc.svg": ("ROC curve of the pixels", with_masks, _pixel_roc_panel),
        "pro.svg": ("per-region overlap of the pixels", with_masks, _pro_panel),
    }
    return {
        name: _sheet(f"{evaluation.detector}: {title}", shown, panel) if shown else None
        for name, (title, shown, panel) in sheets.items()
    }


def write_evaluation_pictures(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the pictures into a folder, each whole or not at all, and return their paths.

    A picture that this evaluation has nothing for is removed: it would be of an older one.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in evaluation_pictures(evaluation).items():
            if text is None:
                (folder / name).unlink(missing_ok=True)
                continue
            with written_whole(folder / name) as path:
                path.write_text(text, encoding="utf-8")
            written.append(folder / name)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write the pictures {folder}: {reason}") from error
    return written


# --- panels ----------------------------------------------------------------------------------


def _roc_panel(panel: svg.Drawing, category: CategoryEvaluation) -> str:
    scores, truth = category.scores, category.anomalous
    curve = Curve.over_thresholds(np.sort(scores[~truth]), scores[truth]).thinned()
    _draw_roc(panel, curve)
    return f"AUROC {category.image_auroc:.4f}"


def _pixel_roc_panel(panel: svg.Drawing, category: CategoryEvaluation) -> str:
    if category.pixel_roc is not None:
        _draw_roc(panel, category.pixel_roc)
    return f"AUROC {category.pixel_auroc:.4f}"


def _pro_panel(panel: svg.Drawing, category: CategoryEvaluation) -> str:
    x, y = _square(panel, "false positive rate", "per-region overlap", FPR_LIMIT)
    if category.pro is not None:
        _draw_curve(panel, category.pro, x, y)
    return f"AUPRO {category.aupro:.4f}"


def _precision_recall_panel(panel: svg.Drawing, category: CategoryEvaluation) -> str:
    x, y = _square(panel, "recall", "precision")
    precision, recall = precision_recall(category.scores, category.anomalous)
    # Between two thresholds there is none that would reach what a slanted line promises.
    steps = np.repeat(precision, 2), np.repeat(np.append(0.0, recall), 2)[1:-1]
    svg.polyline(panel, [(x.at(r), y.at(p)) for p, r in zip(*steps, strict=True)], "curve")
    best = category.best_f1
    alike = np.linspace(best.value / (2 - best.value), 1, 100)
    same = [(x.at(r), y.at(best.value * r / (2 * r - best.value))) for r in alike]
    svg.polyline(panel, same, "identity")
    svg.ring(panel, (x.at(best.recall), y.at(best.precision)))
    return f"F1 {best.value:.4f} above {measured(best.threshold, 4)}"


def _scores_panel(panel: svg.Drawing, category: CategoryEvaluation) -> str:
    scores, truth, threshold = category.scores, category.anomalous, category.best_f1.threshold
    x = Axis.linear(scores, (_LEFT, _RIGHT), lines=[threshold])
    edges = np.linspace(x.low, x.high, _BINS + 1)
    # Those beyond the axis are counted at its ends.
    inside = np.clip(scores, x.low, x.high)
    counts = {
        kind: np.histogram(inside[chosen], edges)[0]
        for kind, chosen in (("normal", ~truth), ("anomalous", truth))
    }
    most = max(int(one.max()) for one in counts.values())
    y = Axis(0, 1.08 * most, _BOTTOM, _TOP, nice_ticks(0, 1.08 * most, min(5, most)))
    svg.x_axis(panel, x, "raw score", (_TOP, _BOTTOM))
    svg.y_axis(panel, y, "images", (_LEFT, _RIGHT))
    for kind, found in counts.items():
        for count, low, high in zip(found, edges[:-1], edges[1:], strict=True):
            if count:
                bar = svg.box(
                    panel, (x.at(low), y.at(count)), (x.at(high), _BOTTOM), f"mark {kind}"
                )
                svg.hover(bar, f"{count} {kind} from {measured(low, 4)} to {measured(high, 4)}")
    if x.holds(threshold):
        svg.line(panel, (x.at(threshold), _TOP), (x.at(threshold), _BOTTOM), "limit")
    entries = [(kind, f"{kind} ({found.sum()})") for kind, found in counts.items()]
    svg.legend(panel, entries, _LEFT, _TOP - 6)
    return f"F1-max above {measured(threshold, 4)}"


# --- parts of a panel ------------------------------------------------------------------------


def _sheet(title: str, categories: Sequence[CategoryEvaluation], draw: _Panel) -> str:
    """All panels, row by row, each with its category's name and figure above."""
    columns = min(_COLUMNS, len(categories))
    width = columns * _PANEL_WIDTH
    height = _HEADER + _PANEL_HEIGHT * -(-len(categories) // columns)
    sheet = svg.canvas(width, height, title)
    sheet.set("xmlns", "http://www.w3.org/2000/svg")
    sheet.set("width", str(width))
    sheet.set("height", str(height))
    ET.SubElement(sheet, "style").text = _STYLE
    svg.box(sheet, (0, 0), (width, height), "paper")
    svg.text(sheet, title, 12, 20, css="title")
    for number, category in enumerate(categories):
        row, column = divmod(number, columns)
        place = f"translate({column * _PANEL_WIDTH} {_HEADER + row * _PANEL_HEIGHT})"
        panel = ET.SubElement(sheet, "g", {"transform": place})
        figure = draw(panel, category)
        name = category.name
        shown = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
        svg.text(panel, f"{shown}: {figure}", _LEFT, 16)
    return svg.as_text(sheet) + "\n"


def _square(
    panel: svg.Drawing, x_title: str, y_title: str, x_end: float = 1.0
) -> tuple[Axis, Axis]:
    """Axes of shares, from nothing to `x_end` and to all."""
    # 1e-12: the last of the ticks 0.1, 0.2, 0.3 lies beyond 0.3 but for rounding.
    x = Axis(0, x_end, _LEFT, _RIGHT, nice_ticks(0, x_end + 1e-12, 5))
    y = Axis(0, 1, _BOTTOM, _TOP, nice_ticks(0, 1, 5))
    svg.x_axis(panel, x, x_title, (_TOP, _BOTTOM))
    svg.y_axis(panel, y, y_title, (_LEFT, _RIGHT))
    return x, y


def _draw_roc(panel: svg.Drawing, curve: Curve) -> None:
    x, y = _square(panel, "false positive rate", "true positive rate")
    svg.line(panel, (x.start, y.start), (x.end, y.end), "identity")
    _draw_curve(panel, curve, x, y)


def _draw_curve(panel: svg.Drawing, curve: Curve, x: Axis, y: Axis) -> None:
    """The curve as far as the axis goes, and the area under it."""
    kept = curve.x <= x.high
    values = list(zip(curve.x[kept], curve.y[kept], strict=True))
    values.append((x.high, np.interp(x.high, curve.x, curve.y)))
    points = [(x.at(across), y.at(up)) for across, up in values]
    under = [*points, (x.end, y.start)]
    svg.polyline(panel, under, "area")
    svg.polyline(panel, points, "curve")
