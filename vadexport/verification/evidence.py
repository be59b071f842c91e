"""How much a verification's figures prove: intervals, bounds, and agreement of ranks and masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vadexport.verification.losses import Compared, compare_auroc, compare_f1_max
from vadexport.verification.records import ImageRecord
from vadexport.verification.statistics import Interval, kendall, proportion_interval

_QUANTILES: Final = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Evidence:
    """What figures of so many images say of images that were not seen.

    Attributes:
        drift_quantiles: drift in drift units, by quantile in percent.
        kendall: Kendall's tau-b of raw scores; None where one side is constant.
        flips: fraction of decisions that differ, with its 95% Clopper-Pearson interval; None where
            the detector makes none.
        auroc: image AUROC of both; None without labels of both kinds.
        f1_max: largest F1 score that any threshold gives, of both; likewise.
        aupro: area under the per-region overlap up to a false positive rate of 0.3, of both; None
            without masks.
        mask_iou: mean intersection over union of the two masks, of images where either is not
            empty; None where there is none.
        map_spearman: mean rank correlation of the pixels of the two maps; None without maps.
    """

    drift_quantiles: dict[str, float]
    kendall: float | None
    flips: Interval | None
    auroc: Compared | None
    f1_max: Compared | None
    aupro: Compared | None
    mask_iou: float | None
    map_spearman: float | None


@dataclass(frozen=True)
class PlantedEvidence:
    """How an artifact takes defects that were planted into images.

    Attributes:
        images: that got one.
        auroc: how well both tell them from the same images without.
        drift_max: largest drift on images with a defect, in drift units.
        flips: of their decisions; None where the detector makes none.
        not_finite: images with and without that have no finite scores.
        ties: of the flips, those whose scores the threshold parts only by float32's rounding.
    """

    images: int
    auroc: Compared
    drift_max: float
    flips: int | None
    not_finite: int
    ties: int = 0


def weigh_planted(records: Sequence[ImageRecord], drift_unit: float) -> PlantedEvidence | None:
    """Sum up images without a defect, labelled normal, and with one, labelled anomalous.

    None where no image of either kind has finite scores.
    """
    kept = [record for record in records if record.finite]
    truth = np.array([record.anomalous is True for record in kept])
    reference = np.array([record.reference_raw for record in kept])
    raw = np.array([record.raw for record in kept])
    found = compare_auroc(reference, raw, truth)
    if found is None:
        return None
    planted = [record for record in kept if record.anomalous]
    decided = any(record.reference_label is not None for record in planted)
    return PlantedEvidence(
        images=sum(record.anomalous is True for record in records),
        auroc=found,
        drift_max=float((np.abs(raw - reference)[truth] / drift_unit).max()),
        flips=sum(record.flipped for record in planted) if decided else None,
        not_finite=len(records) - len(kept),
        ties=sum(record.tied(drift_unit) for record in planted),
    )


def weigh(
    records: Sequence[ImageRecord], drift_unit: float, aupro: Compared | None = None
) -> Evidence:
    """Sum up the records of one artifact; images that are not finite are left out of all but flips.

    At least one image must be finite, and the drift unit positive: `figures` sees to both.

    Args:
        records: of the images.
        drift_unit: in raw score units.
        aupro: of their maps, where there are masks.
    """
    kept = [record for record in records if record.finite]
    reference = np.array([record.reference_raw for record in kept])
    raw = np.array([record.raw for record in kept])
    drift = np.abs(raw - reference) / drift_unit
    labelled = np.array([record.anomalous is not None for record in kept])
    truth = np.array([bool(record.anomalous) for record in kept])[labelled]
    decided = any(record.reference_label is not None for record in records)
    flipped = sum(record.flipped for record in records)
    return Evidence(
        drift_quantiles={f"{100 * q:g}": float(np.quantile(drift, q)) for q in _QUANTILES},
        kendall=kendall(reference, raw),
        flips=proportion_interval(flipped, len(records)) if decided else None,
        auroc=compare_auroc(reference[labelled], raw[labelled], truth),
        f1_max=compare_f1_max(reference[labelled], raw[labelled], truth),
        aupro=aupro,
        mask_iou=_mean([record.mask_iou for record in kept]),
        map_spearman=_mean([record.map_spearman for record in kept]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
