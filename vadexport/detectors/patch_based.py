"""What families share that compare patches with those of normal images."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vadexport.contract import ImageArray
from vadexport.detectors.backbone_based import BackboneDetector
from vadexport.detectors.base import Progress
from vadexport.errors import InputError


class PatchDetector(BackboneDetector):
    """A detector whose patches are described by the backbone."""

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
