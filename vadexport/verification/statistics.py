"""Rank statistics in float64, and intervals."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


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
    from scipy.stats import rankdata

    positives = int(anomalous.sum())
    negatives = len(scores) - positives
    if positives == 0 or negatives == 0:
        return None
    ranks = rankdata(scores.astype(np.float64))
    rank_sum = float(ranks[anomalous].sum()) - positives * (positives + 1) / 2
    return rank_sum / (positives * negatives)


def spearman(first: Float64Array, second: Float64Array) -> float | None:
    """Spearman's rank correlation, ties by average rank; None where one side is constant."""
    from scipy.stats import rankdata

    if len(first) < 2:
        return None
    a, b = rankdata(first), rankdata(second)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else None


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
    """Median with a percentile bootstrap interval (Efron 1979)."""
    rng = np.random.default_rng(seed)
    medians = np.array([np.median(rng.choice(values, size=len(values))) for _ in range(resamples)])
    low, high = np.quantile(medians, [0.025, 0.975])
    return Interval(float(np.median(values)), float(low), float(high))
