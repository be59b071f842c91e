"""The unit that drift is measured in."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vadexport.errors import InputError
from vadexport.verification.statistics import interquartile_range

#: Quartiles of fewer scores say little about their spread.
_FEW_SCORES = 8


@dataclass(frozen=True)
class NormalScores:
    """Raw scores of normal images under the reference: [n], and which images they are of."""

    scores: NDArray[Any]
    words: str


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
    def of(cls, *known: NormalScores) -> Self:
        """Take the unit from the first of the given scores that are enough, else from the most.

        Raises:
            InputError: there are fewer than two normal scores, or all are the same.
        """
        enough = [one for one in known if len(one.scores) >= _FEW_SCORES]
        rest = sorted(known, key=lambda one: len(one.scores), reverse=True)
        for one in [*enough, *rest]:
            if len(one.scores) > 1:
                spread = interquartile_range(one.scores.astype(np.float64))
                if spread > 0:
                    return cls(spread, one.words)
        if max((len(one.scores) for one in known), default=0) < 2:
            raise InputError(
                "drift is measured in units of the spread of normal scores, and the detector "
                "brings none: give normal images, best 8 or more (`build --calibration IMAGES`)"
            )
        raise InputError(
            "the reference gives all normal images the same score, so drift has no unit: "
            "give normal images that differ"
        )


def fitted_scores(scores: NDArray[Any]) -> NormalScores:
    """The scores that came with a detector."""
    return NormalScores(scores, f"the {len(scores)} normal images that set its thresholds")
