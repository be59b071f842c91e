"""Weights in INT8 by what they do to a layer's output on images, not one by one to the nearest.

A filter that looks for edges sums to nothing, so that the even part of an image does not pass. To
round each of its weights to the nearest of 255 steps breaks that sum, and evenly bright surfaces
leak into every later layer; here that leak is most of what INT8 weights cost. So weights are
rounded together: after each one, those that are left make up for its error, as far as the layer's
inputs on normal images are alike (GPTQ, Frantar et al., ICLR 2023), and then single steps up or
down are taken while they help. What the errors shift on average goes into the bias.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Integers of weights lie between this and its negative.
LARGEST: Final = 127
#: Part of each column's own variance that is added to it: keeps what images hardly show in bounds.
_RIDGE: Final = 1e-3
#: Part of the squared mean that counts beside the variance: the mean differs between images.
_MEAN_SHARE: Final = 0.02
#: Steps that a weight may move beyond its two neighbours.
_ROAM: Final = 1
_MOST_SWEEPS: Final = 10
#: Columns whose errors are taken to the columns behind them together.
_BLOCK: Final = 64
#: Columns up to which single steps are tried: each costs a pass over all others.
_MOST_STEPPED: Final = 576


def nearest(weights: Array, scales: Array, largest: int = LARGEST) -> Array:
    """Integers from −largest to largest, of weights `[G, O, D]` and scales `[G, O]`."""
    return np.clip(np.rint(weights / scales[..., None]), -largest, largest)


def importance(mean: Array, covariance: Array) -> Array:
    """How much errors of weights matter, float64 [G, D, D], positive definite.

    Args:
        mean: of the columns that the weights are multiplied with, [G, D].
        covariance: about it, [G, D, D].
    """
    matrix = covariance + _MEAN_SHARE * mean[:, :, None] * mean[:, None, :]
    own = np.einsum("gdd->gd", matrix)
    floor = 1e-6 * own.max(axis=1, keepdims=True)
    own = np.maximum(own, np.where(floor > 0, floor, 1.0))  # a channel that is always 0
    found: Array = matrix + _RIDGE * own[:, :, None] * np.eye(own.shape[1])
    return found


def rounded(weights: Array, scales: Array, matrix: Array, largest: int = LARGEST) -> Array:
    """Integers whose errors, weighed by `matrix`, are small; never worse than `nearest`.

    Args:
        weights: float64 [G, O, D].
        scales: of a step, float64 [G, O], positive.
        matrix: of `importance`, [G, D, D].
        largest: magnitude of an integer.

    Returns:
        Whole numbers, float64 [G, O, D].
    """
    bounds = _near(weights, scales, largest)
    made = _with_feedback(weights, scales, matrix, bounds)
    if weights.shape[2] <= _MOST_STEPPED:
        made = _stepped(weights, scales, matrix, made, bounds)
    simple = nearest(weights, scales, largest)
    worse = cost(weights, scales, matrix, made) > cost(weights, scales, matrix, simple)
    return np.where(worse[..., None], simple, made)


def cost(weights: Array, scales: Array, matrix: Array, integers: Array) -> Array:
    """Mean squared error of each output channel, [G, O]."""
    error = integers * scales[..., None] - weights
    found: Array = np.einsum("god,god->go", error @ matrix, error)
    return found


def _near(weights: Array, scales: Array, largest: int) -> tuple[Array, Array]:
    """Smallest and largest integer that a weight may become.

    Columns that normal images hardly show could make up for all others' errors at no cost, and what
    a defect excites would then be wrong.
    """
    exact = weights / scales[..., None]
    low = np.clip(np.floor(exact) - _ROAM, -largest, largest)
    return low, np.clip(np.ceil(exact) + _ROAM, -largest, largest)


def _with_feedback(
    weights: Array, scales: Array, matrix: Array, bounds: tuple[Array, Array]
) -> Array:
    """One column after the other; the columns to come make up for its error.

    Those of its own block do at once, those behind it when the block is done: in one product, not
    in a pass over all of them for each column.
    """
    upper = _upper(matrix)
    left = weights.copy()
    made = np.empty_like(weights)
    low, high = bounds
    columns = weights.shape[2]
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = np.empty((*weights.shape[:2], end - start))
        for column in range(start, end):
            made[..., column] = np.clip(
                np.rint(left[..., column] / scales), low[..., column], high[..., column]
            )
            error = left[..., column] - made[..., column] * scales
            error /= upper[:, column, column, None]
            left[..., column:end] -= error[..., None] * upper[:, None, column, column:end]
            errors[..., column - start] = error
        left[..., end:] -= errors @ upper[:, start:end, end:]
    return made


def _upper(matrix: Array) -> Array:
    """`U` of the inverse `UᵀU` of each of `[G, D, D]`, upper triangular.

    With rows and columns in reverse, a matrix is `L·Lᵀ`; `L` in reverse again is the inverse of
    `U`. So nothing is inverted but a triangle.
    """
    from scipy.linalg import lapack

    spread = np.sqrt(np.einsum("gdd->gd", matrix))
    normalised = matrix / spread[:, :, None] / spread[:, None, :]
    lower = np.linalg.cholesky(normalised[:, ::-1, ::-1])
    upper = np.stack([lapack.dtrtri(each, lower=0)[0] for each in lower[:, ::-1, ::-1]])
    found: Array = upper / spread[:, None, :]
    return found


def _stepped(
    weights: Array,
    scales: Array,
    matrix: Array,
    integers: Array,
    bounds: tuple[Array, Array],
) -> Array:
    """Change one integer at a time for as long as that lowers the error."""
    made = integers.copy()
    low, high = bounds
    slope = (made * scales[..., None] - weights) @ matrix
    own = np.einsum("gdd->gd", matrix)
    for _ in range(_MOST_SWEEPS):
        changed = False
        for column in range(made.shape[2]):
            curve = own[:, column, None]
            step = np.rint(-slope[..., column] / (curve * scales))
            step = np.clip(made[..., column] + step, low[..., column], high[..., column])
            step -= made[..., column]
            move = step * scales
            helps = 2 * move * slope[..., column] + move * move * curve < -1e-12 * curve * scales**2
            move = np.where(helps, move, 0.0)
            if helps.any():
                changed = True
                made[..., column] += np.where(helps, step, 0.0)
                slope += move[..., None] * matrix[:, None, column, :]
        if not changed:
            break
    return made
