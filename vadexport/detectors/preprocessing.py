"""Preprocessing as PyTorch trainers do it: the reference that exports are held against."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vadexport.contract import ImageInput
from vadexport.detectors.steps import Normalise, Resize, Step, in_unit_range
from vadexport.errors import InputError

#: Largest height and width of a network's input, as of a camera's image.
MAX_SIDE: Final = 16384
#: Largest number of its pixels: beyond that the first feature map alone takes half a gigabyte.
MAX_PIXELS: Final = 4096 * 4096


def check_size(size: Any) -> None:
    """Raises InputError where a network's input, height and width, is no size or too large."""
    if type(size) is not tuple or [type(side) for side in size] != [int, int]:
        raise InputError(f"the network's input is a height and a width, not {size}")
    height, width = size
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise InputError(f"the network's input is 1 … {MAX_SIDE} pixels a side, not {_named(size)}")
    if height * width > MAX_PIXELS:
        raise InputError(
            f"the network's input has at most {MAX_PIXELS} pixels, like 4096x4096, not "
            f"{_named(size)}: images are resized to what --size says"
        )


def _named(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


class Normalised(Protocol):
    """A network that was trained on images from which `mean` was taken, divided by `std`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class PreprocessingConfig:
    """How camera pixels become the network's input.

    Attributes:
        size: height and width that the network takes; other camera sizes are resized with
            bilinear interpolation and antialiasing, as torchvision's `Resize` does on a tensor.
        mean: subtracted from each channel of the image in [0, 1].
        std: each channel is divided by it after that.

    Raises:
        InputError: a size as `check_size` refuses it, or a mean or std that is no three finite
            numbers, those of std above 0.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        check_size(self.size)
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if [len(self.mean), len(self.std)] != [3, 3] or not finite:
            raise InputError("mean and std are three finite numbers each")
        if min(self.std) <= 0:
            raise InputError(f"std is above 0, not {self.std}")

    @classmethod
    def of_network(
        cls, network: Normalised, image_input: ImageInput, size: tuple[int, int] | None = None
    ) -> Self:
        """For a network's input of `size`, default the camera's, normalised as it was trained."""
        return cls(size or (image_input.height, image_input.width), network.mean, network.std)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The same as steps, which graphs take."""
        return (Resize(self.size), Normalise(self.mean, self.std))

    def to_json(self) -> dict[str, Any]:
        """The form that checkpoints hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` wrote; raises InputError where it is something else."""
        try:
            height, width = value["size"]
            red, green, blue = map(float, value["mean"])
            red_std, green_std, blue_std = map(float, value["std"])
            return cls((height, width), (red, green, blue), (red_std, green_std, blue_std))
        except (InputError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the preprocessing configuration is damaged: {error}") from None


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
        """Preprocess a call, as `in_unit_range` takes it, to `float32 [N, 3, h, w]`.

        Gray is repeated thrice.
        """
        x = in_unit_range(image)
        if tuple(x.shape[-2:]) != self.config.size:
            x = functional.interpolate(
                x, self.config.size, mode="bilinear", align_corners=False, antialias=True
            )
        return (x - self.mean) / self.std
