"""The unit that drift is measured in."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vadexport.errors import InputError
from vadexport.verification.statistics import interquartile_range

#: Quartiles of fewer scores say little about their spread.
_FEW_SCORES = 8


@dataclass(frozen=True)
class DriftUnit:
    """Interquartile range of the reference's raw scores on normal images.

    An absolute tolerance on raw scores means nothing across detectors; this one does: a drift of
    one moves an image across the middle half of the normal scores.

    Attributes:
        value: positive, raw score units.
        words: which images it was taken from.
    """

    value: float
    words: str

    @classmethod
    def of(cls, fitted: NDArray[np.float32], seen: NDArray[np.float64], words: str) -> Self:
        """Take the unit from the scores that came with the detector, else from those seen now.

        Args:
            fitted: raw scores of normal images, kept when the detector was fitted.
            seen: raw scores of normal images under the reference.
            words: what images `seen` is of.

        Raises:
            InputError: neither has a spread.
        """
        if len(fitted) >= _FEW_SCORES:
            spread = interquartile_range(fitted.astype(np.float64))
            if spread > 0:
                return cls(spread, f"the {len(fitted)} normal images it was fitted on")
        if len(seen) > 1:
            spread = interquartile_range(seen)
            if spread > 0:
                return cls(spread, f"{len(seen)} {words}")
        raise InputError(
            "the reference gives all normal images the same score, so drift has no unit: "
            "give more normal images, and such as differ"
        )
