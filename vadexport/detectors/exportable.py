"""What vadexport needs of a detector to trace it: parts that an exporter treats on their own."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from vadexport.contract import ImageInput
from vadexport.detectors.steps import Step
from vadexport.thresholds import Thresholds

if TYPE_CHECKING:
    import onnx


class Scores(NamedTuple):
    """What a detector makes of preprocessed images.

    Attributes:
        raw_score: float32 [N].
        anomaly_map: float32 [N, 1, h, w]; None where the detector gives none.
        features: what its network hands to its score head: the network may be INT8, the rest stays
            in float. Empty where nobody knows where the network ends.
    """

    raw_score: Tensor
    anomaly_map: Tensor | None
    features: tuple[Tensor, ...] = ()


class Exportable(nn.Module, ABC):
    """A trained detector in the form that graphs are made from, in evaluation mode.

    Attributes:
        image_input: the camera images that it takes.
        thresholds: None where it makes no decisions.
        normal_scores: float32 [n], raw scores of the normal images that set the thresholds; their
            spread is the unit of drift. Empty where they are not known.
        fitted_on: `image_digest` of each image file it was fitted on, sorted; empty if unknown.
    """

    image_input: ImageInput
    thresholds: Thresholds | None
    normal_scores: Tensor
    fitted_on: tuple[str, ...]

    @property
    @abstractmethod
    def family(self) -> str:
        """Of detectors, or the class of another framework's."""

    @property
    @abstractmethod
    def steps(self) -> tuple[Step, ...]:
        """From the camera's image to the network's input."""

    @property
    @abstractmethod
    def map_size(self) -> tuple[int, int] | None:
        """Height and width of the anomaly map; None where there is none."""

    @abstractmethod
    def scores(self, x: Tensor) -> Scores:
        """Score preprocessed images `[N, 3, h, w]`."""

    @abstractmethod
    def outputs(self, scores: Scores) -> Mapping[str, Tensor]:
        """The contract's outputs, as many as the detector has, by name."""

    def facts(self) -> dict[str, str | int | float]:
        """What `inspect` shows beyond the common facts."""
        return {}

    def details(self) -> dict[str, Any]:
        """What `inspect --json` shows beyond that; plain JSON values."""
        return {}

    def onnx_network(self) -> "onnx.ModelProto | None":
        """The network as ONNX where it came so and cannot be traced; None for all others."""
        return None
