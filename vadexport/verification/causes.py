"""What is likely to have changed a tensor, by how it differs."""

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
#: Values of a channel from which on its factor and its constant say something.
_FEWEST_OF_A_CHANNEL: Final = 8
_LARGEST_HALF: Final = 65504.0
#: What a pattern leaves of a difference, root mean square, where it explains it.
_EXPLAINED: Final = 0.2
#: What a pattern leaves of the difference of two maps, where it fits.
_MAP_FITS: Final = 0.1
#: Pixels that a map may have been shifted by: more would cost seconds to find.
_MOST_SHIFT: Final = 8


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


def layer_cause(expected: NDArray[np.generic], found: NDArray[np.generic]) -> str | None:
    """Name the known pattern that the difference of two outputs of a layer fits.

    Args:
        expected: of the earlier step, float32; of a layer `[N, C, ...]`.
        found: of the later one, fed the same.

    Returns:
        Words for a reader; None where no pattern fits.
    """
    if expected.shape != found.shape:
        fewer = found.size < expected.size
        words = f"{_shape(found)} where it was {_shape(expected)}"
        return f"{words}: rows of a memory bank or channels that were dropped" if fewer else words
    before, after = expected.astype(np.float64), found.astype(np.float64)
    if not np.isfinite(before).all():
        return None
    broken = ~np.isfinite(after)
    if broken.any():
        words = f"{int(broken.sum())} of {found.size} values are not finite"
        beyond = np.abs(before[broken]).min() > _LARGEST_HALF
        return f"{words}: " + (
            "float16 ends at 65504" if beyond else "a weight or a scale is damaged"
        )
    of_a_channel = before.size // before.shape[1] if before.ndim > 1 else 0
    return _channel_cause(before, after) if of_a_channel >= _FEWEST_OF_A_CHANNEL else None


def _channel_cause(before: Float64, after: Float64) -> str | None:
    """Whether all channels `[N, C, ...]` differ by a constant, by a factor, or by both."""
    axes = (0, *range(2, before.ndim))
    least = _EXPLAINED * float(np.sqrt(np.square(after - before).mean()))

    def fits(scale: Float64, shift: Float64) -> bool:
        shape = (1, -1, *[1] * (before.ndim - 2))
        rest = after - before * scale.reshape(shape) - shift.reshape(shape)
        return float(np.sqrt(np.square(rest).mean())) <= least

    shift = (after - before).mean(axes)
    if fits(np.ones_like(shift), shift):
        return f"another bias, or none: channels shifted by {_range(shift)}"
    spread = np.square(before).sum(axes)
    product = (after * before).sum(axes)
    scale = np.divide(product, spread, out=np.ones_like(spread), where=spread > 0)
    if fits(scale, np.zeros_like(scale)):
        return f"weights in another scale: channels scaled by {_range(scale)}"
    both = _fit(before, after)
    if not fits(both.scale, both.shift):
        return None
    words = f"channels scaled by {_range(both.scale)}, but for their bias"
    return f"weights in another scale: {words}"


def quantiser_cause(expected: NDArray[np.generic], found: NDArray[np.generic]) -> str | None:
    """Name what a pair of quantisers does to the tensor that it reads, where it clips.

    Args:
        expected: what it reads.
        found: what it gives.
    """
    if expected.shape != found.shape:
        return layer_cause(expected, found)
    before, after = expected.astype(np.float64), found.astype(np.float64)
    low, high = float(after.min()), float(after.max())
    clipped = ((before > high) & (after == high)) | ((before < low) & (after == low))
    share = float(np.mean(clipped)) if low < high else 0.0
    rest, whole = (
        np.sqrt(np.square(d).mean()) for d in ((after - before) * ~clipped, after - before)
    )
    if share and rest <= _EXPLAINED * whole:
        reached = f"{float(before.min()):.3g} to {float(before.max()):.3g}"
        return (
            f"its range ends too early: {share:.1%} of the values are clipped to {low:.3g} to "
            f"{high:.3g}, and reach {reached}"
        )
    return None


def map_cause(expected: NDArray[np.generic], found: NDArray[np.generic]) -> str | None:
    """Name the known pattern that the difference of two anomaly maps fits.

    Args:
        expected: the reference's, float32 [h, w].
        found: the artifact's.
    """
    if expected.shape != found.shape or not (np.isfinite(expected).all() and np.ptp(expected) > 0):
        return None
    if not np.isfinite(found).all():
        return None
    before, after = expected.astype(np.float64), found.astype(np.float64)
    limit = _MAP_FITS * float(np.abs(after - before).max())
    if not limit:
        return None
    ways = {
        "upside down": before[::-1],
        "mirrored": before[:, ::-1],
        "turned by half": before[::-1, ::-1],
        "transposed": before.T,
        "turned to the left": np.rot90(before),
        "turned to the right": np.rot90(before, -1),
    }
    for words, each in ways.items():
        if each.shape == after.shape and np.abs(each - after).max() <= limit:
            return f"the anomaly map is {words}"
    steps = range(-_MOST_SHIFT, _MOST_SHIFT + 1)
    for down in steps:
        for along in steps:
            one, other = _overlap(before, after, down, along)
            if one.size and (down or along) and np.abs(one - other).max() <= limit:
                return f"the anomaly map is shifted by {down:+d} rows and {along:+d} columns"
    return None


def _overlap(before: Float64, after: Float64, down: int, along: int) -> tuple[Float64, Float64]:
    """What of two maps lies on each other where the second was shifted."""
    height, width = before.shape
    old = before[max(-down, 0) : height - max(down, 0), max(-along, 0) : width - max(along, 0)]
    new = after[max(down, 0) : height - max(-down, 0), max(along, 0) : width - max(-along, 0)]
    return old, new


def _fit(before: Float64, after: Float64) -> _Fit:
    """Each channel of `after` by the same of `before`, least squares."""
    axes = (0, *range(2, before.ndim))
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


def _shape(tensor: NDArray[np.generic]) -> str:
    return "x".join(map(str, tensor.shape))


def _range(values: Float64) -> str:
    ends = dict.fromkeys(f"{value:.3g}" for value in (values.min(), values.max()))
    return " to ".join(ends)


def _numbers(values: Float64) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
