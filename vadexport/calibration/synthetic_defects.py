"""Defects planted into normal images, for where nobody has images of real ones.

They resemble no defect of any product. What they are good for: a detector must notice them, and an
artifact must notice what its reference does, ranges far outside of normal images included, which
INT8 calibrated on normal images may clip.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vadexport.contract import ImageArray

_Image = NDArray[np.float64]
_Kind = Callable[[np.random.Generator, _Image], _Image]


def with_defect(image: ImageArray, seed: int) -> ImageArray:
    """Plant a defect; kinds take turns with the seed.

    A piece of the image in another place (CutPaste, Li et al. 2021), a scratch, and a stain of
    another texture with smooth edges (as in DRAEM, Zavrtanik et al. 2021).

    Args:
        image: `[H, W, C]`, uint8 or uint16; left as it is.
        seed: at least 0; the same seed plants the same.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    largest = np.iinfo(image.dtype).max
    spoiled = _KINDS[seed % len(_KINDS)](random, image.astype(np.float64) / largest)
    made: ImageArray = np.rint(np.clip(spoiled, 0, 1) * largest).astype(image.dtype)
    return made


def _moved_piece(random: np.random.Generator, image: _Image) -> _Image:
    """A rectangle of 2 to 15% of the image, in another place: lighter if it is dark, or darker."""
    height, width = image.shape[:2]
    area, aspect = random.uniform(0.02, 0.15), np.exp(random.uniform(-1, 1))
    rows = int(np.clip(height * np.sqrt(area * aspect), 1, height))
    columns = int(np.clip(width * np.sqrt(area / aspect), 1, width))
    (top, down), (left, right) = (
        random.integers(0, size + 1, 2) for size in (height - rows, width - columns)
    )
    piece = image[top : top + rows, left : left + columns]
    spoiled: _Image = image.copy()
    spoiled[down : down + rows, right : right + columns] = piece + random.uniform(0.1, 0.4) * (
        _opposite(piece) - piece
    )
    return spoiled


def _scratch(random: np.random.Generator, image: _Image) -> _Image:
    """A straight line, white where it is dark, or black, about a hundredth of the width thick."""
    y, x = _axes(image)
    height, width = image.shape[:2]
    angle = random.uniform(0, np.pi)
    centre = random.uniform(0.25, 0.75, 2) * (height, width)
    along = (x - centre[1]) * np.cos(angle) + (y - centre[0]) * np.sin(angle)
    across = (y - centre[0]) * np.cos(angle) - (x - centre[1]) * np.sin(angle)
    length = random.uniform(0.2, 0.6) * max(height, width)
    line = (np.abs(along) <= length / 2) & (np.abs(across) <= max(1.0, width / 200))
    spoiled: _Image = image.copy()
    spoiled[line] = _opposite(spoiled[line])
    return spoiled


def _stain(random: np.random.Generator, image: _Image) -> _Image:
    """Noise of a coarse grain, fading out around a centre, over a tenth of the image or so."""
    y, x = _axes(image)
    height, width = image.shape[:2]
    centre = random.uniform(0.2, 0.8, 2) * (height, width)
    radius = random.uniform(0.08, 0.25, 2) * (height, width)
    away = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2
    shown = random.uniform(0.5, 1) * np.exp(-(away**2))
    grain = max(1, min(height, width) // 32)
    coarse = random.random((-(-height // grain), -(-width // grain), image.shape[2]))
    texture = coarse.repeat(grain, 0).repeat(grain, 1)[:height, :width]
    spoiled: _Image = image + shown[..., None] * (texture - image)
    return spoiled


def _opposite(values: _Image) -> float:
    """White to what is dark, black to what is light."""
    return 1.0 if values.size and values.mean() < 0.5 else 0.0


def _axes(image: _Image) -> tuple[_Image, _Image]:
    height, width = image.shape[:2]
    return np.arange(height, dtype=np.float64)[:, None], np.arange(width, dtype=np.float64)[None]


_KINDS: Final[tuple[_Kind, ...]] = (_moved_piece, _scratch, _stain)
