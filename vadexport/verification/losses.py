"""What a detector's figures lose from the reference to an artifact, and how certain that is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vadexport.verification.statistics import Float64Array, average_ranks

#: Images of each label whose place among the other label's must change for an interval: of fewer,
#: none of the usual intervals covers 95% (`tests/verification/test_losses.py`).
FEWEST_CHANGED: Final = 15
#: Images of each label for an interval whose error is a bootstrap's. Of fewer it is off
#: (`benchmarks/coverage.py`): for F1 too wide, as resamples have few distinct images; for maps too
#: narrow, as a few small defects make up most of the loss.
FEWEST_FOR_F1: Final = 200
FEWEST_WITH_MAPS: Final = 100
#: Numbers that a bootstrap holds at once.
_MOST_VALUES: Final = 2_000_000
_RESAMPLES: Final = 1000


@dataclass(frozen=True)
class Loss:
    """A figure of the reference minus the artifact's, on the same images.

    Attributes:
        value: of these images.
        low: lower end of the 95% interval; None where the images are too few for one.
        high: upper end, likewise.
        least: what is certainly lost: the true loss is smaller in at most 2.5% of all samples, also
            of few images. Minus infinity where one label has a single image: nothing is certain.
        enough: images of each label that would probably do for an interval; None where there is
            one, or no image changes its place.
    """

    value: float
    low: float | None
    high: float | None
    least: float
    enough: int | None = None


@dataclass(frozen=True)
class Compared:
    """A metric of the reference and of an artifact, on the same images.

    Attributes:
        reference: of the reference.
        artifact: of the artifact.
        loss: the first minus the second.
    """

    reference: float
    artifact: float
    loss: Loss


@dataclass(frozen=True)
class _Places:
    """How far each image moves among those of the other label.

    Attributes:
        anomalous: of each, the share of normal images that it lies above, under the reference less
            under the artifact (DeLong's placements).
        normal: of each, the share of anomalous images below which it lies, likewise.
    """

    anomalous: Float64Array
    normal: Float64Array

    def loss(self, value: float, error: float, freedom: float, fewest: int = 0) -> Loss:
        """With an interval by Student's t, of `fewest` images of each label, if enough moved."""
        from scipy.special import stdtrit

        kinds = (self.anomalous, self.normal)
        changed = [int(np.count_nonzero(kind)) for kind in kinds]
        reach = math.inf  # one image says nothing of how far another would move
        if min(map(len, kinds)) > 1:
            reach = float(stdtrit(max(freedom, 1.0), 0.975)) * error
        if min(changed) >= FEWEST_CHANGED and min(map(len, kinds)) >= fewest:
            return Loss(value, value - reach, value + reach, value - reach)
        enough = None
        if min(changed) > 0:
            shares = [len(kind) / count for kind, count in zip(kinds, changed, strict=True)]
            enough = max(math.ceil(FEWEST_CHANGED * max(shares)), fewest)
        return Loss(value, None, None, value - reach, enough)


def compare_auroc(
    reference: Float64Array, found: Float64Array, anomalous: NDArray[np.bool_]
) -> Compared | None:
    """Image AUROC of two scores of the same images. None unless both labels are present.

    The interval of the loss is DeLong's for two correlated ROC curves (DeLong, DeLong &
    Clarke-Pearson 1988), with Student's t in place of the normal distribution, its degrees of
    freedom by Welch and Satterthwaite.

    Args:
        reference: scores of the reference, `[n]`, finite.
        found: scores of what is compared with it.
        anomalous: labels.
    """
    if not 0 < anomalous.sum() < len(anomalous):
        return None
    before, after = (_placements(scores, anomalous) for scores in (reference, found))
    places = _moved(before, after, anomalous)
    variances = [_variance_of_mean(kind) for kind in (places.anomalous, places.normal)]
    error = math.sqrt(sum(variances))
    sizes = (len(places.anomalous), len(places.normal))
    parts = sum(one**2 / max(n - 1, 1) for one, n in zip(variances, sizes, strict=True))
    freedom = sum(variances) ** 2 / parts if parts > 0 else 1.0
    first, second = (float(each[anomalous].mean()) for each in (before, after))
    return Compared(first, second, places.loss(first - second, error, freedom))


def compare_f1_max(
    reference: Float64Array,
    found: Float64Array,
    anomalous: NDArray[np.bool_],
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Compared | None:
    """Largest F1 score of any threshold, of two scores of the same images.

    The interval's half width is Student's t times the bootstrap's standard error; its percentiles
    are off, as the best threshold of a resample fits that resample.

    Args:
        reference: scores of the reference, `[n]`, finite.
        found: scores of what is compared with it.
        anomalous: labels; None is returned unless both are present.
        resamples: number of draws.
        seed: of the draws.
    """
    if not 0 < anomalous.sum() < len(anomalous):
        return None
    parts = [
        [weighted_f1_max(scores, anomalous, weights) for scores in (reference, found)]
        for weights in _draws(anomalous, resamples, seed)
    ]
    before, after = np.concatenate(parts, axis=1)
    placed = [_placements(scores, anomalous) for scores in (reference, found)]
    places = _moved(placed[0], placed[1], anomalous)
    losses = before - after
    error = float(losses[1:].std())
    loss = places.loss(float(losses[0]), error, _freedom(anomalous), FEWEST_FOR_F1)
    return Compared(float(before[0]), float(after[0]), loss)


def bootstrap_loss(losses: Float64Array, anomalous: NDArray[np.bool_]) -> Loss:
    """Of maps, with an interval by the standard error of a bootstrap over images.

    Args:
        losses: of all images, then of each resample.
        anomalous: labels of the images.
    """
    everywhere = np.ones(len(anomalous))  # the map of each image has its own part in it
    places = _Places(everywhere[anomalous], everywhere[~anomalous])
    error = float(losses[1:].std())
    return places.loss(float(losses[0]), error, _freedom(anomalous), FEWEST_WITH_MAPS)


def drawn_images(
    rng: np.random.Generator, anomalous: NDArray[np.bool_], resamples: int
) -> Float64Array:
    """How often each image is in each of so many resamples, `[resamples, images]`.

    Images are drawn with replacement, normal and anomalous ones apart.
    """
    drawn = np.zeros((resamples, len(anomalous)))
    for kind in (anomalous, ~anomalous):
        count = int(kind.sum())
        if count:
            drawn[:, kind] = rng.multinomial(count, np.full(count, 1 / count), resamples)
    return drawn


def weighted_f1_max(
    scores: Float64Array, anomalous: NDArray[np.bool_], weights: Float64Array
) -> Float64Array:
    """Largest F1 score of any threshold, for each row of weights `[n, images]`."""
    positives, negatives = (part[:, ::-1] for part in _by_score(scores, anomalous, weights))
    found = np.cumsum(positives, axis=1)
    called = found + np.cumsum(negatives, axis=1)
    return np.asarray((2 * found / (called + found[:, -1:])).max(axis=1))


def _placements(scores: Float64Array, anomalous: NDArray[np.bool_]) -> Float64Array:
    """Share of the other label's images that each image is on the right side of, ties half."""
    others_below = average_ranks(scores)
    for kind in (anomalous, ~anomalous):
        others_below[kind] -= average_ranks(scores[kind])
    count = int(anomalous.sum())
    return np.where(anomalous, others_below / (len(anomalous) - count), 1 - others_below / count)


def _moved(before: Float64Array, after: Float64Array, anomalous: NDArray[np.bool_]) -> _Places:
    moved = before - after
    return _Places(moved[anomalous], moved[~anomalous])


def _variance_of_mean(values: Float64Array) -> float:
    """Of one value it is not known: 0, and `_Places.loss` makes nothing of it."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def _freedom(anomalous: NDArray[np.bool_]) -> float:
    """Degrees of freedom of a bootstrap: of the smaller label."""
    count = int(anomalous.sum())
    return min(count, len(anomalous) - count) - 1.0


def _draws(anomalous: NDArray[np.bool_], resamples: int, seed: int) -> Iterator[Float64Array]:
    """First all images once, then the resamples, in parts that fit into memory."""
    rng = np.random.default_rng(seed)
    yield np.ones((1, len(anomalous)))
    part = max(1, _MOST_VALUES // len(anomalous))
    for start in range(0, resamples, part):
        yield drawn_images(rng, anomalous, min(part, resamples - start))


def _by_score(
    scores: Float64Array, anomalous: NDArray[np.bool_], weights: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Weight of anomalous and of normal images at each distinct score, in ascending order."""
    _, places = np.unique(scores, return_inverse=True)
    order = np.argsort(places, kind="stable")
    starts = np.flatnonzero(np.diff(places[order], prepend=-1))
    ranked = weights[:, order]
    kinds = anomalous[order]
    positives, negatives = (
        np.add.reduceat(ranked * kind, starts, axis=1) for kind in (kinds, ~kinds)
    )
    return positives, negatives
