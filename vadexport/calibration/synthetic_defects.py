"""Defects planted into normal images, for where nobody has images of real ones.

They resemble no defect of any product. What they are good for: a detector must notice them, and an
artifact must notice what its reference does, ranges far outside of normal images included, which
INT8 calibrated on normal images may clip.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vadexport.calibration.perlin import perlin_noise
from vadexport.contract import ImageArray

_Image = NDArray[np.float64]
_Kind = Callable[[np.random.Generator, _Image], _Image]

#: A defect shows where it moves a pixel by this much, of white.
_SHOWS: Final = 1 / 50


def with_defect(image: ImageArray, seed: int) -> ImageArray:
    """Plant a defect; kinds take turns with the seed.

    A piece of the image in another place (CutPaste, Li et al. 2021), a scratch, a stain of coarse
    noise, a patch of another texture in the form of thresholded Perlin noise (DRAEM, Zavrtanik et
    al. 2021), a blurred place, a bright spot and a dark one. Where a kind would not show (a blur
    where all is flat, a bright spot on white), the next takes its place.

    Args:
        image: `[H, W, C]`, uint8 or uint16; left as it is.
        seed: at least 0; the same seed plants the same.
    """
    return _planted(image, seed, np.random.Generator(np.random.PCG64(seed)))


def planted(images: Sequence[ImageArray], seed: int) -> list[ImageArray]:
    """Plant one defect in each image; kinds take turns, and each image's is its own.

    Args:
        images: each `[H, W, C]`, uint8 or uint16; left as they are.
        seed: at least 0; the same seed plants the same. What an image gets depends on it, on the
            seed, and on its place among the images.
    """
    return [
        _planted(image, seed + number, np.random.Generator(np.random.PCG64([seed, number])))
        for number, image in enumerate(images)
    ]


def _planted(image: ImageArray, first: int, random: np.random.Generator) -> ImageArray:
    """The first kind, from number `first` on, that shows."""
    largest = np.iinfo(image.dtype).max
    before = image.astype(np.float64) / largest
    for turn in range(len(_KINDS)):
        spoiled = np.clip(_KINDS[(first + turn) % len(_KINDS)](random, before), 0, 1)
        if np.abs(spoiled - before).max() > _SHOWS:
            break
    made: ImageArray = np.rint(spoiled * largest).astype(image.dtype)
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
    texture = _noise(random, image.shape, max(1, min(height, width) // 32))
    spoiled: _Image = image + shown[..., None] * (texture - image)
    return spoiled


def _texture(random: np.random.Generator, image: _Image) -> _Image:
    """Another texture where Perlin noise is high, in a box of a sixth to a half of each side.

    The texture is the image itself from elsewhere, mirrored, with other contrast, or noise. DRAEM
    takes photographs of textures; none come with this package.
    """
    height, width = image.shape[:2]
    (top, rows), (left, columns) = (_part(random, size, 1 / 6, 1 / 2) for size in (height, width))
    y, x = (np.linspace(-1, 1, size + 2)[1:-1] for size in (rows, columns))
    # Towards the edges of the box the noise sinks, so that no form is cut by them.
    away = np.maximum(y[:, None] ** 2, x[None] ** 2)
    noise = perlin_noise(random, rows, columns, max(rows, columns) / random.uniform(2, 6)) - away
    mask = _largest_place(noise >= np.quantile(noise, random.uniform(0.5, 0.8)))
    if random.random() < 0.5:
        from_row, from_column = (int(random.integers(size)) for size in (height, width))
        elsewhere = image[
            np.ix_(
                (from_row - np.arange(rows)) % height, (from_column - np.arange(columns)) % width
            )
        ]
        texture = elsewhere.mean() + random.choice((-2, -1, 2)) * (elsewhere - elsewhere.mean())
    else:
        grain = max(1, min(height, width) // 150)
        texture = _noise(random, (rows, columns, image.shape[2]), grain)
    spoiled: _Image = image.copy()
    box = spoiled[top : top + rows, left : left + columns]
    box[mask] += random.uniform(0.4, 1) * (texture[mask] - box[mask])
    return spoiled


def _blur(random: np.random.Generator, image: _Image) -> _Image:
    """A place out of focus, an ellipse of a fifth to two fifths of each side."""
    height, width = image.shape[:2]
    (top, rows), (left, columns) = (_part(random, size, 1 / 5, 2 / 5) for size in (height, width))
    sigma = max(1.0, random.uniform(0.01, 0.03) * min(height, width))
    spoiled: _Image = image.copy()
    box = spoiled[top : top + rows, left : left + columns]
    y, x = (np.linspace(-1, 1, size + 2)[1:-1] for size in (rows, columns))
    shown = np.clip(4 * (1 - y[:, None] ** 2 - x[None] ** 2), 0, 1)
    # The box is mirrored at its edges, where nothing of it is shown.
    blurred = ndimage.gaussian_filter(box, sigma, axes=(0, 1), truncate=3)
    box += shown[..., None] * (blurred - box)
    return spoiled


def _bright_spot(random: np.random.Generator, image: _Image) -> _Image:
    """A glint, or a hole that light shines through."""
    return _spot(random, image, 1.0)


def _dark_spot(random: np.random.Generator, image: _Image) -> _Image:
    """Dust, or a hole that takes light away."""
    return _spot(random, image, 0.0)


def _spot(random: np.random.Generator, image: _Image, level: float) -> _Image:
    """An ellipse of 6 to 20% of the smaller side, where the image is not of such a level."""
    height, width = image.shape[:2]
    places = np.flatnonzero(np.abs(image.mean(axis=2) - level) > 0.3)
    if not places.size:
        return image
    row, column = divmod(int(random.choice(places)), width)
    radius = max(1.0, random.uniform(0.03, 0.1) * min(height, width))
    aspect = np.exp(random.uniform(-0.5, 0.5))
    y, x = _axes(image)
    away = ((y - row) / (radius * aspect)) ** 2 + ((x - column) / (radius / aspect)) ** 2
    shown = random.uniform(0.6, 1) * np.exp(-(away**2))
    spoiled: _Image = image + shown[..., None] * (level - image)
    return spoiled


def _part(random: np.random.Generator, size: int, least: float, most: float) -> tuple[int, int]:
    """Where a part of a side begins, and its length: between two shares of it, at least 1."""
    length = max(1, round(size * random.uniform(least, most)))
    return int(random.integers(0, size - length, endpoint=True)), length


def _largest_place(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of several separate places, the largest."""
    places, _ = ndimage.label(mask)
    found: NDArray[np.bool_] = places == np.bincount(places.ravel())[1:].argmax() + 1
    return found


def _noise(random: np.random.Generator, shape: tuple[int, ...], grain: int) -> _Image:
    """Squares of random values, so many pixels wide."""
    height, width, channels = shape
    coarse = random.random((-(-height // grain), -(-width // grain), channels))
    return coarse.repeat(grain, 0).repeat(grain, 1)[:height, :width]


def _opposite(values: _Image) -> float:
    """White to what is dark, black to what is light."""
    return 1.0 if values.size and values.mean() < 0.5 else 0.0


def _axes(image: _Image) -> tuple[_Image, _Image]:
    height, width = image.shape[:2]
    return np.arange(height, dtype=np.float64)[:, None], np.arange(width, dtype=np.float64)[None]


_KINDS: Final[tuple[_Kind, ...]] = (
    _moved_piece,
    _scratch,
    _stain,
    _texture,
    _blur,
    _bright_spot,
    _dark_spot,
)
