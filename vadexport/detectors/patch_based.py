"""What families share that compare patches with those of normal images."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vadexport.contract import ImageArray, ImageInput
from vadexport.detectors.backbones import create_backbone
from vadexport.detectors.base import Detector, Progress
from vadexport.detectors.maps import blur_kernel
from vadexport.detectors.preprocessing import PreprocessingConfig
from vadexport.errors import InputError


class PatchMethod(Protocol):
    """What the configurations of these families have in common.

    Attributes:
        backbone: see `create_backbone`.
        levels: feature levels that make up a patch.
        blur_sigma: of the map's Gaussian, in pixels of the network's input.
    """

    @property
    def backbone(self) -> str: ...  # noqa: D102 - the class says it

    @property
    def levels(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def blur_sigma(self) -> float: ...  # noqa: D102


class PatchDetector(Detector):
    """A detector whose patches are described by a frozen, pretrained backbone."""

    blur_kernel: Tensor

    def __init__(
        self,
        config: PatchMethod,
        image_input: ImageInput,
        preprocessing: PreprocessingConfig | None = None,
        *,
        size: tuple[int, int] | None = None,
        pretrained: bool = False,
    ) -> None:
        """Make an unfitted detector.

        Args:
            config: choices of the method.
            image_input: camera images.
            preprocessing: to the network's input; made from the backbone's mean and std and
                `size` where it is None.
            size: the network's input, default the camera's size.
            pretrained: load the backbone's ImageNet weights.
        """
        backbone = create_backbone(config.backbone, config.levels, pretrained=pretrained)
        if preprocessing is None:
            preprocessing = PreprocessingConfig.of_network(backbone, image_input, size)
        super().__init__(config, image_input, preprocessing)
        self.backbone = backbone
        kernel = blur_kernel(config.blur_sigma, preprocessing.size)
        self.register_buffer("blur_kernel", kernel, persistent=False)

    @abstractmethod
    def embed(self, features: Sequence[Tensor]) -> Tensor:
        """Patches `[N, D, h, w]` of the backbone's feature maps."""

    def network(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the backbone's levels."""
        features: tuple[Tensor, ...] = self.backbone(x)
        return features

    def embed_image(self, image: ImageArray) -> Tensor:
        """Patches `[1, D, h, w]` of one camera image, `[H, W, C]`."""
        x = self.preprocessing(torch.from_numpy(image)[None])
        return self.embed(self.network(x))

    def embed_all(self, images: Sequence[ImageArray], progress: Progress) -> Iterator[Tensor]:
        """Patches `[1, D, h, w]` of each image; `progress` is told about each.

        Raises:
            InputError: a feature is not finite.
        """
        for number, image in enumerate(images, 1):
            patches = self.embed_image(image)
            if not patches.isfinite().all():
                raise InputError(f"the backbone's features of image {number} are not finite")
            yield patches
            progress("features", number, len(images))
