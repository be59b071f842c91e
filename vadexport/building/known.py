"""What is known of a detector once its weights are in a graph, and need not be held twice."""

import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from torch import Tensor

from vadexport.detectors.exportable import Exportable, Scores
from vadexport.detectors.steps import Step
from vadexport.sources import Source

_GONE = "the weights of this detector were let go of"


class _Known(Exportable):
    """What a detector says of itself; it scores nothing."""

    def __init__(self, detector: Exportable) -> None:
        super().__init__()
        self.image_input, self.thresholds = detector.image_input, detector.thresholds
        self.normal_scores, self.fitted_on = detector.normal_scores, detector.fitted_on
        self._family, self._steps, self._map_size = (
            detector.family,
            detector.steps,
            detector.map_size,
        )

    @property
    def family(self) -> str:
        """See the base class."""
        return self._family

    @property
    def steps(self) -> tuple[Step, ...]:
        """See the base class."""
        return self._steps

    @property
    def map_size(self) -> tuple[int, int] | None:
        """See the base class."""
        return self._map_size

    def scores(self, x: Tensor) -> Scores:
        """See the base class."""
        del x
        raise AssertionError(_GONE)

    def outputs(self, scores: Scores) -> Mapping[str, Tensor]:
        """See the base class."""
        del scores
        raise AssertionError(_GONE)


def without_weights(source: Source) -> Source:
    """The source, without what its detector and its reference hold, if nobody else does."""
    known = replace(source, detector=_Known(source.detector), open_reference=_no_reference)
    gc.collect()  # what exporting leaves behind holds weights as well
    return known


def _no_reference(_threads: int) -> NoReturn:
    raise AssertionError(_GONE)
