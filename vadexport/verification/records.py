"""What is kept of each image: scores and maps of a candidate beside the reference's."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vadexport import contract
from vadexport.contract import Outputs
from vadexport.thresholds import Thresholds
from vadexport.verification.statistics import spearman

_RANKED_PIXELS: Final = 4096
#: Drift, in drift units, that rounding in float32 may leave.
ROUNDING: Final = 1e-3


@dataclass(frozen=True)
class ImageRecord:
    """One image's scores under the reference and the candidate.

    Attributes:
        name: as listed.
        anomalous: the label; None where unknown.
        reference_raw: raw score of the reference.
        raw: raw score of the candidate.
        reference_label: decision of the reference; None where the detector makes none.
        label: decision of the candidate, likewise.
        map_max: largest absolute difference of the anomaly maps, in their units; None where the
            detector gives no map, as in the next two.
        map_mean: mean absolute difference of the anomaly maps.
        map_range: largest minus smallest value of the reference's map.
        consistent: whether the candidate's `pred_score`, `pred_label` and `pred_mask` follow from
            its own raw score and map by the reference's thresholds.
        mask_iou: intersection over union of the two masks; None where both are empty, or there is
            none.
        map_spearman: rank correlation of the pixels of the two maps, of at most 4,096 spread over
            them; None where one is constant, or there is none.
        reference_finite: whether the reference's scores and map are numbers.
        reference_score: `pred_score` of the reference; None where it gives none.
        score: `pred_score` of the candidate, likewise.
    """

    name: str
    anomalous: bool | None
    reference_raw: float
    raw: float
    reference_label: bool | None
    label: bool | None
    map_max: float | None
    map_mean: float | None
    map_range: float | None
    consistent: bool
    mask_iou: float | None = None
    map_spearman: float | None = None
    reference_finite: bool = True
    reference_score: float | None = None
    score: float | None = None

    @property
    def finite(self) -> bool:
        """Whether scores and maps of both are numbers."""
        others = (self.map_max, self.reference_score, self.score)
        values = [self.reference_raw, self.raw, *(other for other in others if other is not None)]
        return bool(np.isfinite(values).all())

    @property
    def not_finite_of(self) -> str:
        """Whose score or map is not a number, of an image that is not finite, for a reader."""
        return "artifact" if self.reference_finite else "reference"

    @property
    def flipped(self) -> bool:
        """Whether the decisions differ."""
        return self.label != self.reference_label

    def tied(self, unit: float) -> bool:
        """Whether the decisions differ because the threshold lies between scores that are the same.

        The same up to float32's rounding: a threshold may be the very score of an image. Where no
        score moved at all, or the label contradicts its own, it is no threshold's doing.

        Args:
            unit: of drift.
        """
        moved = (self.raw, self.score) != (self.reference_raw, self.reference_score)
        rounded = moved and abs(self.raw - self.reference_raw) <= ROUNDING * unit
        return self.flipped and self.finite and self.consistent and rounded

    def change(self, unit: float) -> tuple[bool, float]:
        """How much it changed, to sort by: not finite or flipped first, then by drift and by map.

        Args:
            unit: of drift.
        """
        if not self.finite:
            return True, float("inf")
        maps = (self.map_max or 0.0) / (self.map_range or 1.0)
        return self.flipped, max(abs(self.raw - self.reference_raw) / unit, maps)


def record_of(
    image: tuple[str, bool | None],
    expected: Outputs,
    found: Outputs,
    thresholds: Thresholds | None,
) -> ImageRecord:
    """What is kept of one image.

    Args:
        image: its name and label.
        expected: the reference's outputs for it.
        found: the candidate's.
        thresholds: the reference's; None where it makes no decisions.
    """
    name, anomalous = image
    map_max = map_mean = map_range = ranks = None
    if contract.ANOMALY_MAP in expected:
        reference_map = expected[contract.ANOMALY_MAP].astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinity on both sides; counted as not finite
            difference = np.abs(found[contract.ANOMALY_MAP] - reference_map)
            map_range = float(np.ptp(reference_map))
        map_max, map_mean = float(difference.max()), float(difference.mean())
        ranks = _map_spearman(reference_map, found[contract.ANOMALY_MAP])
    return ImageRecord(
        name=name,
        anomalous=anomalous,
        reference_raw=float(expected[contract.RAW_SCORE]),
        raw=float(found[contract.RAW_SCORE]),
        reference_label=_label(expected),
        label=_label(found),
        map_max=map_max,
        map_mean=map_mean,
        map_range=map_range,
        consistent=thresholds is None or not thresholds.contradicted_by(found),
        mask_iou=_mask_iou(expected, found),
        map_spearman=ranks,
        reference_finite=all(
            bool(np.isfinite(expected[each]).all())
            for each in (contract.RAW_SCORE, contract.PRED_SCORE, contract.ANOMALY_MAP)
            if each in expected
        ),
        reference_score=_score(expected),
        score=_score(found),
    )


def _map_spearman(reference: NDArray[np.float64], found: NDArray[Any]) -> float | None:
    """Of every n-th pixel, so that ranking large maps takes no time that anyone notices."""
    step = -(-reference.size // _RANKED_PIXELS)
    if not (np.isfinite(reference).all() and np.isfinite(found).all()):
        return None
    return spearman(reference.ravel()[::step], found.astype(np.float64).ravel()[::step])


def _mask_iou(expected: Outputs, found: Outputs) -> float | None:
    if contract.PRED_MASK not in expected:
        return None
    first, second = expected[contract.PRED_MASK] > 0, found[contract.PRED_MASK] > 0
    either = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / either if either else None


def _score(outputs: Outputs) -> float | None:
    return float(outputs[contract.PRED_SCORE]) if contract.PRED_SCORE in outputs else None


def _label(outputs: Outputs) -> bool | None:
    return bool(outputs[contract.PRED_LABEL]) if contract.PRED_LABEL in outputs else None
