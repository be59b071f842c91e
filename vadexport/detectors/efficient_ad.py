"""An EfficientAD-style pair (Batzner et al., WACV 2024): teacher, student and autoencoder.

The paper distils its small teacher once, on ImageNet, from a wide ResNet. No such teacher and no
ImageNet are at hand here, so **the teacher is distilled on the normal images themselves** and on
altered copies of them (collages, inverted, with noise and other contrast), from the pretrained
backbone's features. It therefore knows less of what it has not seen than the paper's does. For
the same reason the paper's penalty, which keeps the student from imitating the teacher on
ImageNet images, is left out. As in the paper: teacher's channels normalised on normal images, hard
feature loss, an autoencoder for faults in the arrangement of parts, both maps normalised by their
quantiles on held-out images. Further differences: narrower networks, a hundredth of the values
instead of a thousandth in the hard loss, a bottleneck of 1/64 of the resolution instead of one
vector, no dropout, light and contrast altered together and by up to a fifth, and far fewer steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vadexport.contract import ImageArray, ImageInput
from vadexport.detectors.backbones import Backbone, create_backbone
from vadexport.detectors.base import Detector, choice
from vadexport.detectors.normal_images import NormalImages
from vadexport.detectors.patch_description import (
    BORDER,
    Teaching,
    autoencoder,
    collages,
    description_network,
    description_size,
    other_light,
)
from vadexport.detectors.preprocessing import PreprocessingConfig
from vadexport.detectors.ranges import check_seed, check_training
from vadexport.detectors.seeds import seeded_weights
from vadexport.detectors.stages import Stage
from vadexport.detectors.stored_config import read_config
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

#: Of each map's values on held-out images, these quantiles become 0 and 0.1 (paper, section 3.4).
_LOW, _HIGH = 0.9, 0.995
_HIGH_VALUE = 0.1
#: Share of the minutes that the teacher's distillation may take.
_TEACHER_SHARE = 0.4
_WEIGHT_DECAY = 1e-5
#: Normal images that the teacher is normalised by, at most.
_MEASURED = 64
#: More map values than this are thinned out evenly before their quantiles are taken.
_MOST_VALUES = 4_000_000


@dataclass(frozen=True)
class EfficientAdConfig:
    """Choices of the method.

    Attributes:
        backbone: that the teacher is distilled from, see `create_backbone`; not in the detector.
        levels: of its features, pooled, resized to a quarter of the image and put side by side.
        width: channels of the patch networks' first layer; 128 in the paper.
        hard_share: of the squared differences, the largest, that the student learns from; 0.001
            in the paper, whose training is 200 times longer.
        teacher_steps: of distillation, at most.
        steps: of training student and autoencoder, at most.
        batch_size: images a step; one in the paper.
        learning_rate: of Adam.
        seed: of first weights, batches, alterations and the held-out images.
    """

    backbone: str = choice("efficientnet_lite0", "efficientnet_lite0 … lite2, or any timm model.")
    levels: tuple[int, ...] = choice(
        (1, 2), "Feature levels that the teacher learns; level l has stride 2^(l+1)."
    )
    width: int = choice(24, "Channels of the first layer; 128 in the paper.")
    hard_share: float = choice(0.01, "Of the differences, the largest, that the student learns.")
    teacher_steps: int = choice(200, "Steps of the teacher's distillation, at most.")
    steps: int = choice(300, "Steps of training student and autoencoder, at most.")
    batch_size: int = choice(2, "Images a step.")
    learning_rate: float = choice(0.001, "Of Adam.")
    seed: int = choice(0, "Of the first weights and of the batches.")

    def __post_init__(self) -> None:
        check_training(
            self.teacher_steps,
            self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )
        check_seed(self.seed)
        if not 1 <= self.width <= 512:
            raise InputError(f"the width is in 1 … 512 channels, not {self.width}")
        if not 0 < self.hard_share <= 1:
            raise InputError(f"the hard share is in (0, 1], not {self.hard_share}")


class EfficientAd(Detector):
    """A student that follows its teacher, and an autoencoder, on normal images alone."""

    family: ClassVar[str] = "efficient_ad"
    config_class: ClassVar[type[Any]] = EfficientAdConfig
    label: ClassVar[str] = "EfficientAD"
    method: EfficientAdConfig
    quantiles: Tensor

    def __init__(
        self,
        config: EfficientAdConfig,
        image_input: ImageInput,
        preprocessing: PreprocessingConfig,
        channels: int,
    ) -> None:
        """Make an untrained detector.

        Args:
            config: choices of the method.
            image_input: camera images.
            preprocessing: to the networks' input.
            channels: of the teacher's description of a patch.
        """
        super().__init__(config, image_input, preprocessing)
        self.channels = channels
        size = description_size(preprocessing.size)
        with seeded_weights(config.seed):
            self.teacher = description_network(config.width, channels)
            self.student = description_network(config.width, 2 * channels)
            self.autoencoder = autoencoder(config.width, channels, preprocessing.size, size)
        # Of the student's map, then of the autoencoder's: the values that become 0 and 0.1.
        self.register_buffer("quantiles", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        image_input: ImageInput,
        preprocessing: PreprocessingConfig,
        state: Mapping[str, Tensor],
    ) -> Self:
        """See the base class."""
        method = read_config(cls.config_class, config, cls.label)
        last = state.get("teacher.last.weight", torch.zeros(0))
        if last.ndim != 4 or not 0 < last.shape[0] <= 4096:
            raise InputError(f"the teacher's weights have the shape {tuple(last.shape)}: damaged")
        return cls(method, image_input, preprocessing, last.shape[0])

    def describe(self) -> dict[str, str | int | float]:
        """See the base class."""
        levels = " and ".join(map(str, self.method.levels))
        return {
            "teacher": f"{self.channels} channels, distilled from {self.method.backbone}, "
            f"levels {levels}, on the normal images"
        }

    def network(self, x: Tensor) -> tuple[Tensor, ...]:
        """What teacher `[N, C, h, w]`, student `[N, 2C, h, w]` and autoencoder say of `x`."""
        return (self.teacher(x), self.student(x), self.autoencoder(x))

    def differences(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps `[N, 1, h, w]` of teacher against student, and autoencoder against student."""
        taught, learnt, rebuilt = features
        first = (taught - learnt[:, : self.channels]).square().mean(dim=1, keepdim=True)
        second = (rebuilt - learnt[:, self.channels :]).square().mean(dim=1, keepdim=True)
        return first, second

    def score(self, x: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the base class; the mean of both maps, each normalised by its quantiles.

        Only whole patches are described: the image's border gets what its nearest patch has.
        """
        del x
        total: Tensor | None = None
        for limits, difference in zip(self.quantiles, self.differences(features), strict=True):
            padded = functional.pad(difference, [BORDER] * 4, mode="replicate")
            large = functional.interpolate(
                padded, self.preprocessing.config.size, mode="bilinear", align_corners=False
            )
            low, high = limits[0], limits[1]
            normalised = _HIGH_VALUE / 2 * (large - low) / (high - low)
            total = normalised if total is None else total + normalised
        if total is None:
            raise InputError("there is no map")
        return total.amax(dim=(1, 2, 3)), total


def fit(  # noqa: PLR0913 - the call that all families share
    images: Sequence[ImageArray],
    config: EfficientAdConfig,
    image_input: ImageInput,
    *,
    size: tuple[int, int] | None = None,
    quantile: float = 0.95,
    progress: TrainingProgress = no_progress,
    training: Training | None = None,
) -> EfficientAd:
    """Distil the teacher, then train student and autoencoder, on normal images.

    Args:
        images: normal images, each `[H, W, C]`.
        config: choices of the method.
        image_input: size and channels of the images.
        size: the networks' input, default the camera's size.
        quantile: fraction of the held-out images that stays below the thresholds.
        progress: told about each step and its loss.
        training: time limit and resumption.

    Raises:
        InputError: no image, an image too small, or a loss that is not finite.
    """
    training = training or Training()
    backbone = create_backbone(config.backbone, config.levels, pretrained=True)
    preprocessing = PreprocessingConfig.of_network(backbone, image_input, size)
    detector = EfficientAd(config, image_input, preprocessing, sum(backbone.channels))
    device = training_device()
    detector.to(device)
    normal = NormalImages(images, detector.preprocessing, seed=config.seed)
    taught = _distil(detector, backbone.to(device), normal, training, progress)
    _normalise_teacher(detector, normal)
    learnt = _train_student(detector, normal, training.part(1 - _TEACHER_SHARE), progress)
    finish(detector, taught, learnt)
    detector.quantiles = _map_quantiles(detector, normal)
    set_thresholds(detector, normal, quantile, progress)
    return detector


def _distil(
    detector: EfficientAd,
    backbone: Backbone,
    normal: NormalImages,
    training: Training,
    progress: TrainingProgress,
) -> Stage:
    """Teach the teacher the backbone's features of normal images and altered copies."""
    teaching = Teaching(backbone, normal)

    def loss(x: Tensor, generator: torch.Generator) -> Tensor:
        altered = collages(x, generator)
        return functional.mse_loss(detector.teacher(altered), teaching.of(altered))

    method = detector.method
    plan = Plan.of(
        detector, "teacher", method, steps=method.teacher_steps, weight_decay=_WEIGHT_DECAY
    )
    stage = train(detector.teacher, loss, normal, plan, training.part(_TEACHER_SHARE), progress)
    detector.teacher.requires_grad_(requires_grad=False)
    return stage


@torch.no_grad()
def _normalise_teacher(detector: EfficientAd, normal: NormalImages) -> None:
    """Bring the teacher's channels to mean 0 and deviation 1 on normal images, in its last layer.

    So each counts alike in losses and maps (paper, algorithm 1), however well it was distilled.
    """
    indices = normal.training[:_MEASURED]
    mean = square = torch.zeros(())
    for index in indices:
        found = detector.teacher(normal.batch([index])).double()
        mean = mean + found.mean(dim=(0, 2, 3)) / len(indices)
        square = square + found.square().mean(dim=(0, 2, 3)) / len(indices)
    std = (square - mean.square()).clamp_min(1e-8).sqrt()
    last = detector.teacher.get_submodule("last")
    weight, bias = last.get_parameter("weight"), last.get_parameter("bias")
    weight.copy_(weight.double() / std.view(-1, 1, 1, 1))
    bias.copy_((bias.double() - mean) / std)


def _train_student(
    detector: EfficientAd, normal: NormalImages, training: Training, progress: TrainingProgress
) -> Stage:
    pair = nn.ModuleDict({"student": detector.student, "autoencoder": detector.autoencoder})
    channels = detector.channels

    def loss(x: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            taught = detector.teacher(x)
        hard = hardest((taught - detector.student(x)[:, :channels]).square(), share)
        altered = other_light(x, generator)
        with torch.no_grad():
            taught = detector.teacher(altered)
        rebuilt = detector.autoencoder(altered)
        followed = detector.student(altered)[:, channels:]
        return hard + functional.mse_loss(rebuilt, taught) + functional.mse_loss(followed, rebuilt)

    share = detector.method.hard_share
    plan = Plan.of(detector, "student", detector.method, weight_decay=_WEIGHT_DECAY)
    return train(pair, loss, normal, plan, training, progress)


def hardest(differences: Tensor, share: float) -> Tensor:
    """Mean of the largest `share` of the values: the hard feature loss (paper, eq. 1)."""
    flat = differences.flatten()
    return flat.topk(max(1, round(flat.numel() * share))).values.mean()


@torch.inference_mode()
def _map_quantiles(detector: EfficientAd, normal: NormalImages) -> Tensor:
    """The values of both maps on held-out images that become 0 and 0.1, float32 [2, 2]."""
    values: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index in normal.held_out:
        x = normal.batch([index])
        for kept, found in zip(values, detector.differences(detector.network(x)), strict=True):
            every = -(-found.numel() * len(normal.held_out) // _MOST_VALUES)
            kept.append(found.flatten()[::every].double())
    at = torch.tensor([_LOW, _HIGH], dtype=torch.float64)
    limits = torch.stack([torch.cat(kept).quantile(at) for kept in values]).to(torch.float32)
    if not (limits.isfinite().all() and (limits[:, 1] > limits[:, 0]).all()):
        raise InputError(
            "the maps of the held-out images have no spread to normalise by: are the images all "
            "of one colour?"
        )
    return limits.clone()
