"""Woven cloth with known defects, and the mask of each: a category folder laid out like MVTec AD's.

Everything follows from a seed. Each image has its own thread width, light and noise; a defect
changes the pixels of its mask and no others: a cut (a bright line), a stain (a darker, redder
patch), a fault (threads of a patch out of step).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vadexport.images.colouring import save_png

SIDE = 256
PARTS = {"train": 100, "calibration": 80, "good": 60, "cut": 20, "stain": 20, "fault": 20}

Image = NDArray[np.float64]
Mask = NDArray[np.bool_]


def write_category(folder: Path, seed: int = 0) -> None:
    """Write `train/good`, `calibration/good`, `test/*` and `ground_truth/*` into `folder`."""
    rng = np.random.default_rng(seed)
    for part, count in PARTS.items():
        for number in range(count):
            image, phase = _cloth(rng)
            if part in _DEFECTS:
                mask = _DEFECTS[part](rng, image, phase)
                _write(folder / "ground_truth" / part / f"{number:03}_mask.png", mask[..., None])
            where = f"{part}/good" if part in ("train", "calibration") else f"test/{part}"
            _write(folder / where / f"{number:03}.png", image)


def _cloth(rng: np.random.Generator) -> tuple[Image, float]:
    """An image [256, 256, 3] in [0, 1], and the width of its threads in pixels."""
    width = rng.uniform(9, 10)
    light = 1 + 0.1 * np.linspace(-1, 1, SIDE)[:, None] * rng.uniform(-1, 1)
    weave = _weave(width, *rng.uniform(0, 20, 2))
    grain = rng.normal(0, 0.03, (SIDE, SIDE, 3))
    colour = np.array([0.62, 0.58, 0.5]) * rng.uniform(0.95, 1.05)
    return (weave * light)[..., None] * colour + grain, width


def _weave(width: float, down: float, right: float) -> Image:
    """Threads over and under each other, [256, 256] around 1."""
    y, x = np.mgrid[:SIDE, :SIDE]
    rows, columns = (y + down) / width, (x + right) / width
    over = (np.floor(rows) + np.floor(columns)) % 2
    across, along = (np.abs(np.sin(np.pi * each)) for each in (rows, columns))
    return 0.6 + 0.6 * np.where(over == 1, across, along)


def _cut(rng: np.random.Generator, image: Image, _width: float) -> Mask:
    start, angle = rng.uniform(60, SIDE - 60, 2), rng.uniform(0, np.pi)
    y, x = np.mgrid[:SIDE, :SIDE]
    along = (y - start[0]) * np.sin(angle) + (x - start[1]) * np.cos(angle)
    across = (y - start[0]) * np.cos(angle) - (x - start[1]) * np.sin(angle)
    mask = (np.abs(along) < rng.uniform(15, 40)) & (np.abs(across) < rng.uniform(1.0, 2.0))
    image[mask] = image[mask] * 0.3 + 0.65
    return mask


def _stain(rng: np.random.Generator, image: Image, _width: float) -> Mask:
    mask = _patch(rng)
    image[mask] *= np.array([0.85, 0.7, 0.65])
    return mask


def _fault(rng: np.random.Generator, image: Image, width: float) -> Mask:
    mask = _patch(rng)
    shifted = np.roll(image, (round(width / 2), round(width / 3)), axis=(0, 1))
    image[mask] = shifted[mask]
    return mask


def _patch(rng: np.random.Generator) -> Mask:
    """An ellipse of 12 to 30 pixels' radius, away from the border."""
    centre, radius = rng.uniform(50, SIDE - 50, 2), rng.uniform(12, 30, 2)
    y, x = np.mgrid[:SIDE, :SIDE]
    return ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1


_DEFECTS: dict[str, Callable[[np.random.Generator, Image, float], Mask]] = {
    "cut": _cut,
    "stain": _stain,
    "fault": _fault,
}


def _write(path: Path, image: Image | Mask) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png((np.clip(image, 0, 1) * 255).round().astype(np.uint8), path)
