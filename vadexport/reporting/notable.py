"""The images that a reader should look at: not finite, flipped, or moved most."""

from dataclasses import dataclass
from typing import Final

from vadexport.verification.records import ImageRecord
from vadexport.verification.result import Verification

_LARGEST_DRIFTS: Final = 10


@dataclass(frozen=True)
class NotableImage:
    """An image of a table.

    Attributes:
        record: its scores.
        drift: in drift units, with sign.
        why: it is in the table.
    """

    record: ImageRecord
    drift: float
    why: str


def notable_images(v: Verification, most: int) -> list[NotableImage]:
    """Images without a finite score, flips from the threshold on, and the largest drifts.

    Args:
        v: the verification.
        most: how many; `parity.json` has all.
    """
    rows = [
        NotableImage(one, drift_of(one, v), f"not finite ({one.not_finite_of})")
        for one in v.records
        if not one.finite
    ]
    finite = [one for one in v.records if one.finite]
    finite.sort(key=lambda record: abs(drift_of(record, v)), reverse=True)
    flipped = [one for one in finite if one.flipped]
    if v.threshold is not None:
        flipped.sort(key=lambda record: abs(record.reference_raw - (v.threshold or 0.0)))
    rows += [NotableImage(one, drift_of(one, v), "flip") for one in flipped]
    steady = [one for one in finite if not one.flipped][:_LARGEST_DRIFTS]
    rows += [NotableImage(one, drift_of(one, v), "large drift") for one in steady]
    return rows[:most]


def drift_of(record: ImageRecord, v: Verification) -> float:
    """Drift of an image in drift units, with sign."""
    return (record.raw - record.reference_raw) / v.drift_unit
