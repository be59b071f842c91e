"""The page's colours as colour-blind people see them."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import vadexport.reporting

CSS = Path(vadexport.reporting.__file__).parent / "templates" / "report.css"
#: What one plot may show side by side, and what a list of checks does.
MARKS = ("normal", "anomalous", "unknown", "artifact")
VERDICTS = ("held", "short", "open")
#: In CIELAB; two colours side by side are told apart from about 2.3 on, small marks need more.
LEAST = 15

#: On linear sRGB, where one kind of cone is missing (Machado, Oliveira & Fernandes 2009).
SEEN = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def palettes():
    """Colours by name: on a light screen, on a dark one, and in print."""
    blocks = re.findall(r":root \{([^}]*--[^}]*)\}", CSS.read_text())
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]+)", block)) for block in blocks]


def lab(colour, seen):
    """CIELAB (CIE 1976, D65) of a colour of CSS with six digits, as it is seen."""
    shares = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(seen) @ linear, 0, 1)
    x, y, z = XYZ @ linear / XYZ.sum(axis=1)
    root = [
        np.cbrt(t) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in (x, y, z)
    ]
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def test_lab_is_that_of_known_colours():
    assert lab("#ffffff", np.eye(3)) == pytest.approx([100, 0, 0], abs=0.01)
    assert lab("#ff0000", np.eye(3)) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    for seen in SEEN.values():
        assert lab("#808080", seen) == pytest.approx(lab("#808080", np.eye(3)), abs=0.01)


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark", "print"])
@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("together", [MARKS, VERDICTS], ids=["marks", "verdicts"])
def test_colours_that_stand_together_are_told_apart(palette, seen, together):
    for first, second in combinations(together, 2):
        colours = [lab(palette[name], SEEN[seen]) for name in (first, second)]
        assert np.linalg.norm(colours[0] - colours[1]) >= LEAST, (first, second)
