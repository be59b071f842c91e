"""Generated images: something to compare numbers on where no real images are given.

They resemble no product. They are varied, so that a resize without antialiasing, swapped
channels, a wrong scale or a saturated range shows in at least one of them.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vadexport.contract import ImageArray, ImageInput

_Shape = tuple[int, int, int]
_Kind = Callable[[np.random.Generator, _Shape], NDArray[np.float64]]


def generated_images(image_input: ImageInput, count: int, seed: int) -> ImageArray:
    """Make `count` images that fit `image_input`, `[count, H, W, C]` of its dtype.

    Kinds of content take turns: flat, gradient, checkerboard, smooth noise, white noise, blobs.
    The same seed gives the same bytes on every platform: only integers and the four operations
    that IEEE 754 fixes to the last bit are used. Image i depends on the seed and i alone, so
    fewer images are the first of more.

    Args:
        image_input: size, channels and dtype; its batch does not matter.
        count: how many, at least 0.
        seed: at least 0.
    """
    shape = (image_input.height, image_input.width, image_input.channels)
    images = np.empty((count, *shape), image_input.dtype)
    largest = np.iinfo(images.dtype).max
    for index in range(count):
        random = np.random.Generator(np.random.PCG64([seed, index]))
        values = _KINDS[index % len(_KINDS)](random, shape)
        images[index] = np.clip(np.rint(values * (largest // 255)), 0, largest)
    return images


def _flat(random: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    return np.broadcast_to(_levels(random, shape), shape)


def _gradient(random: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    y, x = _axes(shape)
    corner, down, right = (_levels(random, shape) for _ in range(3))
    return corner + (down - corner) * y / shape[0] + (right - corner) * x / shape[1]


def _checkerboard(random: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    """Squares of 1, 2, 4, … pixels: the small ones are what a resize handles worst."""
    y, x = _axes(shape)
    largest = max(1, min(shape[:2]) // 4)
    side = 2 ** int(random.integers(largest.bit_length()))
    even = (y // side + x // side) % 2 == 0
    return np.where(even, _levels(random, shape), _levels(random, shape))


def _smooth_noise(random: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    """Noise without fine detail: random values on a coarse grid, blended smoothly between."""
    cells = int(random.integers(2, 9))
    grid = random.integers(0, 256, (cells + 1, cells + 1, shape[2])).astype(np.float64)
    y, x = _axes(shape)
    row, down = _cell_and_blend(y * cells / shape[0])
    column, right = _cell_and_blend(x * cells / shape[1])
    upper = grid[row, column] * (1 - right) + grid[row, column + 1] * right
    lower = grid[row + 1, column] * (1 - right) + grid[row + 1, column + 1] * right
    return upper * (1 - down) + lower * down


def _cell_and_blend(
    position: NDArray[np.float64],
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The grid cell that a position `[H or 1, 1 or W, 1]` lies in, and how far, eased at its ends.

    Without the easing (3t² - 2t³) the grid would show as creases.
    """
    cell = position.astype(np.intp)
    inside = position - cell
    return cell[:, :, 0], inside * inside * (3 - 2 * inside)


def _white_noise(random: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    return random.integers(0, 256, shape).astype(np.float64)


def _blobs(random: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    """Round spots, brighter or darker than a flat ground, like the defects that detectors seek."""
    y, x = _axes(shape)
    values = np.array(np.broadcast_to(_levels(random, shape), shape))
    for _ in range(int(random.integers(1, 8))):
        row, column = random.integers(0, shape[0]), random.integers(0, shape[1])
        radius = 1 + int(random.integers(1 + max(shape[:2]) // 6))
        height = random.integers(-200, 201, shape[2]).astype(np.float64)
        distance = ((y - row) * (y - row) + (x - column) * (x - column)) / (radius * radius)
        falloff = np.maximum(1 - distance, 0)
        values += height * (falloff * falloff)
    return values


def _levels(random: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    """A level for each channel, drawn apart so that swapped channels show."""
    return random.integers(0, 256, shape[2]).astype(np.float64)


def _axes(shape: _Shape) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Row numbers `[H, 1, 1]` and column numbers `[1, W, 1]`."""
    y, x = np.arange(shape[0], dtype=np.float64), np.arange(shape[1], dtype=np.float64)
    return y[:, None, None], x[None, :, None]


_KINDS: Final[tuple[_Kind, ...]] = (
    _flat,
    _gradient,
    _checkerboard,
    _smooth_noise,
    _white_noise,
    _blobs,
)
