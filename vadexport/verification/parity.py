"""Scores and maps of a candidate against the reference's, image by image."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from vadexport.contract import ImageArray, ImageInput, Outputs
from vadexport.errors import BackendError, CheckError, InputError
from vadexport.thresholds import Thresholds
from vadexport.verification.pred_scores import stray_scores
from vadexport.verification.records import ROUNDING, ImageRecord, record_of
from vadexport.verification.statistics import Float64Array, auroc, spearman

Infer = Callable[[ImageArray], Outputs]
Watch = Callable[[str, Outputs, Mapping[str, Outputs]], None]


@dataclass(frozen=True)
class ParityFigures:
    """How far a candidate is from the reference; drifts in drift units.

    Attributes:
        images: number of them.
        drift_max: largest drift.
        drift_mean: mean drift.
        drift_median: 0.5 quantile.
        drift_p95: 0.95 quantile.
        spearman: rank correlation of raw scores, 0 where the candidate scores all images alike;
            None where the reference does, or of one image.
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
        settled_flips: as `flips`, likewise: without those whose scores the threshold parts only by
            rounding, see `ImageRecord.tied`.
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
    settled_flips: int | None = None


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
    flips = sum(record.flipped for record in records)
    inconsistent = sum(not record.consistent for record in kept)
    if not decided:  # then no thresholds told what `pred_score` must be
        inconsistent += stray_scores(kept, drift_unit)
    return ParityFigures(
        images=len(records),
        drift_max=float(drift.max()),
        drift_mean=float(drift.mean()),
        drift_median=float(np.quantile(drift, 0.5)),
        drift_p95=float(np.quantile(drift, 0.95)),
        spearman=_order_kept(reference, raw),
        flips=flips if decided else None,
        map_max=max(largest) / map_range if largest else None,
        map_mean=float(np.mean(means)) / map_range if means else None,
        auroc_reference=auroc(reference[labelled], truth),
        auroc=auroc(raw[labelled], truth),
        not_finite=len(records) - len(kept),
        inconsistent=inconsistent,
        settled_spearman=_order_kept(reference, settled),
        settled_auroc=auroc(settled[labelled], truth),
        settled_flips=flips - sum(one.tied(drift_unit) for one in records) if decided else None,
    )


def _order_kept(reference: Float64Array, found: Float64Array) -> float | None:
    if len(found) > 1 and np.ptp(found) == 0 < np.ptp(reference):
        return 0.0  # nothing of the order is left
    return spearman(reference, found)


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
            records[candidate].append(record_of(image, wanted, outputs, thresholds))
        if watch is not None:
            watch(image[0], wanted, given)


def _one(outputs: Outputs, number: int) -> Outputs:
    return {name: value[number] for name, value in outputs.items()}


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
