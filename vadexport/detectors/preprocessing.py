"""Preprocessing as PyTorch trainers do it: the reference that exports are held against."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vadexport.errors import InputError

#: Largest height and width of a network's input, as of a camera's image.
MAX_SIDE = 16384


@dataclass(frozen=True)
class PreprocessingConfig:
    """How camera pixels become the network's input.

    Attributes:
        size: height and width that the network takes; other camera sizes are resized with
            bilinear interpolation and antialiasing, as torchvision's `Resize` does on a tensor.
        mean: subtracted from each channel of the image in [0, 1].
        std: each channel is divided by it after that.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def to_json(self) -> dict[str, Any]:
        """The form that checkpoints hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` wrote; raises InputError where it is something else."""
        try:
            height, width = (int(size) for size in value["size"])
            red, green, blue = (float(mean) for mean in value["mean"])
            stds = tuple(float(std) for std in value["std"])
            if len(stds) != len(value["mean"]) or min(stds) <= 0:
                raise ValueError("std")
            if not all(map(math.isfinite, (red, green, blue, *stds))):
                raise ValueError("mean or std is not finite")
            if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
                raise ValueError(f"size {height}x{width} is outside 1 … {MAX_SIDE} pixels")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the preprocessing configuration is damaged: {error}") from None
        return cls((height, width), (red, green, blue), (stds[0], stds[1], stds[2]))


class Preprocessing(nn.Module):
    """Camera image to network input: scale to [0, 1], resize, normalise."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: PreprocessingConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Preprocess `uint8 [N, H, W, C]` to `float32 [N, 3, h, w]`; gray is repeated thrice."""
        x = image.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        if tuple(x.shape[-2:]) != self.config.size:
            x = functional.interpolate(
                x, self.config.size, mode="bilinear", align_corners=False, antialias=True
            )
        return (x - self.mean) / self.std
