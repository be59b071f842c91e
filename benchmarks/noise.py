"""Images of coarse and fine noise, each with its own contrast.

Two kinds, each by its own numbers and its own order of draws: figures in the documents hang on
these bits.
"""

import numpy as np

from vadexport.contract import Dtype, ImageArray

_SQUARE = 16


def rgb_noise(count: int, height: int, width: int, seed: int) -> list[np.ndarray]:
    """RGB images around mid-gray of any size, uint8 [h, w, 3]."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        squares = _squares(rng, height // _SQUARE + 1, width // _SQUARE + 1, 3)
        mixed = 128 + rng.uniform(10, 40) * squares[:height, :width]
        mixed += rng.uniform(5, 30) * rng.normal(size=(height, width, 3))
        found.append(mixed.clip(0, 255).astype(np.uint8))
    return found


def camera_noise(
    count: int, size: tuple[int, int], channels: int, dtype: Dtype, seed: int
) -> list[ImageArray]:
    """Images of any camera whose sides are whole multiples of 16 pixels, [h, w, C]."""
    rng = np.random.default_rng(seed)
    found, white = [], np.iinfo(dtype).max
    for _ in range(count):
        squares = _squares(rng, size[0] // _SQUARE, size[1] // _SQUARE, channels)
        fine = rng.normal(size=(*size, channels))
        mixed = rng.uniform(0.04, 0.16) * squares
        mixed += 0.5 + rng.uniform(0.02, 0.12) * fine
        found.append((mixed.clip(0, 1) * white).astype(dtype))
    return found


def _squares(rng: np.random.Generator, rows: int, columns: int, channels: int) -> np.ndarray:
    """So many squares of 16 pixels, each of one random value."""
    drawn = rng.normal(size=(rows, columns, channels))
    return drawn.repeat(_SQUARE, 0).repeat(_SQUARE, 1)
