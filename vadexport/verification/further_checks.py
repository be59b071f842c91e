"""Checks beyond the figures of one run: preprocessing, the same images again, planted defects."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vadexport.verification.causes import likely_cause
from vadexport.verification.evidence import PlantedEvidence
from vadexport.verification.limits import Check, Limits, at_most
from vadexport.verification.parity import ParityFigures
from vadexport.verification.records import ImageRecord
from vadexport.verification.statistics import proportion_interval
from vadexport.verification.tensors import largest_difference

#: Name of the check on planted defects.
PLANTED: Final = "synthetic"
#: A quarter of what an 8-bit camera can tell apart.
_PREPROCESSED: Final = 1e-3
#: Sums that another order of threads rounds otherwise stay below this.
_REPEATABLE: Final = 1e-3


def preprocessing_check(expected: NDArray[np.float32], found: NDArray[np.generic]) -> Check:
    """Judge how far the tensor after preprocessing is from the reference's.

    Args:
        expected: the reference's, `[N, C, h, w]`.
        found: the graph's.
    """
    check = at_most(
        "preprocessing",
        "largest difference after preprocessing, as a fraction of the largest value,",
        largest_difference(expected, found),
        _PREPROCESSED,
    )
    cause = None if check.held else likely_cause(expected, found)
    return check if cause is None else replace(check, line=f"{check.line}; likely {cause}")


def repeat_check(
    found: ParityFigures | None, records: Sequence[ImageRecord] = (), unit: float = 1.0
) -> Check:
    """Judge figures of an artifact against itself: it must say of an image what it said before.

    Args:
        found: the figures; None where none of the images has finite scores.
        records: that they are of; the image that moved most is named where one did.
        unit: of drift.
    """
    if found is None:
        return Check("repeat", held=False, line="run again, no image has finite scores")
    moved = max(found.drift_max, found.map_max or 0.0)
    flips = found.flips if found.settled_flips is None else found.settled_flips
    held = moved <= _REPEATABLE and not found.not_finite and not flips
    most = ""
    if records and not held:
        most = f", most of all on {max(records, key=lambda one: one.change(unit)).name}"
    return Check(
        "repeat",
        held,
        f"run again on {found.images} images, scores and maps changed by at most {moved:.2g} drift "
        f"units or map ranges{most}, limit {_REPEATABLE:g}",
    )


def planted_check(found: PlantedEvidence | None, limits: Limits) -> Check:
    """Judge an artifact on planted defects: what the reference notices it must not miss.

    They stand in for real ones, so what counts against it must be certain: the end of the 95%
    interval that speaks for the artifact is held against the limit.
    """
    if found is None or found.not_finite:
        return Check(PLANTED, held=False, line="scores of planted defects are not finite")
    best = -found.auroc.loss.least
    certain = f"at best {best:+.4f}" if math.isfinite(best) else "of one image nothing is certain"
    defects = "defect" if found.images == 1 else "defects"
    words = f"AUROC on {found.images} planted {defects} {found.auroc.artifact:.4f}, "
    words += f"reference {found.auroc.reference:.4f} ({certain}"
    held = True
    if limits.min_auroc_delta is not None:
        held = best >= limits.min_auroc_delta
        words += f", limit {limits.min_auroc_delta:+g}"
    words += ")"
    if found.flips is not None:
        ties = 0 if limits.rounding is None else found.ties
        least = proportion_interval(found.flips - ties, found.images - ties).low
        words += f", {found.flips} of their decisions flipped"
        words += f", {ties} by rounding" if ties else ""
        words += f" (at best {least:.1%}"
        if limits.max_flips is not None:
            held = held and least <= limits.max_flips
            words += f", limit {limits.max_flips:.1%}"
        words += ")"
    return Check(PLANTED, held, words)
