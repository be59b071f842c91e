"""Gradient noise (Perlin 1985): smooth, without direction, features of one size."""

import numpy as np
from numpy.typing import NDArray


def perlin_noise(
    random: np.random.Generator, height: int, width: int, cell: float
) -> NDArray[np.float64]:
    """Two-dimensional Perlin noise, one octave.

    At the corners of a lattice stand random unit vectors. Each gives the points around it the
    product of itself with their distance; a point takes those of its four corners, faded by
    `6t⁵ − 15t⁴ + 10t³` (Perlin 2002).

    Args:
        random: draws the directions.
        height: in pixels.
        width: in pixels.
        cell: side of the lattice's cells, in pixels.

    Returns:
        `[height, width]`, within ±√½, zero at the corners of the lattice.
    """
    y, x = np.arange(height) / cell, np.arange(width) / cell
    rows, columns = y.astype(np.intp), x.astype(np.intp)
    angle = random.uniform(0, 2 * np.pi, (rows[-1] + 2, columns[-1] + 2))
    down, right = np.sin(angle), np.cos(angle)
    y, x = (y - rows)[:, None], (x - columns)[None]

    def corner(row: int, column: int) -> NDArray[np.float64]:
        at = np.ix_(rows + row, columns + column)
        found: NDArray[np.float64] = down[at] * (y - row) + right[at] * (x - column)
        return found

    above = corner(0, 0) + _fade(x) * (corner(0, 1) - corner(0, 0))
    below = corner(1, 0) + _fade(x) * (corner(1, 1) - corner(1, 0))
    return above + _fade(y) * (below - above)


def _fade(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return t**3 * (t * (6 * t - 15) + 10)
