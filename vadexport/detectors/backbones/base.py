"""What every backbone offers, and where each is found."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from vadexport.errors import InputError

#: Names of checkpoints are untrusted, and to timm "hf-hub:…" and "local-dir:…" are no names but
#: places that it downloads or reads from.
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class Backbone(nn.Module, ABC):
    """A frozen feature extractor.

    Levels count the halvings of resolution, timm's `out_indices`: level `l` has stride `2^(l+1)`.

    Attributes:
        channels: of each level that was asked for, in order.
        mean: of the images that it was trained on, for values in [0, 1].
        std: likewise.
    """

    channels: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map `float32 [N, 3, H, W]` to one `[N, channels, H/stride, W/stride]` a level."""


def create_backbone(name: str, levels: Sequence[int], *, pretrained: bool) -> Backbone:
    """Build a backbone in evaluation mode, its parameters frozen.

    `efficientnet_lite0` … `efficientnet_lite2` need no package but the one that carries their
    weights; any other name is looked up in timm.

    Args:
        name: `efficientnet_lite0` … `efficientnet_lite2`, or a timm model name.
        levels: feature levels to return, ascending.
        pretrained: load ImageNet weights; False leaves them random, to be loaded by the caller.

    Raises:
        InputError: no such model, level or weights, or a name that leads elsewhere.
        MissingPackageError: timm, or the package with the weights, is not installed.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"the backbone {name!r} is refused: names hold letters, digits and _ . - only, since "
            "others would make timm read a model from somewhere else"
        )
    from vadexport.detectors.backbones import efficientnet_lite, timm_model

    module = efficientnet_lite if name in efficientnet_lite.VARIANTS else timm_model
    backbone: Backbone = module.create(name, tuple(levels), pretrained=pretrained)
    return backbone.eval().requires_grad_(requires_grad=False)
