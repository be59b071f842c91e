"""Drawings for the page: frame, axes, marks and legend, as inline SVG.

Elements are made with ElementTree, so any text is escaped. Colours and fonts come from the page's
style sheet, by class, and follow its light and dark.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final
from xml.etree import ElementTree as ET

from vadexport.reporting.axes import Axis

Drawing = ET.Element

#: Marks by the kind of what they stand for: colour and shape each tell them apart alone.
SHAPES: Final = {
    "normal": "circle",
    "anomalous": "triangle",
    "unknown": "square",
    "reference": "square",
    "artifact": "circle",
    "front": "triangle",
    "narrow": "square",
}
_RADIUS: Final = 3.4
_LETTER: Final = 6.2


def canvas(width: int, height: int, label: str) -> Drawing:
    """An empty drawing; `label` says what it shows to those who cannot see it."""
    return ET.Element(
        "svg",
        {
            "viewBox": f"0 0 {width} {height}",
            "role": "img",
            "aria-label": label,
            "class": "plot",
        },
    )


def text(
    parent: Drawing, words: str, x: float, y: float, anchor: str = "start", css: str = ""
) -> Drawing:
    """Words; `anchor` is start, middle or end."""
    element = ET.SubElement(
        parent, "text", {"x": _short(x), "y": _short(y), "text-anchor": anchor, "class": css}
    )
    element.text = words
    return element


def line(parent: Drawing, start: tuple[float, float], end: tuple[float, float], css: str) -> None:
    """A straight line."""
    ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    ET.SubElement(
        parent, "line", {**{key: _short(value) for key, value in ends.items()}, "class": css}
    )


def polyline(parent: Drawing, points: Iterable[tuple[float, float]], css: str) -> None:
    """Straight lines from point to point; those at the place of the one before are left out."""
    places = groupby(f"{_short(x)},{_short(y)}" for x, y in points)
    words = " ".join(place for place, _ in places)
    ET.SubElement(parent, "polyline", {"points": words, "class": css})


def box(
    parent: Drawing, corner: tuple[float, float], opposite: tuple[float, float], css: str
) -> Drawing:
    """A rectangle, from its upper left corner to the lower right."""
    (left, top), (right, bottom) = corner, opposite
    sizes = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return ET.SubElement(
        parent, "rect", {**{key: _short(value) for key, value in sizes.items()}, "class": css}
    )


def x_axis(parent: Drawing, x: Axis, title: str, span: tuple[float, float]) -> None:
    """An axis at the bottom, with grid lines from there to the top; `span` is top and bottom."""
    top, bottom = span
    for value, label in x.ticks:
        line(parent, (x.at(value), top), (x.at(value), bottom), "grid")
        text(parent, label, x.at(value), bottom + 16, "middle", "tick")
    line(parent, (x.start, bottom), (x.end, bottom), "axis")
    text(parent, title, (x.start + x.end) / 2, bottom + 35, "middle")


def y_axis(parent: Drawing, y: Axis, title: str, span: tuple[float, float]) -> None:
    """An axis on the left, with grid lines from there; `span` is left and right."""
    left, right = span
    for value, label in y.ticks:
        line(parent, (left, y.at(value)), (right, y.at(value)), "grid")
        text(parent, label, left - 6, y.at(value) + 4, "end", "tick")
    line(parent, (left, y.start), (left, y.end), "axis")
    middle = (y.start + y.end) / 2
    words = text(parent, title, 12, middle, "middle")
    words.set("transform", f"rotate(-90 12 {_short(middle)})")


def mark(parent: Drawing, kind: str, at: tuple[float, float], css: str = "") -> Drawing:
    """The mark of a kind."""
    x, y = at
    shape = SHAPES[kind]
    classes = {"class": f"mark {kind} {css}".rstrip()}
    if shape == "circle":
        return ET.SubElement(
            parent, "circle", {"cx": _short(x), "cy": _short(y), "r": f"{_RADIUS - 0.4}", **classes}
        )
    if shape == "square":
        corner = {"x": _short(x - 2.6), "y": _short(y - 2.6), "width": "5.2", "height": "5.2"}
        return ET.SubElement(parent, "rect", {**corner, **classes})
    corners = ((x, y - _RADIUS), (x + _RADIUS, y + 2.8), (x - _RADIUS, y + 2.8))
    points = " ".join(f"{_short(a)},{_short(b)}" for a, b in corners)
    return ET.SubElement(parent, "polygon", {"points": points, **classes})


def ring(parent: Drawing, at: tuple[float, float]) -> None:
    """A ring around a mark."""
    ET.SubElement(
        parent, "circle", {"cx": _short(at[0]), "cy": _short(at[1]), "r": "6.5", "class": "ring"}
    )


def hover(element: Drawing, words: str) -> None:
    """What browsers show when the pointer is on an element."""
    ET.SubElement(element, "title").text = words


def legend(parent: Drawing, entries: Sequence[tuple[str, str]], x: float, y: float) -> None:
    """Marks with words in a row; a kind that has no shape gets a ring."""
    for kind, words in entries:
        if kind in SHAPES:
            mark(parent, kind, (x + 4, y - 4))
        else:
            x += 4
            ring(parent, (x + 4, y - 4))
        text(parent, words, x + 14, y)
        x += 14 + _LETTER * len(words) + 14


def as_text(drawing: Drawing) -> str:
    """The drawing as part of a page."""
    return ET.tostring(drawing, encoding="unicode")


def _short(value: float) -> str:
    """A tenth of a unit is finer than a screen."""
    return f"{value:.1f}".removesuffix(".0")
