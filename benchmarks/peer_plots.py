"""Plots of benchmarks/peers.py: speed-ups, and drift against latency."""

from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import numpy as np
from peer_builds import TARGETS
from peer_measuring import EAGER
from peer_rows import ROWS

from vadexport.reporting import svg
from vadexport.reporting.axes import Axis

#: Contestants of the plots: words and mark, peers before vadexport's artifacts.
_SHOWN: Final = {
    "anomalib f32": ("anomalib's OpenVINO, float32", "square", "pale"),
    "anomalib": ("anomalib's OpenVINO, default", "square", "peer"),
    "NNCF": ("NNCF over the whole graph", "triangle", "dark"),
    "openvino:fp32": ("vadexport openvino:fp32", "circle", "light"),
    "openvino:int8": ("vadexport openvino:int8", "circle", "own"),
    "openvino:auto": ("vadexport openvino:auto", "triangle", "deep"),
}
_KINDS: Final = {"square": "reference", "circle": "artifact", "triangle": "front"}
#: What each plot shows.
PLOTS: Final = {
    "bench-speed": "Times as fast as PyTorch eager, by detector",
    "bench-drift": "Largest drift of a raw score against latency, by detector",
}
_STYLE: Final = """
svg { background: #fff; font: 12px system-ui, sans-serif; }
text { fill: #24292f; } .title { font-weight: 600; }
.tick, .small { fill: #57606a; font-size: 11px; }
.grid { stroke: #d8dee4; } .axis { stroke: #57606a; }
.pale { fill: #d0d7de; } .peer { fill: #8c959f; } .dark { fill: #424a53; }
.light { fill: #8fc1f2; } .own { fill: #0969da; } .deep { fill: #0a3069; }
"""
_WIDTH, _BAR, _GAP, _LEFT = 760, 13, 16, 210
_COLUMNS, _SIDE, _FOOT = 3, 250, 54


def write_plots(rows: dict[str, Any], folder: Path) -> None:
    """Write the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in zip(PLOTS, (speed_bars(rows), drift_plots(rows)), strict=True):
        drawing.set("xmlns", "http://www.w3.org/2000/svg")
        style = ET.Element("style")
        style.text = _STYLE
        drawing.insert(0, style)
        path = folder / f"{name}.svg"
        path.write_text(svg.as_text(drawing) + "\n", encoding="utf-8")


def speed_bars(rows: dict[str, Any]) -> svg.Drawing:
    """A bar for each contestant of each detector: times as fast as PyTorch eager."""
    bars = {
        name: {each: latency(found, each)["over"][EAGER]["value"] for each in shown(found)}
        for name, found in rows.items()
    }
    values = np.array([value for row in bars.values() for value in row.values()])
    height = sum(len(row) * _BAR + _GAP for row in bars.values())
    drawing = svg.canvas(_WIDTH, height + 130, PLOTS["bench-speed"])
    axis = Axis.linear(values, (_LEFT, _WIDTH - 50), origin=0.0)
    svg.text(drawing, "Times as fast as PyTorch eager, float32", _LEFT, 20, css="title")
    top = 34.0
    svg.x_axis(drawing, axis, "× PyTorch eager, median of paired ratios", (top, top + height))
    y = top + 6
    for name, row in bars.items():
        middle = y + len(row) * _BAR / 2 + 4
        svg.text(drawing, ROWS[name].title.split(",")[0], _LEFT - 10, middle, "end")
        for each, value in row.items():
            corner, opposite = (axis.at(0), y), (axis.at(value), y + _BAR - 3)
            svg.box(drawing, corner, opposite, _SHOWN[each][2])
            svg.text(drawing, f"{value:.1f}", axis.at(value) + 4, y + _BAR - 4, css="small")
            y += _BAR
        y += _GAP
    legend(drawing, top + height + 62, square=True)
    return drawing


def drift_plots(rows: dict[str, Any]) -> svg.Drawing:
    """A field for each detector: largest drift against latency, both logarithmic."""
    lines = -(-len(rows) // _COLUMNS)
    height = 34 + lines * _SIDE + 70
    drawing = svg.canvas(_WIDTH, height, PLOTS["bench-drift"])
    svg.text(drawing, "Largest drift of a raw score against latency", 10, 20, css="title")
    for number, (name, found) in enumerate(rows.items()):
        left = (number % _COLUMNS) * (_WIDTH / _COLUMNS)
        field(drawing, name, found, (left, 34 + number // _COLUMNS * _SIDE))
    legend(drawing, height - 44, square=False)
    return drawing


def field(
    drawing: svg.Drawing, name: str, found: dict[str, Any], corner: tuple[float, float]
) -> None:
    """One detector's points."""
    left, top = corner[0] + 52, corner[1] + 24
    right, bottom = corner[0] + _WIDTH / _COLUMNS - 12, corner[1] + _SIDE - _FOOT
    names = shown(found)
    drifts = [max(found["measured"]["parity"][each]["drift_max"], 1e-7) for each in names]
    times = [latency(found, each)["ms"] for each in names]
    group = ET.SubElement(drawing, "g")
    svg.text(group, ROWS[name].title.split(",")[0], left, top - 8)
    x = Axis.logarithmic(np.array(times), (left, right))
    y = Axis.logarithmic(np.array(drifts), (bottom, top))
    svg.x_axis(group, x, "ms a call", (top, bottom))
    for value, label in y.ticks:
        svg.line(group, (left, y.at(value)), (right, y.at(value)), "grid")
        svg.text(group, label, left - 6, y.at(value) + 4, "end", "tick")
    svg.line(group, (left, top), (left, bottom), "axis")
    for each, drift, time in zip(names, drifts, times, strict=True):
        words, shape, css = _SHOWN[each]
        found_mark = svg.mark(group, _KINDS[shape], (x.at(time), y.at(drift)), css)
        svg.hover(found_mark, f"{words}: {time:.1f} ms, drift {drift:.2g}")


def legend(drawing: svg.Drawing, y: float, *, square: bool) -> None:
    """Two lines: peers, then vadexport's."""
    places = {True: [10.0, y + 20], False: [10.0, y]}
    for each, (words, shape, css) in _SHOWN.items():
        place = places[each in TARGETS]
        x, line = place
        svg.mark(drawing, "reference" if square else _KINDS[shape], (x + 4, line - 4), css)
        svg.text(drawing, words, x + 14, line)
        place[0] += 30 + 6.4 * len(words)


def shown(found: dict[str, Any]) -> list[str]:
    """Contestants of the plots that were measured."""
    return [each for each in _SHOWN if each in found["measured"]["latency"]]


def latency(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Figures of a contestant."""
    one: dict[str, Any] = found["measured"]["latency"][name]
    return one
