"""Curves over all distinct thresholds, exact areas under them, and the best F1 score."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vadexport.verification.statistics import Float64Array, best_f1_threshold


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Curve:
    """A line of straight segments from (0, 0) to (1, 1) that never goes back or down.

    Attributes:
        x: false positive rate, float64 `[n]`, ascending.
        y: float64 `[n]`, ascending.
    """

    x: Float64Array
    y: Float64Array

    @classmethod
    def over_thresholds(
        cls, normal: NDArray[Any], anomalous: NDArray[Any], weights: Float64Array | None = None
    ) -> Self:
        """Share of `anomalous` against share of `normal` above a threshold that falls over both.

        Every distinct score is a threshold, and scores that are the same cross it together, so
        that ties are a slanted segment. Between two anomalous scores the curve is level: only the
        ends of what is level are kept, which loses nothing, whatever the number of normal scores.

        Args:
            normal: scores `[n]`, n > 0, finite, sorted in ascending order.
            anomalous: scores `[m]`, m > 0, finite, in any order and of the same dtype.
            weights: what each anomalous score counts, `[m]`, positive; default all the same.
        """
        order = np.argsort(anomalous)[::-1]
        ranked = anomalous[order]
        counted = np.ones(len(order)) if weights is None else weights[order]
        last_of_ties = np.append(ranked[:-1] != ranked[1:], True)
        reached = np.cumsum(counted)[last_of_ties]
        thresholds = ranked[last_of_ties]
        x = np.zeros(2 * len(thresholds) + 2)
        x[1:-1:2] = len(normal) - np.searchsorted(normal, thresholds, side="right")
        x[2:-1:2] = len(normal) - np.searchsorted(normal, thresholds, side="left")
        x[-1] = len(normal)
        y = np.zeros_like(x)
        y[2:-1:2] = reached
        y[3:-1:2] = reached[:-1]
        y[-1] = reached[-1]
        return cls(x / x[-1], y / y[-1])

    def area(self, limit: float = 1.0) -> float:
        """Area under the curve from 0 to `limit` by the trapezoid rule, divided by `limit`.

        Where no vertex lies at the limit, the curve is cut there by linear interpolation.

        Args:
            limit: in (0, 1].
        """
        kept = int(np.searchsorted(self.x, limit, side="right"))
        x, y = self.x[:kept], self.y[:kept]
        if kept < len(self.x):
            share = (limit - x[-1]) / (self.x[kept] - x[-1])
            x, y = np.append(x, limit), np.append(y, y[-1] + share * (self.y[kept] - y[-1]))
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2 / limit)

    def thinned(self, steps: int = 1000) -> Self:
        """The curve for a picture: nowhere further away than one step, four points a step at most.

        Args:
            steps: that each axis is cut into.
        """
        places = np.floor(np.stack([self.x, self.y]) * steps)
        moved = (places[:, 1:] != places[:, :-1]).any(axis=0)
        kept = np.append(moved, True) | np.append(True, moved)
        return type(self)(self.x[kept], self.y[kept])


@dataclass(frozen=True)
class BestF1:
    """The largest F1 score that a threshold reaches.

    Attributes:
        value: harmonic mean of precision and recall.
        threshold: that reaches it, raw score units; scores above it are called anomalous.
        precision: there.
        recall: there.
    """

    value: float
    threshold: float
    precision: float
    recall: float

    @classmethod
    def of(cls, scores: Float64Array, anomalous: NDArray[np.bool_]) -> Self:
        """Try every threshold; both classes must be present."""
        threshold = best_f1_threshold(scores, anomalous)
        above = scores > threshold
        found = int((above & anomalous).sum())
        called, there = int(above.sum()), int(anomalous.sum())
        return cls(2 * found / (called + there), threshold, found / called, found / there)


def precision_recall(
    scores: Float64Array, anomalous: NDArray[np.bool_]
) -> tuple[Float64Array, Float64Array]:
    """Precision and recall at every distinct threshold, the highest first.

    Args:
        scores: `[n]`, finite.
        anomalous: `[n]`, at least one true.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_ties = np.append(ranked[:-1] != ranked[1:], True)
    found = np.cumsum(anomalous[order])[last_of_ties].astype(np.float64)
    called = np.flatnonzero(last_of_ties) + 1
    return found / called, found / found[-1]
