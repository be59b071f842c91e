"""What is likely to have changed the tensor after preprocessing, by how it differs."""

from itertools import permutations
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

#: What fitting leaves, of the largest value, where a pattern fits.
_FITS: Final = 1e-3
#: Pixels that are averaged along each side, to leave no detail.
_BLOCK: Final = 8
#: Root mean square of what averages differ by, of what pixels do: noise without any leaves 1/8.
_ONLY_DETAIL: Final = 0.3
#: More channels are no colours: a camera has up to four.
_MOST_CHANNELS: Final = 4


class _Fit(NamedTuple):
    """Channels as `scale · x + shift` of others, and the largest value that this leaves."""

    scale: Float64
    shift: Float64
    rest: float


def likely_cause(expected: NDArray[np.generic], found: NDArray[np.generic]) -> str | None:
    """Name the known pattern that a difference of two tensors after preprocessing fits.

    Args:
        expected: the reference's, float32 [N, C, h, w].
        found: the graph's, which is not the same.

    Returns:
        Words for a reader; None where no pattern fits.
    """
    if expected.shape != found.shape:
        return f"another size, {_size(found)} where the reference has {_size(expected)}"
    if expected.ndim != 4 or not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return None
    before, after = expected.astype(np.float64), found.astype(np.float64)
    largest = float(np.abs(after).max()) or 1.0
    channels = before.shape[1]
    fit = _fit(before, after)
    if fit.rest <= _FITS * largest:
        return (
            f"another normalisation (left out, done twice, mean and deviation exchanged): channels "
            f"scaled by {_numbers(fit.scale)} and shifted by {_numbers(fit.shift)}"
        )
    for order in permutations(range(channels)) if channels <= _MOST_CHANNELS else ():
        if _fit(before[:, order], after).rest <= _FITS * largest:
            places = ", ".join(map(str, order))
            return f"channels in another order ({places}), such as BGR in place of RGB"
    if _differs_in_detail(before, after):
        return "only fine detail differs: another resize (no antialiasing, other interpolation)"
    return None


def _fit(before: Float64, after: Float64) -> _Fit:
    """Each channel of `after` by the same of `before`, least squares."""
    axes = (0, 2, 3)
    means = before.mean(axes, keepdims=True), after.mean(axes, keepdims=True)
    one, other = before - means[0], after - means[1]
    spread = np.square(one).sum(axes, keepdims=True)
    product = (one * other).sum(axes, keepdims=True)
    scale = np.divide(product, spread, out=np.ones_like(spread), where=spread > 0)
    shift = means[1] - scale * means[0]
    rest = float(np.abs(after - scale * before - shift).max())
    return _Fit(scale.ravel(), shift.ravel(), rest)


def _differs_in_detail(before: Float64, after: Float64) -> bool:
    """Whether averages over blocks of pixels differ far less than pixels do."""
    difference = after - before
    count, channels, height, width = difference.shape
    down, along = height // _BLOCK, width // _BLOCK
    if min(down, along) < 2:
        return False
    cut = difference[:, :, : down * _BLOCK, : along * _BLOCK]
    blocks = cut.reshape(count, channels, down, _BLOCK, along, _BLOCK).mean((3, 5))
    return bool(np.square(blocks).mean() <= _ONLY_DETAIL**2 * np.square(cut).mean())


def _size(tensor: NDArray[np.generic]) -> str:
    return "x".join(map(str, tensor.shape[1:]))


def _numbers(values: Float64) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
