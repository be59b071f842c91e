"""What all reference detectors share: camera bytes in, the contract's outputs out."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vadexport import contract
from vadexport.contract import ImageInput
from vadexport.detectors.exportable import Exportable, Scores
from vadexport.detectors.preprocessing import Preprocessing, PreprocessingConfig
from vadexport.detectors.stages import Stage
from vadexport.detectors.steps import Step
from vadexport.detectors.stored_config import as_json, read_config
from vadexport.thresholds import Thresholds

#: Called with the step's name, what is done and how much there is.
Progress = Callable[[str, int, int], None]


def choice(default: Any, help: str, option: str | None = None) -> Any:  # noqa: A002 - click's word
    """A field of a family's configuration, as the command line offers it.

    Args:
        default: of the field.
        help: what the option's help says.
        option: its name where it is not the field's.
    """
    return field(default=default, metadata={"help": help, "option": option})


class Detector(Exportable):
    """A detector that vadexport fits: the reference of everything that is built from it.

    It falls into parts so that an exporter can treat each on its own: `preprocessing`, `network`
    (the convolutions, which INT8 may take), `score` (distances and maps, which stay in float).

    Attributes:
        family: name on the command line.
        config_class: frozen dataclass of the family's choices.
        label: what errors call the family.
        method: the choices, a `config_class`.
        image_input: the camera images it was trained on.
        thresholds: set by fitting.
        normal_scores: float32 [n], raw scores of the normal images that set the thresholds;
            their spread is the unit of drift.
        stages: what came of each stage of training; empty for families that do not train.
        fitted_on: `image_digest` of each image file it was fitted on, sorted; empty if unknown.
    """

    family: ClassVar[str]
    thresholds: Thresholds
    config_class: ClassVar[type[Any]]
    label: ClassVar[str]
    method: Any
    normal_scores: Tensor

    def __init__(
        self, config: Any, image_input: ImageInput, preprocessing: PreprocessingConfig
    ) -> None:
        super().__init__()
        self.method = config
        self.image_input = image_input
        self.preprocessing = Preprocessing(preprocessing)
        self.thresholds = Thresholds(0.0, 0.0, 0.0, 1.0, "not fitted")
        self.fitted_on: tuple[str, ...] = ()
        self.stages: tuple[Stage, ...] = ()
        self.register_buffer("normal_scores", torch.zeros(0))

    @abstractmethod
    def network(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map the preprocessed image `[N, 3, h, w]` to the tensors that scoring needs."""

    @abstractmethod
    def score(self, x: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Raw scores `[N]` and anomaly maps `[N, 1, h, w]` of what `network` gave for `x`."""

    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build the same detector, untrained; plain JSON values."""
        return as_json(self.method)

    def identity(self) -> dict[str, Any]:
        """What decides the result of training besides the images; plain JSON values."""
        return {
            "family": self.family,
            "config": self.config(),
            "preprocessing": self.preprocessing.config.to_json(),
        }

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        image_input: ImageInput,
        preprocessing: PreprocessingConfig,
        state: Mapping[str, Tensor],
    ) -> Self:
        """Build the detector that `config` describes, ready to load its state.

        Args:
            config: what `config()` gave.
            image_input: camera images.
            preprocessing: to the network's input.
            state: tensors of the checkpoint, for buffers that fitting sizes.

        Raises:
            InputError: the configuration is damaged, or such a buffer does not fit it.
        """
        method = read_config(cls.config_class, config, cls.label)
        # Every family whose constructor takes more overrides this method.
        detector = cls(method, image_input, preprocessing)
        detector.size_buffers(state)
        return detector

    def size_buffers(self, state: Mapping[str, Tensor]) -> None:
        """Give the buffers that fitting sizes the shapes they have in `state`.

        Raises:
            InputError: one is missing, or does not fit the configuration.
        """
        del state  # a family without such buffers has nothing to do

    @property
    def steps(self) -> tuple[Step, ...]:
        """See the base class."""
        return self.preprocessing.config.steps

    @property
    def map_size(self) -> tuple[int, int]:
        """See the base class; maps have the size of the network's input."""
        return self.preprocessing.config.size

    def scores(self, x: Tensor) -> Scores:
        """See the base class."""
        features = self.network(x)
        return Scores(*self.score(x, features), tuple(features))

    def outputs(self, scores: Scores) -> dict[str, Tensor]:
        """See the base class."""
        if scores.anomaly_map is None:
            raise AssertionError("every family gives a map")
        return self.postprocess(scores.raw_score, scores.anomaly_map)

    def describe(self) -> dict[str, str | int | float]:
        """What `inspect` shows beyond the common facts."""
        return {}

    def details(self) -> dict[str, Any]:
        """See the base class; its choices, and how each stage of training ended."""
        return {"config": self.config(), "stages": [stage.to_json() for stage in self.stages]}

    def facts(self) -> dict[str, str | int | float]:
        """`describe`, and how training ended where there was any."""
        training = "; ".join(stage.words for stage in self.stages)
        return {**self.describe(), **({"training": training} if training else {})}

    def postprocess(self, raw_score: Tensor, anomaly_map: Tensor) -> dict[str, Tensor]:
        """The contract's outputs; `pred_score` by anomalib's min–max rule, threshold at 0.5."""
        limits = self.thresholds
        normalised = (raw_score - limits.image) / limits.spread + 0.5
        return {
            contract.PRED_SCORE: normalised.clamp(0.0, 1.0),
            contract.RAW_SCORE: raw_score,
            contract.PRED_LABEL: raw_score > limits.image,
            contract.ANOMALY_MAP: anomaly_map,
            contract.PRED_MASK: anomaly_map > limits.pixel,
        }

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Score camera images `[N, H, W, C]`; returns the contract's outputs by name."""
        return self.outputs(self.scores(self.prepared(image)))

    def prepared(self, image: Tensor) -> Tensor:
        """What the network is given for camera images `[N, H, W, C]`: float32 `[N, 3, h, w]`."""
        x: Tensor = self.preprocessing(image)
        return x


def normal_thresholds(scores: Tensor, map_maxima: Tensor, quantile: float) -> Thresholds:
    """Thresholds that the fraction `quantile` of the normal images stays below.

    Args:
        scores: raw scores of normal images, [n].
        map_maxima: largest map value of each, [n].
        quantile: in (0, 1].
    """
    at = torch.tensor(quantile, dtype=torch.float64)
    return Thresholds(
        image=_as_float32(scores.double().quantile(at)),
        pixel=_as_float32(map_maxima.double().quantile(at)),
        minimum=float(scores.min()),
        maximum=float(scores.max()),
        rule=f"{quantile:g} quantile of {len(scores)} normal images",
    )


def _as_float32(value: Tensor) -> float:
    """Round to float32, so that every backend compares against the very same number."""
    return float(value.to(torch.float32))
