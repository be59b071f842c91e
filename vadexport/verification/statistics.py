"""Rank statistics in float64, and intervals."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

#: Values that are drawn in one go: many rounds must not fill the memory.
_DRAWN_AT_ONCE: Final = 1_000_000


@dataclass(frozen=True)
class Interval:
    """A figure and its 95% confidence interval."""

    value: float
    low: float
    high: float


def auroc(scores: Float64Array, anomalous: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve by the rank-sum statistic, ties counted half.

    Ranks are exact; no sigmoid, no thresholds. None unless both classes are present.
    """
    positives = int(anomalous.sum())
    negatives = len(scores) - positives
    if positives == 0 or negatives == 0:
        return None
    ranks = average_ranks(scores.astype(np.float64))
    rank_sum = float(ranks[anomalous].sum()) - positives * (positives + 1) / 2
    return rank_sum / (positives * negatives)


def spearman(first: Float64Array, second: Float64Array) -> float | None:
    """Spearman's rank correlation, ties by average rank; None where one side is constant."""
    if len(first) < 2:
        return None
    a, b = average_ranks(first), average_ranks(second)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else None


def kendall(first: Float64Array, second: Float64Array) -> float | None:
    """Kendall's tau-b (Kendall 1945); None where one side is constant or there is no pair."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    x, y = (np.unique(values, return_inverse=True)[1] for values in (first, second))
    pairs = len(x) * (len(x) - 1) // 2
    tied_x, tied_y, tied_both = (_tied_pairs(values) for values in (x, y, x * (y.max() + 1) + y))
    discordant = _inversions(y[np.lexsort((y, x))])
    surplus = pairs - tied_x - tied_y + tied_both - 2 * discordant
    return surplus / (math.sqrt(pairs - tied_x) * math.sqrt(pairs - tied_y))


def average_ranks(values: Float64Array) -> Float64Array:
    """Rank of each value from 1 on, the mean of their ranks for those that are the same.

    As `scipy.stats.rankdata`, whose import takes longer than all that `verify` computes with it.
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Float64Array = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def _tied_pairs(values: NDArray[np.int64]) -> int:
    _, counts = np.unique(values, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


def _inversions(values: NDArray[np.int64]) -> int:
    """Pairs whose earlier value is the larger one; from the highest bit of the values down."""
    total = 0
    for bit in reversed(range(int(values.max()).bit_length())):
        ones = (values >> bit) & 1
        before = np.cumsum(ones) - ones
        heads = values >> (bit + 1)  # ascending: what differs in a higher bit was counted there
        starts = np.searchsorted(heads, heads)
        total += int((before - before[starts])[ones == 0].sum())
        values = values[np.argsort(values >> bit, kind="stable")]
    return total


def proportion_interval(count: int, total: int) -> Interval:
    """A proportion with its exact two-sided 95% interval (Clopper & Pearson 1934).

    Exact means that it covers the true proportion in at least 95% of all samples: none of 60 says
    no more than "at most 6%".

    Args:
        count: how many have the property.
        total: of how many; of none it may be anything from 0 to 1.
    """
    from scipy.special import betaincinv

    low = betaincinv(count, total - count + 1, 0.025) if count else 0.0
    high = betaincinv(count + 1, total - count, 0.975) if count < total else 1.0
    return Interval(count / total if total else 0.0, float(low), float(high))


def interquartile_range(values: Float64Array) -> float:
    """Difference of the 0.75 and the 0.25 quantile, linear interpolation."""
    low, high = np.quantile(values.astype(np.float64), [0.25, 0.75])
    return float(high - low)


def best_f1_threshold(scores: Float64Array, anomalous: NDArray[np.bool_]) -> float:
    """Threshold of the largest F1 score, half way between two scores; above it is anomalous.

    Among equals the highest. Both classes must be present.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], anomalous[order]
    found = np.cumsum(truth)
    f1 = 2 * found / (np.arange(1, len(truth) + 1) + truth.sum())
    last_of_ties = np.append(ranked[:-1] != ranked[1:], True)
    best = int(np.argmax(np.where(last_of_ties, f1, -1)))
    above = float(ranked[best])
    below = float(ranked[best + 1]) if best + 1 < len(ranked) else above - (abs(above) or 1.0)
    middle = (above + below) / 2
    return middle if middle < above else below  # of neighbouring floats it may be the upper one


def median_interval(values: Float64Array, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Median with an expanded percentile bootstrap interval (Hesterberg 2015, section 5.3).

    The plain percentile interval (Efron 1979) of few values is too narrow: of 10 to 15 it covers
    the median in 92 to 93% of all samples. The expanded one takes quantiles further out, by as much
    as Student's t lies beyond the normal distribution.
    """
    from scipy.special import ndtr, stdtrit

    count = len(values)
    middle = float(np.median(values))
    if count < 2:
        return Interval(middle, middle, middle)
    tail = ndtr((count / (count - 1)) ** 0.5 * stdtrit(count - 1, 0.025))
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // count)
    medians = [
        np.median(rng.choice(values, size=(min(at_once, resamples - done), count)), axis=1)
        for done in range(0, resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(medians), [tail, 1 - tail])
    return Interval(middle, float(low), float(high))


def certain_quantile(values: Float64Array, quantile: float) -> float | None:
    """A quantile, linear interpolation; None where there are too few values to know of it.

    They are enough if the largest lies above the true quantile with 95% certainty, which is
    1 - quantile^n: for 0.9 from 29 values on, for 0.99 from 299.
    """
    if len(values) < values_needed(quantile):
        return None
    return float(np.quantile(values, quantile))


def values_needed(quantile: float) -> int:
    """Number of values from which on `certain_quantile` gives one; `quantile` in (0, 1)."""
    return math.ceil(math.log(0.05) / math.log(quantile))
