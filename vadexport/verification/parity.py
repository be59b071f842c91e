"""Scores and maps of a candidate against the reference's, image by image."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vadexport import contract
from vadexport.contract import ImageArray, ImageInput, Outputs
from vadexport.errors import BackendError, CheckError, InputError
from vadexport.thresholds import Thresholds
from vadexport.verification.statistics import auroc, spearman

Infer = Callable[[ImageArray], Outputs]
Watch = Callable[[str, Outputs, Mapping[str, Outputs]], None]

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
        reference_finite: whether the reference's score and map are numbers.
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

    @property
    def finite(self) -> bool:
        """Whether scores and maps of both are numbers."""
        return bool(np.isfinite([self.reference_raw, self.raw, self.map_max or 0.0]).all())

    @property
    def not_finite_of(self) -> str:
        """Whose score or map is not a number, of an image that is not finite, for a reader."""
        return "artifact" if self.reference_finite else "reference"

    @property
    def flipped(self) -> bool:
        """Whether the decisions differ."""
        return self.label != self.reference_label

    def change(self, unit: float) -> tuple[bool, float]:
        """How much it changed, to sort by: not finite or flipped first, then by drift and by map.

        Args:
            unit: of drift.
        """
        if not self.finite:
            return True, float("inf")
        maps = (self.map_max or 0.0) / (self.map_range or 1.0)
        return self.flipped, max(abs(self.raw - self.reference_raw) / unit, maps)


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
        flips: images whose decision differs; None where the detector makes none.
        map_max: largest difference of the maps, as a fraction of the mean range of the maps; None
            where the detector gives no map.
        map_mean: mean difference of the maps, likewise.
        auroc_reference: image AUROC of the reference; None without labels of both kinds.
        auroc: image AUROC of the candidate.
        not_finite: images with NaN or infinity on either side.
        inconsistent: images whose outputs contradict each other, see `ImageRecord.consistent`.
        settled_spearman: as `spearman`, where a score within `ROUNDING` of the reference's counts
            as the reference's: images that it scores alike stay alike.
        settled_auroc: as `auroc`, likewise.
    """

    images: int
    drift_max: float
    drift_mean: float
    drift_median: float
    drift_p95: float
    spearman: float | None
    flips: int | None
    map_max: float | None
    map_mean: float | None
    auroc_reference: float | None
    auroc: float | None
    not_finite: int
    inconsistent: int
    settled_spearman: float | None = None
    settled_auroc: float | None = None


def compare_images(
    reference: Infer,
    candidates: Mapping[str, Infer],
    images: Iterable[tuple[str, bool | None, ImageArray]],
    image_input: ImageInput,
    thresholds: Thresholds | None,
    watch: Watch | None = None,
) -> dict[str, list[ImageRecord]]:
    """Score images with the reference and each candidate, one call of the graph at a time.

    While a call runs, the images of the next one are read, and the outputs of the one before are
    compared: what takes part runs in processes of its own, and this one would only wait.

    Args:
        reference: the reference's inference.
        candidates: inference of each candidate, by name.
        images: name, label and pixels `[H, W, C]` of each; read lazily.
        image_input: the candidates' input; its batch sizes the calls.
        thresholds: the reference's; None where it makes no decisions.
        watch: is given each image's name, the reference's outputs for it, and each candidate's.

    Returns:
        The records of each candidate, in the order of `images`.

    Raises:
        BackendError: the reference or a candidate failed; the line names the image.
    """
    records: dict[str, list[ImageRecord]] = {name: [] for name in candidates}
    calls = _calls(images, image_input.batch or 1)
    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as comparing:
        compared: Future[None] | None = None
        coming = reading.submit(next, calls, None)
        while (call := coming.result()) is not None:
            coming = reading.submit(next, calls, None)
            (filled, _), *_ = image_input.batches(np.stack([image for _, _, image in call]))
            try:
                expected = reference(filled)
                found = {candidate: infer(filled) for candidate, infer in candidates.items()}
            except BackendError as error:
                # The same error: it may say whose it is.
                error.args = (f"{error}, on {', '.join(name for name, _, _ in call)}",)
                raise
            if compared is not None:
                compared.result()
            named = [(name, label) for name, label, _ in call]
            compared = comparing.submit(
                _compare, records, named, expected, found, thresholds, watch
            )
        if compared is not None:
            compared.result()
    return records


#: Of an artifact that did not run, so that there is no figure at all.
NO_FIGURES: Final = ParityFigures(
    images=0,
    drift_max=math.nan,
    drift_mean=math.nan,
    drift_median=math.nan,
    drift_p95=math.nan,
    spearman=None,
    flips=None,
    map_max=None,
    map_mean=None,
    auroc_reference=None,
    auroc=None,
    not_finite=0,
    inconsistent=0,
)


def figures(records: Sequence[ImageRecord], drift_unit: float) -> ParityFigures:
    """Sum up records; images that are not finite are counted, and left out of all but flips.

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
    settled = np.where(drift <= ROUNDING, reference, raw)
    labelled = np.array([record.anomalous is not None for record in kept])
    truth = np.array([bool(record.anomalous) for record in kept])[labelled]
    largest = [record.map_max for record in kept if record.map_max is not None]
    means = [record.map_mean for record in kept if record.map_mean is not None]
    ranges = [record.map_range for record in kept if record.map_range is not None]
    map_range = (float(np.mean(ranges)) if ranges else 0.0) or 1.0
    decided = any(record.reference_label is not None for record in records)
    return ParityFigures(
        images=len(records),
        drift_max=float(drift.max()),
        drift_mean=float(drift.mean()),
        drift_median=float(np.quantile(drift, 0.5)),
        drift_p95=float(np.quantile(drift, 0.95)),
        spearman=spearman(reference, raw),
        flips=sum(record.flipped for record in records) if decided else None,
        map_max=max(largest) / map_range if largest else None,
        map_mean=float(np.mean(means)) / map_range if means else None,
        auroc_reference=auroc(reference[labelled], truth),
        auroc=auroc(raw[labelled], truth),
        not_finite=len(records) - len(kept),
        inconsistent=sum(not record.consistent for record in kept),
        settled_spearman=spearman(reference, settled),
        settled_auroc=auroc(settled[labelled], truth),
    )


def _compare(
    records: Mapping[str, list[ImageRecord]],
    images: Sequence[tuple[str, bool | None]],
    expected: Outputs,
    found: Mapping[str, Outputs],
    thresholds: Thresholds | None,
    watch: Watch | None,
) -> None:
    """Add a record of each image of a call, for each candidate."""
    for n, image in enumerate(images):
        wanted = _one(expected, n)
        given = {candidate: _one(outputs, n) for candidate, outputs in found.items()}
        for candidate, outputs in given.items():
            records[candidate].append(_record(image, wanted, outputs, thresholds))
        if watch is not None:
            watch(image[0], wanted, given)


def _one(outputs: Outputs, number: int) -> Outputs:
    return {name: value[number] for name, value in outputs.items()}


def _record(
    image: tuple[str, bool | None],
    expected: Outputs,
    found: Outputs,
    thresholds: Thresholds | None,
) -> ImageRecord:
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
            for each in (contract.RAW_SCORE, contract.ANOMALY_MAP)
            if each in expected
        ),
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


def _label(outputs: Outputs) -> bool | None:
    return bool(outputs[contract.PRED_LABEL]) if contract.PRED_LABEL in outputs else None


def _calls(
    images: Iterable[tuple[str, bool | None, ImageArray]], size: int
) -> Iterator[list[tuple[str, bool | None, ImageArray]]]:
    call = []
    for image in images:
        call.append(image)
        if len(call) == size:
            yield call
            call = []
    if call:
        yield call
