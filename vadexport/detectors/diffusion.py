"""Denoising diffusion, conditioned on the image itself (DDAD, Mousakhan et al. 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from vadexport.contract import ImageArray, ImageInput
from vadexport.detectors.backbone_based import BackboneDetector
from vadexport.detectors.base import choice
from vadexport.detectors.denoising import SIDE_MULTIPLE, TIMES, Denoiser, WayBack
from vadexport.detectors.maps import blur
from vadexport.detectors.normal_images import NormalImages
from vadexport.detectors.preprocessing import PreprocessingConfig
from vadexport.detectors.ranges import check_blur, check_seed, check_training
from vadexport.detectors.seeds import seeded_generator, seeded_weights
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

#: The network's longer side, where none is asked for.
_DEFAULT_SIDE = 64


@dataclass(frozen=True)
class DiffusionConfig:
    """Choices of the method.

    Attributes:
        backbone: that compares image and reconstruction, see `create_backbone`.
        levels: whose features are compared.
        width: channels of the U-Net's first layers.
        start: time, of 1000, up to which an image is noised, and from which it is denoised.
        denoise_steps: deterministic DDIM steps back; up to 10 unroll in a graph, more are a loop.
        guidance: how strongly each step is pulled towards the image (the paper's w).
        steps: of training, at most.
        batch_size: images a step.
        learning_rate: of Adam.
        blur_sigma: of the map's Gaussian, in pixels of the network's input; 0 for none.
        seed: of the first weights, the noise, the batches and the held-out images.
    """

    backbone: str = choice("efficientnet_lite0", "efficientnet_lite0 … lite2, or any timm model.")
    levels: tuple[int, ...] = choice(
        (1, 2), "Feature levels that are compared; level l has stride 2^(l+1)."
    )
    width: int = choice(16, "Channels of the U-Net's first layers, a multiple of 8.")
    start: int = choice(300, "Time, of 1000, up to which an image is noised.")
    denoise_steps: int = choice(6, "DDIM steps back; up to 10 unroll in a graph, more are a loop.")
    guidance: float = choice(2.0, "How strongly each step is pulled towards the image.")
    steps: int = choice(1000, "Steps of training, at most.")
    batch_size: int = choice(8, "Images a step.")
    learning_rate: float = choice(0.0005, "Of Adam.")
    blur_sigma: float = choice(2.0, "Of the map's Gaussian blur, in pixels of the network's input.")
    seed: int = choice(0, "Of the first weights, the noise and the batches.")

    def __post_init__(self) -> None:
        check_training(self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate)
        check_seed(self.seed)
        check_blur(self.blur_sigma, optional=True)
        if not (8 <= self.width <= 512 and self.width % 8 == 0):
            raise InputError(f"the U-Net's width is a multiple of 8 in 8 … 512, not {self.width}")
        if not 1 <= self.denoise_steps <= self.start < TIMES:
            raise InputError(
                f"an image is noised up to a time in 1 … {TIMES - 1} and denoised in at "
                f"most as many steps, not up to {self.start} in {self.denoise_steps}"
            )
        if not 0 <= self.guidance <= 100:
            raise InputError(f"the guidance is in [0, 100], not {self.guidance}")


class Diffusion(BackboneDetector):
    """What differs between an image and its denoised self, in pixels and in features."""

    family: ClassVar[str] = "diffusion"
    config_class: ClassVar[type[Any]] = DiffusionConfig
    label: ClassVar[str] = "diffusion"
    method: DiffusionConfig
    pixel_weight: Tensor

    def __init__(
        self,
        config: DiffusionConfig,
        image_input: ImageInput,
        preprocessing: PreprocessingConfig | None = None,
        *,
        size: tuple[int, int] | None = None,
        pretrained: bool = False,
    ) -> None:
        """Make an untrained detector; arguments as the base class's."""
        super().__init__(config, image_input, preprocessing, size=size, pretrained=pretrained)
        shape = (1, image_input.channels, *self.preprocessing.config.size)
        noise = torch.randn(shape, generator=seeded_generator(config.seed, 0))
        with seeded_weights(config.seed):
            way = WayBack(config.start, config.denoise_steps, config.guidance)
            self.denoiser = Denoiser(noise, way, width=config.width)
        self.register_buffer("pixel_weight", torch.ones(()))

    @staticmethod
    def default_size(image_input: ImageInput) -> tuple[int, int]:
        """The camera's, scaled to at most 64 pixels a side, in steps that the U-Net takes."""
        scale = min(1.0, _DEFAULT_SIDE / max(image_input.height, image_input.width))
        height, width = (
            max(SIDE_MULTIPLE, round(side * scale / SIDE_MULTIPLE) * SIDE_MULTIPLE)
            for side in (image_input.height, image_input.width)
        )
        return height, width

    def describe(self) -> dict[str, str | int | float]:
        """See the base class."""
        levels = " and ".join(map(str, self.method.levels))
        return {
            "backbone": f"{self.method.backbone}, levels {levels}",
            "denoising": f"{self.method.denoise_steps} steps from time {self.method.start}",
        }

    def network(self, x: Tensor) -> tuple[Tensor, ...]:
        """The reconstruction in the scale of `x`, then the features of both, level by level."""
        image = self.to_pixels(x)
        rebuilt = self._to_input(self.denoiser(image))
        return (rebuilt, *self.backbone(x), *self.backbone(rebuilt))

    def to_pixels(self, x: Tensor) -> Tensor:
        """The network's input `[N, 3, h, w]` as the camera's own channels in [-1, 1]."""
        pixels = x * self.preprocessing.std + self.preprocessing.mean
        return 2 * pixels[:, : self.image_input.channels] - 1

    def _to_input(self, image: Tensor) -> Tensor:
        """The way back of `to_pixels`; a gray camera's channel is repeated thrice."""
        pixels = ((image + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)
        return (pixels - self.preprocessing.mean) / self.preprocessing.std

    def score(self, x: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the base class; the maximum of weighted pixel and feature differences."""
        of_pixels, of_features = self.differences(x, features)
        anomaly_map = self.pixel_weight * of_pixels + of_features
        return anomaly_map.amax(dim=(1, 2, 3)), anomaly_map

    def differences(self, x: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean absolute difference of pixels, and summed cosine distance of features, blurred.

        Both float32 [N, 1, h, w] (paper, eq. 8 and 9).
        """
        rebuilt, *levels = features
        count = len(levels) // 2
        of_pixels = (x - rebuilt).abs().mean(dim=1, keepdim=True)
        of_features = torch.zeros_like(of_pixels)
        for seen, expected in zip(levels[:count], levels[count:], strict=True):
            cosine = functional.cosine_similarity(seen, expected, dim=1).unsqueeze(1)
            of_features = of_features + functional.interpolate(
                1 - cosine, of_pixels.shape[-2:], mode="bilinear", align_corners=False
            )
        if self.method.blur_sigma > 0:
            of_pixels = blur(of_pixels, self.blur_kernel)
            of_features = blur(of_features, self.blur_kernel)
        return of_pixels, of_features


def fit(  # noqa: PLR0913 - the call that all families share
    images: Sequence[ImageArray],
    config: DiffusionConfig,
    image_input: ImageInput,
    *,
    size: tuple[int, int] | None = None,
    quantile: float = 0.95,
    progress: TrainingProgress = no_progress,
    training: Training | None = None,
) -> Diffusion:
    """Train the U-Net on normal images; those held out set the pixels' weight and the thresholds.

    The paper takes the weight of pixels against features from the batch that is being scored; here
    it is a constant, so that a score never depends on what else is scored. The paper also adapts
    the backbone to the images; here it stays as ImageNet left it.

    Args:
        images: normal images, each `[H, W, C]`.
        config: choices of the method.
        image_input: size and channels of the images.
        size: the networks' input, default the camera's, scaled to at most 64 pixels a side.
        quantile: fraction of the held-out images that stays below the thresholds.
        progress: told about each step and its loss.
        training: time limit and resumption.

    Raises:
        InputError: no image, a size that the U-Net cannot take, or a loss that is not finite.
        MissingPackageError: diffusers is not installed.
    """
    detector = Diffusion(config, image_input, size=size, pretrained=True).to(training_device())
    normal = NormalImages(images, detector.preprocessing, seed=config.seed)

    def loss(x: Tensor, generator: torch.Generator) -> Tensor:
        return detector.denoiser.loss(detector.to_pixels(x), generator)

    plan = Plan.of(detector, "train", config, evaluate_every=50)
    stage = train(detector.denoiser, loss, normal, plan, training or Training(), progress)
    finish(detector, stage)
    _weigh_pixels(detector, normal, progress)
    set_thresholds(detector, normal, quantile, progress)
    return detector


def _weigh_pixels(detector: Diffusion, normal: NormalImages, progress: TrainingProgress) -> None:
    """Let pixels and features reach equally far on normal images."""
    largest = torch.zeros(2)
    with torch.inference_mode():
        for number, index in enumerate(normal.held_out, 1):
            x = normal.batch([index])
            found = detector.differences(x, detector.network(x))
            largest = torch.maximum(largest, torch.stack([each.amax() for each in found]))
            progress("weight", number, len(normal.held_out))
    if largest[0] > 0:
        detector.pixel_weight = (largest[1] / largest[0]).clone()
