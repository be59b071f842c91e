"""A detector made of a model that brings neither preprocessing nor thresholds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from vadexport import contract
from vadexport.contract import ImageInput
from vadexport.detectors.exportable import Exportable, Scores
from vadexport.detectors.steps import CenterCrop, EagerPreprocessing, Resize, Step
from vadexport.errors import InputError
from vadexport.sources.cameras import camera_input
from vadexport.sources.checking import Measured, measure
from vadexport.sources.outputs import OutputMap
from vadexport.sources.spec import SourceSpec
from vadexport.thresholds import Thresholds

if TYPE_CHECKING:
    import onnx

#: Camera images where nothing tells their size, as anomalib has it.
_DEFAULT_SIZE: Final = (256, 256)
#: Options that describe such a model.
PLAIN_OPTIONS: Final = (
    *("image_size", "camera", "steps", "outputs"),
    *("threshold", "pixel_threshold"),
)


class Untouched(nn.Module):
    """A module whose mode nobody changes: programs and scripts have one, set when they were made.

    Args:
        module: that is called.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.training = False

    def train(self, mode: bool = True) -> "Untouched":  # noqa: ARG002, FBT001, FBT002 - PyTorch's
        """Leave all as it is."""
        return self

    def forward(self, x: Tensor) -> Any:
        """What the module returns."""
        return self.module(x)


@dataclass(frozen=True)
class PlainModel:
    """A model, and what its format tells of it.

    Attributes:
        family: what `inspect` calls it.
        network: maps float32 [N, 3, h, w] ([N, 1, h, w] where it has one channel) to anything.
        mend: what to do where it is in training mode.
        size: height and width of its input; None where the format does not tell.
        channels: of its input.
        batch: images that a call must have; None where any number may go.
        onnx_network: gives the network as ONNX, with its score and map as outputs, where it cannot
            be traced: see `compose`.
        facts: what `inspect` shows of it.
    """

    family: str
    network: nn.Module
    mend: str
    size: tuple[int, int] | None = None
    channels: int = 3
    batch: int | None = None
    onnx_network: "Callable[[Measured], onnx.ModelProto] | None" = None
    facts: dict[str, str | int | float] = field(default_factory=dict)


class PlainDetector(Exportable):
    """A model that brings no more than its network.

    Args:
        model: the network and what its format tells.
        measured: what a call showed.
        steps: preprocessing.
        image_input: camera images.
        thresholds: None where nobody gave any.
    """

    def __init__(
        self,
        model: PlainModel,
        measured: Measured,
        steps: tuple[Step, ...],
        image_input: ImageInput,
        thresholds: Thresholds | None,
    ) -> None:
        super().__init__()
        self.network = model.network
        self._model, self.measured, self._steps = model, measured, steps
        self.image_input = image_input
        self.thresholds = thresholds
        self.fitted_on = ()
        self.register_buffer("normal_scores", torch.zeros(0))

    @property
    def family(self) -> str:
        """See the base class."""
        return self._model.family

    @property
    def steps(self) -> tuple[Step, ...]:
        """See the base class."""
        return self._steps

    @property
    def channels(self) -> int:
        """Of the network's input."""
        return self._model.channels

    @property
    def map_size(self) -> tuple[int, int] | None:
        """See the base class."""
        return self.measured.map_size

    def scores(self, x: Tensor) -> Scores:
        """See the base class.

        Raises:
            InputError: another number of images than the network can take.
        """
        images, batch = x.shape[0], self.measured.batch
        if batch is not None and images != batch:
            raise InputError(
                f"the model takes {batch} image{'s' * (batch > 1)} a call and no other number: "
                f"build with --batch {batch}, or export it with a dynamic batch"
            )
        return self.measured.outputs.scores(self.network(x[:, : self.channels]), images)

    def outputs(self, scores: Scores) -> Mapping[str, Tensor]:
        """See the base class; `pred_score` is the raw score, for no range is known."""
        raw, anomaly_map, thresholds = scores.raw_score, scores.anomaly_map, self.thresholds
        outputs = {contract.PRED_SCORE: raw, contract.RAW_SCORE: raw}
        if thresholds is not None:
            outputs[contract.PRED_LABEL] = raw > thresholds.image
        if anomaly_map is not None:
            outputs[contract.ANOMALY_MAP] = anomaly_map
            if thresholds is not None:
                outputs[contract.PRED_MASK] = anomaly_map > thresholds.pixel
        return outputs

    def sample(self) -> Tensor:
        """Preprocessed images to try the network with, float32 [N, C, h, w], the same each time."""
        return _sample(self.steps, self.image_input, self.channels, self.measured.batch)

    def facts(self) -> dict[str, str | int | float]:
        """See the base class; the network's outputs and which of them are used."""
        batch = self.measured.batch
        return {
            **self._model.facts,
            "model outputs": self.measured.leaves,
            "outputs used": str(self.measured.outputs),
            "images a call": "any number" if batch is None else batch,
        }

    def onnx_network(self) -> "onnx.ModelProto | None":
        """See the base class."""
        made = self._model.onnx_network
        return None if made is None else made(self.measured)


class PlainReference(nn.Module):
    """The untouched model on images that PyTorch's own operators preprocessed.

    Args:
        network: as it came.
        detector: whose steps, outputs and thresholds it shares.
        batch: images that a call of `network` must have; None is the detector's.
    """

    def __init__(
        self, network: nn.Module, detector: PlainDetector, batch: int | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.batch = batch or detector.measured.batch
        self.preprocessing = EagerPreprocessing(detector.steps)
        # A tuple keeps it from being a submodule: its weights are not the reference's.
        self._detector = (detector,)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Score a call of any number of images; the contract's outputs by name.

        A network that takes another number gets as many calls as it needs, the last filled up.
        """
        (detector,) = self._detector
        x = self.prepared(image)
        batch = self.batch or len(x)
        parts = [self._scores(x[start : start + batch], batch) for start in range(0, len(x), batch)]
        maps = [part.anomaly_map for part in parts if part.anomaly_map is not None]
        scores = Scores(
            torch.cat([part.raw_score for part in parts]), torch.cat(maps) if maps else None
        )
        return dict(detector.outputs(scores))

    def prepared(self, image: Tensor) -> Tensor:
        """What the network is given for a call: float32 `[N, channels, h, w]`."""
        x: Tensor = self.preprocessing(image)
        return x[:, : self._detector[0].channels].contiguous()

    def _scores(self, x: Tensor, batch: int) -> Scores:
        filled = torch.cat([x, x[-1:].expand(batch - len(x), -1, -1, -1)])
        outputs = self._detector[0].measured.outputs
        found = outputs.scores(self.network(filled), batch)
        anomaly_map = None if found.anomaly_map is None else found.anomaly_map[: len(x)]
        return Scores(found.raw_score[: len(x)], anomaly_map)


def plain_detector(spec: SourceSpec, model: PlainModel) -> PlainDetector:
    """Make a detector of a model and what `spec` says of it.

    Raises:
        InputError: an option does not fit, or the model cannot be a detector: see `measure`.
    """
    wanted = None if spec.outputs is None else OutputMap.parse(spec.outputs)
    thresholds = _thresholds(spec)
    steps = _steps(spec, model)
    image_input = _camera(spec, model, steps)
    _check_crops(steps, image_input)
    images = _sample(steps, image_input, model.channels, model.batch)
    _check_size(images, model)
    measured = measure(model.network, images, wanted, model.batch, model.mend)
    return PlainDetector(model, measured, steps, image_input, thresholds).eval()


def colour_or_gray(spec: SourceSpec, model: PlainModel) -> PlainDetector:
    """As `plain_detector`, of one channel where the model cannot take three.

    Raises:
        InputError: it can take neither; the error is the one for three.
    """
    try:
        return plain_detector(spec, model)
    except InputError as error:
        try:
            return plain_detector(spec, replace(model, channels=1))
        except InputError:
            raise error from None


def _steps(spec: SourceSpec, model: PlainModel) -> tuple[Step, ...]:
    if spec.steps is not None:
        return spec.steps
    return () if model.size is None else (Resize(model.size),)


def _camera(spec: SourceSpec, model: PlainModel, steps: tuple[Step, ...]) -> ImageInput:
    if model.channels == 1 and spec.camera == "rgb":
        raise InputError(
            f"{spec.location} takes gray images: leave out --camera rgb, or say gray or gray16"
        )
    if model.channels == 1 and spec.camera is None:
        spec = replace(spec, camera="gray")
    fixed = [step.size for step in steps if isinstance(step, Resize)]
    sizes = [size for size in fixed[:1] if isinstance(size, tuple)]
    return camera_input(spec, model.size or (*sizes, _DEFAULT_SIZE)[0])


def _check_crops(steps: tuple[Step, ...], image_input: ImageInput) -> None:
    """A crop that is larger than its image would fill it up with black."""
    size = image_input.height, image_input.width
    for step in steps:
        if isinstance(step, Resize):
            size = step.of(*size)
        elif isinstance(step, CenterCrop):
            if step.size[0] > size[0] or step.size[1] > size[1]:
                raise InputError(
                    f"--crop {step.size[0]}x{step.size[1]} is larger than the image, which is "
                    f"{size[0]}x{size[1]} there: give a smaller one, or a larger --resize or "
                    "--image-size"
                )
            size = step.size


def _check_size(images: Tensor, model: PlainModel) -> None:
    height, width = images.shape[-2:]
    if model.size is not None and model.size != (height, width):
        rows, columns = model.size
        raise InputError(
            f"the model takes {rows}×{columns} pixels, its preprocessing gives {height}×{width}: "
            f"--resize {rows}x{columns}"
        )


def _thresholds(spec: SourceSpec) -> Thresholds | None:
    image, pixel = spec.threshold, spec.pixel_threshold
    if image is None:
        if pixel is not None:
            raise InputError("--pixel-threshold decides nothing without --threshold: give both")
        return None
    pixel = image if pixel is None else pixel
    largest = torch.finfo(torch.float32).max
    for name, value in (("--threshold", image), ("--pixel-threshold", pixel)):
        if not math.isfinite(value) or abs(value) > largest:
            raise InputError(f"{name} is a number that float32 has, not {value}")
    return Thresholds(
        image=image,
        pixel=pixel,
        minimum=0.0,
        maximum=1.0,
        rule="--threshold",
        label_above=None,
        normalises=False,
    )


def _sample(
    steps: tuple[Step, ...], image_input: ImageInput, channels: int, batch: int | None
) -> Tensor:
    x: Tensor = EagerPreprocessing(steps)(_noise(image_input, batch or 2))
    return x[:, :channels].contiguous()


def _noise(image_input: ImageInput, images: int) -> Tensor:
    """Camera images that differ from each other in mean and contrast, the same each time."""
    shape = (images, image_input.height, image_input.width, image_input.channels)
    white = torch.iinfo(getattr(torch, image_input.dtype)).max
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    fainter = torch.linspace(1.0, 0.2, images).view(-1, 1, 1, 1)
    return (drawn * fainter * white).to(getattr(torch, image_input.dtype))
