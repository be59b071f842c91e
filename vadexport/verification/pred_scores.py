"""`pred_score` where no thresholds say how it follows from the raw score."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from vadexport.verification.records import ImageRecord
from vadexport.verification.statistics import Float64Array

#: A few units in the last place of float32 at 1.
_ROUNDING: Final = 1e-6
#: Raw scores that are nearer, in drift units, show no slope that rounding has not bent.
_APART: Final = 0.01
_ALLOWANCE: Final = 1.01


def stray_scores(records: Sequence[ImageRecord], unit: float) -> int:
    """How many `pred_score` moved further from the reference's than the raw score explains.

    How far a raw score moves `pred_score` is read off the reference's own: it is the raw score, or
    that normalised and clamped, which no slope between two images is steeper than.

    Args:
        records: of images whose scores are all finite.
        unit: of drift.
    """
    known = [
        (record.reference_raw, record.raw, record.reference_score, record.score)
        for record in records
        if record.reference_score is not None and record.score is not None
    ]
    if not known:
        return 0
    before, after, wanted, given = np.array(known, np.float64).T
    slope = _slope(before, wanted, unit)
    rounding = _ROUNDING * np.maximum(np.maximum(1.0, np.abs(wanted)), slope * np.abs(before))
    explained = _ALLOWANCE * slope * np.abs(after - before)
    return int(np.count_nonzero(~(np.abs(given - wanted) <= explained + rounding)))


def _slope(raw: Float64Array, scores: Float64Array, unit: float) -> float:
    """The steepest between neighbours, and at least that of a range of one drift unit.

    Detectors normalise by the range of normal scores, which is wider than their middle half; where
    scores are clamped, few neighbours may show how steep it is.
    """
    if np.array_equal(raw, scores):
        return 1.0
    order = np.argsort(raw)
    rises, gaps = np.diff(scores[order]), np.diff(raw[order])
    apart = gaps > _APART * unit
    steepest = float((rises[apart] / gaps[apart]).max(initial=0.0))
    return max(steepest, 1 / unit)
