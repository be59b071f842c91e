"""Convolutional autoencoder trained with SSIM and L2 (Bergmann et al., VISAPP 2019)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vadexport.contract import ImageArray, ImageInput
from vadexport.detectors.base import Detector, choice
from vadexport.detectors.maps import gaussian_kernel
from vadexport.detectors.normal_images import NormalImages
from vadexport.detectors.preprocessing import PreprocessingConfig
from vadexport.detectors.ranges import check_seed, check_training
from vadexport.detectors.seeds import seeded_weights
from vadexport.detectors.training import (
    Plan,
    Training,
    TrainingProgress,
    finish,
    no_progress,
    set_thresholds,
    train,
    training_device,
)
from vadexport.errors import InputError

#: Pixels are in [0, 1]; SSIM's constants for that range (Wang et al. 2004).
_C1 = 0.01**2
_C2 = 0.03**2
#: As in Wang et al. 2004; the window has 13 taps, theirs is cut at 11.
_SSIM_SIGMA = 1.5
#: Sort networks of inference backends take no more (TensorRT's TopK).
_MOST_RANKED = 3840
#: Channels after each halving of the resolution, in units of the width.
_WIDTHS = (1, 1, 2, 4)


@dataclass(frozen=True)
class AutoencoderConfig:
    """Choices of the method.

    Attributes:
        width: channels of the first layers; deeper ones have up to four times as many.
        latent: channels of the bottleneck, at a sixteenth of the resolution. The fewer, the less
            of a defect passes.
        l2_weight: of the squared difference, in the loss and in the map, beside 1 − SSIM.
        score_quantile: of the map's pixels, whose value is the image score.
        steps: of training, at most.
        batch_size: images a step.
        learning_rate: of Adam.
        seed: of the first weights, the batches and the held-out images.
    """

    width: int = choice(16, "Channels of the first layers.")
    latent: int = choice(8, "Channels of the bottleneck, at a sixteenth of the resolution.")
    l2_weight: float = choice(1.0, "Of the squared difference beside 1 − SSIM.")
    score_quantile: float = choice(0.99, "Of the map's pixels, whose value is the image score.")
    steps: int = choice(400, "Steps of training, at most.")
    batch_size: int = choice(4, "Images a step.")
    learning_rate: float = choice(0.002, "Of Adam.")
    seed: int = choice(0, "Of the first weights and of the batches.")

    def __post_init__(self) -> None:
        check_training(self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate)
        check_seed(self.seed)
        if not (1 <= self.width <= 512 and 1 <= self.latent <= 4096):
            raise InputError("the width is in 1 … 512, the latent channels in 1 … 4096")
        if not 0 <= self.l2_weight <= 1000:
            raise InputError(f"the weight of L2 is in [0, 1000], not {self.l2_weight}")
        if not 0 < self.score_quantile <= 1:
            raise InputError(f"the score's quantile is in (0, 1], not {self.score_quantile}")


class _Network(nn.Module):
    """Strided convolutions down, resizing and convolutions up: no checkerboard in the map."""

    def __init__(self, channels: int, size: tuple[int, int], config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.width * factor for factor in _WIDTHS]
        inputs = [channels, *widths[:-1]]
        self.down = nn.ModuleList(
            _conv(before, after, stride=2) for before, after in zip(inputs, widths, strict=True)
        )
        self.squeeze = nn.Conv2d(widths[-1], config.latent, 1)
        self.expand = _conv(config.latent, widths[-1])
        self.up = nn.ModuleList(
            _conv(before, after)
            for before, after in zip(widths[::-1], [*widths[-2::-1], widths[0]], strict=True)
        )
        self.last = nn.Conv2d(widths[0], channels, 3, padding=1)
        self.sizes = [size]
        for _ in widths[:-1]:
            height, width = self.sizes[-1]
            self.sizes.append(((height + 1) // 2, (width + 1) // 2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.down:
            x = layer(x)
        x = self.expand(self.squeeze(x))
        for layer, size in zip(self.up, reversed(self.sizes), strict=True):
            x = layer(functional.interpolate(x, size, mode="bilinear", align_corners=False))
        return torch.sigmoid(self.last(x))


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Autoencoder(Detector):
    """What a narrow autoencoder of normal images does not reproduce is anomalous."""

    family: ClassVar[str] = "autoencoder"
    config_class: ClassVar[type[Any]] = AutoencoderConfig
    label: ClassVar[str] = "autoencoder"
    method: AutoencoderConfig
    window: Tensor

    def __init__(
        self,
        config: AutoencoderConfig,
        image_input: ImageInput,
        preprocessing: PreprocessingConfig | None = None,
        *,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Make an untrained detector.

        Args:
            config: choices of the method.
            image_input: camera images.
            preprocessing: to the network's input, which must leave pixels in [0, 1]; made from
                `size` where it is None.
            size: the network's input, default the camera's size.
        """
        if preprocessing is None:
            size = size or (image_input.height, image_input.width)
            preprocessing = PreprocessingConfig(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        super().__init__(config, image_input, preprocessing)
        window = gaussian_kernel(_SSIM_SIGMA)
        if window.numel() // 2 >= min(preprocessing.size):
            raise InputError(f"{preprocessing.size} is too small for the window of SSIM")
        self.register_buffer("window", window, persistent=False)
        with seeded_weights(config.seed):
            self.autoencoder = _Network(image_input.channels, preprocessing.size, config)

    def describe(self) -> dict[str, str | int | float]:
        """See the base class."""
        height, width = (-(-size // 2 ** len(_WIDTHS)) for size in self.preprocessing.config.size)
        pixels = math.prod(self.preprocessing.config.size)
        return {
            "bottleneck": f"{height}×{width}×{self.method.latent}",
            "score": f"{1 - self.ranked / pixels:.4g} quantile of the map",
        }

    def network(self, x: Tensor) -> tuple[Tensor, ...]:
        """The reconstruction `[N, C, h, w]` of the camera's C channels."""
        return (self.autoencoder(self.own_channels(x)),)

    def own_channels(self, x: Tensor) -> Tensor:
        """Undo the repetition of a gray camera's one channel."""
        return x[:, : self.image_input.channels]

    def score(self, x: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the base class; 1 − SSIM plus weighted L2 at each pixel, and its high quantile."""
        image, (reconstruction,) = self.own_channels(x), features
        structural = 1 - ssim(image, reconstruction, self.window)
        squared = (image - reconstruction).square()
        both = structural + self.method.l2_weight * squared
        anomaly_map = both.mean(dim=1, keepdim=True)
        ranked = anomaly_map.flatten(1).topk(self.ranked, dim=1).values
        return ranked[:, -1], anomaly_map

    @property
    def ranked(self) -> int:
        """Pixels of the map from its maximum to the one whose value is the score.

        Large maps have more of them than backends sort: the quantile is then a higher one.
        """
        height, width = self.preprocessing.config.size
        beyond = round((1 - self.method.score_quantile) * height * width)
        return min(max(1, beyond), _MOST_RANKED)


def ssim(first: Tensor, second: Tensor, window: Tensor) -> Tensor:
    """Structural similarity at each pixel (Wang et al. 2004), of images in [0, 1].

    Args:
        first: [N, C, h, w].
        second: likewise.
        window: weights of the neighbours along one axis, odd in number, their sum one.

    Returns:
        [N, C, h, w]; the borders see the image reflected.
    """
    # Around ½ the moments lose fewer digits to cancellation in float32, and stay the same.
    a, b = first - 0.5, second - 0.5
    mean_a, mean_b = _weighted(a, window), _weighted(b, window)
    variance_a = _weighted(a * a, window) - mean_a * mean_a
    variance_b = _weighted(b * b, window) - mean_b * mean_b
    covariance = _weighted(a * b, window) - mean_a * mean_b
    bright_a, bright_b = mean_a + 0.5, mean_b + 0.5
    luminance = (2 * bright_a * bright_b + _C1) / (bright_a**2 + bright_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return luminance * structure


def _weighted(image: Tensor, window: Tensor) -> Tensor:
    channels = image.shape[1]
    radius = window.numel() // 2
    padded = functional.pad(image, [radius] * 4, mode="reflect")
    rows = functional.conv2d(
        padded, window.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels
    )
    return functional.conv2d(
        rows, window.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels
    )


def fit(  # noqa: PLR0913 - the call that all families share
    images: Sequence[ImageArray],
    config: AutoencoderConfig,
    image_input: ImageInput,
    *,
    size: tuple[int, int] | None = None,
    quantile: float = 0.95,
    progress: TrainingProgress = no_progress,
    training: Training | None = None,
) -> Autoencoder:
    """Train the autoencoder on normal images; those held out set the thresholds.

    Args:
        images: normal images, each `[H, W, C]`.
        config: choices of the method.
        image_input: size and channels of the images.
        size: the network's input, default the camera's size.
        quantile: fraction of the held-out images that stays below the thresholds.
        progress: told about each step and its loss.
        training: time limit and resumption.

    Raises:
        InputError: no image, an image too small, or a loss that is not finite.
    """
    detector = Autoencoder(config, image_input, size=size).to(training_device())
    normal = NormalImages(images, detector.preprocessing, seed=config.seed)

    def loss(x: Tensor, _generator: torch.Generator) -> Tensor:
        return detector.score(x, detector.network(x))[1].mean()

    plan = Plan.of(detector, "train", config)
    stage = train(detector.autoencoder, loss, normal, plan, training or Training(), progress)
    finish(detector, stage)
    set_thresholds(detector, normal, quantile, progress)
    return detector
