"""Scores and maps of a candidate against the reference's, image by image."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vadexport import contract
from vadexport.contract import ImageArray, ImageInput, Outputs
from vadexport.errors import CheckError, InputError
from vadexport.thresholds import Thresholds
from vadexport.verification.statistics import auroc, spearman

#: Of `pred_score`, a few units in the last place of float32 at 1.
_ROUNDING = 1e-6

Infer = Callable[[ImageArray], Outputs]


@dataclass(frozen=True)
class ImageRecord:
    """One image's scores under the reference and the candidate.

    Attributes:
        name: as listed.
        anomalous: the label; None where unknown.
        reference_raw: raw score of the reference.
        raw: raw score of the candidate.
        reference_label: decision of the reference.
        label: decision of the candidate.
        map_max: largest absolute difference of the anomaly maps, raw score units.
        map_mean: mean absolute difference of the anomaly maps.
        map_range: largest minus smallest value of the reference's map.
        consistent: whether the candidate's `pred_score`, `pred_label` and `pred_mask` follow from
            its own raw score and map by the reference's thresholds.
    """

    name: str
    anomalous: bool | None
    reference_raw: float
    raw: float
    reference_label: bool
    label: bool
    map_max: float
    map_mean: float
    map_range: float
    consistent: bool

    @property
    def finite(self) -> bool:
        """Whether scores and maps of both are numbers."""
        return bool(np.isfinite([self.reference_raw, self.raw, self.map_max]).all())

    @property
    def flipped(self) -> bool:
        """Whether the decisions differ."""
        return self.label != self.reference_label


@dataclass(frozen=True)
class ParityFigures:
    """How far a candidate is from the reference; drifts in drift units.

    Attributes:
        images: number of them.
        drift_max: largest drift.
        drift_mean: mean drift.
        drift_median: 0.5 quantile.
        drift_p95: 0.95 quantile.
        spearman: rank correlation of raw scores; None where one side is constant.
        flips: images whose decision differs.
        map_max: largest difference of the maps, as a fraction of the mean range of the maps.
        map_mean: mean difference of the maps, likewise.
        auroc_reference: image AUROC of the reference; None without labels of both kinds.
        auroc: image AUROC of the candidate.
        not_finite: images with NaN or infinity on either side.
        inconsistent: images whose outputs contradict each other, see `ImageRecord.consistent`.
    """

    images: int
    drift_max: float
    drift_mean: float
    drift_median: float
    drift_p95: float
    spearman: float | None
    flips: int
    map_max: float
    map_mean: float
    auroc_reference: float | None
    auroc: float | None
    not_finite: int
    inconsistent: int


def compare_images(
    reference: Infer,
    candidates: Mapping[str, Infer],
    images: Iterable[tuple[str, bool | None, ImageArray]],
    image_input: ImageInput,
    thresholds: Thresholds,
) -> dict[str, list[ImageRecord]]:
    """Score images with the reference and each candidate, one call of the graph at a time.

    Args:
        reference: the reference's inference.
        candidates: inference of each candidate, by name.
        images: name, label and pixels `[H, W, C]` of each; read lazily.
        image_input: the candidates' input; its batch sizes the calls.
        thresholds: the reference's.

    Returns:
        The records of each candidate, in the order of `images`.
    """
    records: dict[str, list[ImageRecord]] = {name: [] for name in candidates}
    for call in _calls(images, image_input.batch or 1):
        names, labels, pixels = zip(*call, strict=True)
        stacked = np.stack(pixels)
        (filled, count), *_ = image_input.batches(stacked)
        expected = reference(filled)
        for candidate, infer in candidates.items():
            found = infer(filled)
            records[candidate] += [
                _record((names[n], labels[n]), _one(expected, n), _one(found, n), thresholds)
                for n in range(count)
            ]
    return records


def figures(records: Sequence[ImageRecord], drift_unit: float) -> ParityFigures:
    """Sum up records; images that are not finite are counted, and left out of the rest.

    Raises:
        InputError: there is no record, or the drift unit is not positive.
        CheckError: no image is finite.
    """
    if not records:
        raise InputError("there is no image to compare")
    if not drift_unit > 0:
        raise InputError(
            "the reference gives all normal images the same score: without a spread of normal "
            "scores, drift has no unit; give normal images that differ"
        )
    kept = [record for record in records if record.finite]
    if not kept:
        raise CheckError("no image has a finite score under both reference and candidate")
    reference = np.array([record.reference_raw for record in kept])
    raw = np.array([record.raw for record in kept])
    drift = np.abs(raw - reference) / drift_unit
    labelled = np.array([record.anomalous is not None for record in kept])
    truth = np.array([bool(record.anomalous) for record in kept])[labelled]
    map_range = float(np.mean([record.map_range for record in kept])) or 1.0
    return ParityFigures(
        images=len(records),
        drift_max=float(drift.max()),
        drift_mean=float(drift.mean()),
        drift_median=float(np.quantile(drift, 0.5)),
        drift_p95=float(np.quantile(drift, 0.95)),
        spearman=spearman(reference, raw),
        flips=sum(record.flipped for record in kept),
        map_max=max(record.map_max for record in kept) / map_range,
        map_mean=float(np.mean([record.map_mean for record in kept])) / map_range,
        auroc_reference=auroc(reference[labelled], truth),
        auroc=auroc(raw[labelled], truth),
        not_finite=len(records) - len(kept),
        inconsistent=sum(not record.consistent for record in kept),
    )


def _one(outputs: Outputs, number: int) -> Outputs:
    return {name: value[number] for name, value in outputs.items()}


def _record(
    image: tuple[str, bool | None], expected: Outputs, found: Outputs, thresholds: Thresholds
) -> ImageRecord:
    name, anomalous = image
    reference_map = expected[contract.ANOMALY_MAP].astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity on both sides; counted as not finite
        difference = np.abs(found[contract.ANOMALY_MAP] - reference_map)
        map_range = float(np.ptp(reference_map))
    return ImageRecord(
        name=name,
        anomalous=anomalous,
        reference_raw=float(expected[contract.RAW_SCORE]),
        raw=float(found[contract.RAW_SCORE]),
        reference_label=bool(expected[contract.PRED_LABEL]),
        label=bool(found[contract.PRED_LABEL]),
        map_max=float(difference.max()),
        map_mean=float(difference.mean()),
        map_range=map_range,
        consistent=_is_consistent(found, thresholds),
    )


def _is_consistent(found: Outputs, thresholds: Thresholds) -> bool:
    """Comparisons are exact; the normalised score may differ by float32's rounding."""
    raw, score = found[contract.RAW_SCORE], float(found[contract.PRED_SCORE])
    rounding = _ROUNDING * max(1.0, abs(float(raw)) / thresholds.spread)
    mask = found[contract.ANOMALY_MAP] > np.float32(thresholds.pixel)
    return bool(
        abs(score - float(thresholds.normalised(raw))) <= rounding
        and bool(found[contract.PRED_LABEL]) == bool(raw > np.float32(thresholds.image))
        and np.array_equal(found[contract.PRED_MASK], mask)
    )


def _calls(
    images: Iterable[tuple[str, bool | None, ImageArray]], size: int
) -> Iterable[list[tuple[str, bool | None, ImageArray]]]:
    call = []
    for image in images:
        call.append(image)
        if len(call) == size:
            yield call
            call = []
    if call:
        yield call
