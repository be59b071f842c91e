"""STFPM (Wang et al., BMVC 2021): a student that learnt its teacher on normal images alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from vadexport.contract import ImageArray, ImageInput
from vadexport.detectors.backbone_based import BackboneDetector
from vadexport.detectors.backbones import Backbone, create_backbone
from vadexport.detectors.base import choice
from vadexport.detectors.maps import blur
from vadexport.detectors.normal_images import NormalImages
from vadexport.detectors.preprocessing import PreprocessingConfig
from vadexport.detectors.ranges import check_blur, check_seed, check_training
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


@dataclass(frozen=True)
class StudentTeacherConfig:
    """Choices of the method.

    Attributes:
        backbone: of teacher and student, see `create_backbone`.
        levels: whose features are compared; the first three after the stem in the paper.
        steps: of training, at most.
        batch_size: images a step.
        learning_rate: of Adam; the paper trains ten times longer by SGD.
        blur_sigma: of the map's Gaussian, in pixels of the network's input; 0, as in the paper,
            for none.
        seed: of the student's first weights, the batches and the held-out images.
    """

    backbone: str = choice("efficientnet_lite0", "efficientnet_lite0 … lite2, or any timm model.")
    levels: tuple[int, ...] = choice(
        (1, 2, 3), "Feature levels that are compared; level l has stride 2^(l+1)."
    )
    steps: int = choice(250, "Steps of training, at most.")
    batch_size: int = choice(4, "Images a step.")
    learning_rate: float = choice(0.003, "Of Adam.")
    blur_sigma: float = choice(
        0.0, "Of the map's Gaussian blur, in pixels of the network's input; 0 for none."
    )
    seed: int = choice(0, "Of the student's first weights and of the batches.")

    def __post_init__(self) -> None:
        check_training(self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate)
        check_seed(self.seed)
        check_blur(self.blur_sigma, optional=True)


class StudentTeacher(BackboneDetector):
    """Where the student's features differ from the teacher's, it has seen nothing alike."""

    family: ClassVar[str] = "student_teacher"
    config_class: ClassVar[type[Any]] = StudentTeacherConfig
    label: ClassVar[str] = "student-teacher"
    method: StudentTeacherConfig

    def __init__(
        self,
        config: StudentTeacherConfig,
        image_input: ImageInput,
        preprocessing: PreprocessingConfig | None = None,
        *,
        size: tuple[int, int] | None = None,
        pretrained: bool = False,
    ) -> None:
        """Make a detector whose student is untrained; arguments as the base class's."""
        super().__init__(config, image_input, preprocessing, size=size, pretrained=pretrained)
        with seeded_weights(config.seed):
            self.student = create_backbone(config.backbone, config.levels, pretrained=False)

    @property
    def teacher(self) -> Backbone:
        """The pretrained backbone."""
        return self.backbone

    def describe(self) -> dict[str, str | int | float]:
        """See the base class."""
        levels = ", ".join(map(str, self.method.levels))
        return {"backbone": f"{self.method.backbone}, levels {levels}"}

    def network(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of the teacher's levels, then of the student's."""
        return (*self.teacher(x), *self.student(x))

    def score(self, x: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the base class; the product of all levels' differences, and its maximum."""
        del x
        count = len(features) // 2
        product: Tensor | None = None
        for taught, learnt in zip(features[:count], features[count:], strict=True):
            level = functional.interpolate(
                feature_difference(taught, learnt),
                self.preprocessing.config.size,
                mode="bilinear",
                align_corners=False,
            )
            product = level if product is None else product * level
        if product is None:
            raise InputError("the student-teacher pair compares at least one level")
        anomaly_map = blur(product, self.blur_kernel) if self.method.blur_sigma > 0 else product
        return anomaly_map.amax(dim=(1, 2, 3)), anomaly_map


def feature_difference(taught: Tensor, learnt: Tensor) -> Tensor:
    """½·‖t − s‖² of features normalised to length one at each position (paper, eq. 1 and 2).

    Args:
        taught: features of the teacher, [N, C, h, w].
        learnt: of the student, likewise.

    Returns:
        Float32 [N, 1, h, w], in [0, 2].
    """
    difference = functional.normalize(taught, dim=1) - functional.normalize(learnt, dim=1)
    return difference.square().sum(dim=1, keepdim=True) / 2


def fit(  # noqa: PLR0913 - the call that all families share
    images: Sequence[ImageArray],
    config: StudentTeacherConfig,
    image_input: ImageInput,
    *,
    size: tuple[int, int] | None = None,
    quantile: float = 0.95,
    progress: TrainingProgress = no_progress,
    training: Training | None = None,
) -> StudentTeacher:
    """Train the student on normal images; those held out set the thresholds.

    Args:
        images: normal images, each `[H, W, C]`.
        config: choices of the method.
        image_input: size and channels of the images.
        size: the networks' input, default the camera's size.
        quantile: fraction of the held-out images that stays below the thresholds.
        progress: told about each step and its loss.
        training: time limit and resumption.

    Raises:
        InputError: no image, a level that the image is too small for, or a loss that is not
            finite.
    """
    detector = StudentTeacher(config, image_input, size=size, pretrained=True)
    detector.eval().to(training_device())
    normal = NormalImages(images, detector.preprocessing, seed=config.seed)
    detector.student.requires_grad_(requires_grad=True)

    def loss(x: Tensor, _generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            taught = detector.teacher(x)
        levels = zip(taught, detector.student(x), strict=True)
        return torch.stack([feature_difference(*level).mean() for level in levels]).sum()

    plan = Plan.of(detector, "train", config, weight_decay=1e-5)
    stage = train(detector.student, loss, normal, plan, training or Training(), progress)
    finish(detector, stage)
    set_thresholds(detector, normal, quantile, progress)
    return detector
