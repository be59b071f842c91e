"""Unlike images out of many: greedy k-centre on a cheap description of each.

The description is of pixels alone. What a network makes of them would tell more of the ranges it
reaches, but who has run the network on an image has calibrated with it.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vadexport.contract import ImageArray

#: Cells of the grid whose means say where an image is light and where dark.
_GRID: Final = 8
#: Of gray levels and of the steps between neighbouring pixels.
_QUANTILES: Final = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
#: Pixels a side that are looked at, at most.
_MOST: Final = 256


def description(image: ImageArray) -> NDArray[np.float32]:
    """Describe an image by where it is light, by its gray levels, and by its texture.

    Args:
        image: `[H, W, C]`, uint8 or uint16.

    Returns:
        Means of a grid of 8x8 cells, nine quantiles of gray levels, and nine each of the absolute
        steps to the next pixel, down and across: `[91]`, or less of images of fewer than 8 pixels
        a side.
    """
    height, width = image.shape[:2]
    # Pixels are left out, not averaged: averages have no texture.
    thinned = image[:: -(-height // _MOST), :: -(-width // _MOST)]
    gray = thinned.mean(axis=2, dtype=np.float32) / np.iinfo(image.dtype).max
    grid = [
        cell.mean()
        for band in np.array_split(gray, min(_GRID, gray.shape[0]))
        for cell in np.array_split(band, min(_GRID, gray.shape[1]), axis=1)
    ]
    steps = [np.abs(np.diff(gray, axis=axis)) for axis in (0, 1)]
    levels = np.quantile(gray, _QUANTILES)
    texture = [np.quantile(step, _QUANTILES) if step.size else levels * 0 for step in steps]
    return np.concatenate([grid, levels, *texture]).astype(np.float32)


def spread_out(points: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Choose `count` points that are far from each other, by the greedy k-centre rule.

    Each number is divided by its spread over the points first. The first is the one farthest from
    their mean; then, again and again, the one farthest from all that were taken (Gonzalez 1985).
    So copies of what was taken come last.

    Args:
        points: `[n, D]`.
        count: in 1 … n.

    Returns:
        Indices `[count]`, in the order chosen; of equally far points the first.
    """
    spread = points.std(axis=0)
    scaled = (points - points.mean(axis=0)) / np.where(spread > 0, spread, 1)
    far = np.linalg.norm(scaled, axis=1)
    chosen = np.empty(count, np.intp)
    for number in range(count):
        pick = chosen[number] = int(far.argmax())
        away = np.linalg.norm(scaled - scaled[pick], axis=1)
        far = away if number == 0 else np.minimum(far, away)
        far[chosen[: number + 1]] = -1
    return chosen
