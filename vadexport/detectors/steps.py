"""What happens to an image before the network, as steps that PyTorch and graphs both can take.

PyTorch takes a step as trainers do. A graph is made for one camera size, and there every resize is
linear and separable: two constant matrices, read off PyTorch's own resize of a unit matrix, give
the same pixels on every backend. ONNX `Resize` with antialiasing does not, and some backends lack
it.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from vadexport.contract import ImageInput
from vadexport.errors import InputError

Interpolation = Literal["nearest", "nearest-exact", "bilinear", "bicubic"]
#: Largest height and width that a step may ask for.
MAX_SIDE: Final = 16384


@dataclass(frozen=True)
class Resize:
    """Resize to a height and a width.

    Attributes:
        size: height and width; one number is the shorter side, the other keeps the aspect.
        interpolation: as `torch.nn.functional.interpolate` names it.
        antialias: average over all pixels that a smaller image covers.
    """

    size: tuple[int, int] | int
    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        _check_size(self.size)
        if self.interpolation not in get_args(Interpolation):
            known = ", ".join(get_args(Interpolation))
            raise InputError(f"interpolation {self.interpolation!r} is none of {known}")

    def __str__(self) -> str:
        size = "×".join(map(str, (self.size,) if isinstance(self.size, int) else self.size))
        short = " (shorter side)" if isinstance(self.size, int) else ""
        return f"resize to {size}{short}, {self.interpolation}{' antialiased' * self.antialias}"

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of that size becomes."""
        if not isinstance(self.size, int):
            return self.size
        if height <= width:
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size


@dataclass(frozen=True)
class CenterCrop:
    """Cut the middle out; what is larger than the image is filled up with zeros.

    Attributes:
        size: height and width.
    """

    size: tuple[int, int]

    def __post_init__(self) -> None:
        _check_size(self.size)

    def __str__(self) -> str:
        return f"centre crop to {self.size[0]}×{self.size[1]}"


@dataclass(frozen=True)
class Normalise:
    """Subtract a mean from each channel, and divide by a deviation.

    Attributes:
        mean: three numbers, in units of the image from 0 to 1.
        std: likewise, above 0.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if [len(self.mean), len(self.std)] != [3, 3] or not finite:
            raise InputError("mean and std are three finite numbers each")
        if min(self.std) <= 0:
            raise InputError(f"std is above 0, not {self.std}")

    def __str__(self) -> str:
        mean, std = ("/".join(f"{v:.3f}" for v in each) for each in (self.mean, self.std))
        return f"mean {mean}, std {std}"


@dataclass(frozen=True)
class SwapChannels:
    """RGB to BGR, for networks that were trained on images as OpenCV reads them."""

    def __str__(self) -> str:
        return "RGB to BGR"


@dataclass(frozen=True)
class SquarePad:
    """Repeat the border along the shorter sides until the image is square."""

    def __str__(self) -> str:
        return "pad to a square"


Step = Resize | CenterCrop | SquarePad | Normalise | SwapChannels


_NAMES: Final[dict[str, type[Any]]] = {
    "resize": Resize,
    "crop": CenterCrop,
    "square_pad": SquarePad,
    "normalise": Normalise,
    "swap_channels": SwapChannels,
}


def step_json(step: Step) -> dict[str, Any]:
    """A step as plain JSON values."""
    name = next(name for name, kind in _NAMES.items() if isinstance(step, kind))
    values = dataclasses.asdict(step).items()
    return {
        "step": name,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in values},
    }


def read_step(value: Any) -> Step:
    """Read what `step_json` gave; raises KeyError, TypeError or InputError for anything else."""
    fields = {
        key: tuple(each) if isinstance(each, list) else each
        for key, each in value.items()
        if key != "step"
    }
    found: Step = _NAMES[value["step"]](**fields)
    return found


def _check_size(size: tuple[int, int] | int) -> None:
    sides = (size,) if isinstance(size, int) else size
    if not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
        raise InputError(f"a size is 1 … {MAX_SIDE} pixels a side, not {size}")


def in_unit_range(image: Tensor) -> Tensor:
    """A call of the graph to float32 `[N, C, H, W]` from 0 to 1.

    Args:
        image: camera values `[N, H, W, C]`, uint8 or uint16, which are divided by the largest that
            their dtype has; or float32, which is taken as it is.
    """
    if image.dtype == torch.float32:
        return image
    return image.permute(0, 3, 1, 2).to(torch.float32) / float(torch.iinfo(image.dtype).max)


class EagerPreprocessing(nn.Module):
    """A call of the graph to the network's input, by PyTorch's own operators."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, image: Tensor) -> Tensor:
        """`[N, H, W, C]`, uint8 or uint16, or float32 `[N, C, H, W]`, to float32 `[N, 3, h, w]`."""
        x = in_unit_range(image)
        for step in self.steps:
            x = _taken(step, x)
        return x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1)


def _taken(step: Step, x: Tensor) -> Tensor:
    match step:
        case Resize():
            size = step.of(*x.shape[-2:])
            if size == tuple(x.shape[-2:]):
                return x
            return _interpolated(x, size, step)
        case CenterCrop():
            return _cropped(x, step)
        case SquarePad():
            return _padded(x)
        case Normalise():
            mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in _both(step))
            return (x - mean) / std
        case SwapChannels():
            return x.flip(1)


def _both(step: Normalise) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return step.mean, step.std


def _interpolated(x: Tensor, size: tuple[int, int], step: Resize) -> Tensor:
    if step.interpolation in ("bilinear", "bicubic"):
        return functional.interpolate(
            x, size, mode=step.interpolation, align_corners=False, antialias=step.antialias
        )
    return functional.interpolate(x, size, mode=step.interpolation)


def _padded(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    rows, columns = max(0, width - height), max(0, height - width)
    borders = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
    return functional.pad(x, borders, mode="replicate") if rows or columns else x


def _cropped(x: Tensor, step: CenterCrop) -> Tensor:
    height, width = x.shape[-2:]
    rows, columns = step.size
    # Odd differences are rounded as torchvision's `center_crop` rounds them.
    left, top = max(0, (columns - width) // 2), max(0, (rows - height) // 2)
    if left or top or rows > height or columns > width:
        right, bottom = max(0, (columns - width + 1) // 2), max(0, (rows - height + 1) // 2)
        x = functional.pad(x, [left, right, top, bottom])
        height, width = x.shape[-2:]
    top, left = round((height - rows) / 2), round((width - columns) / 2)
    return x[:, :, top : top + rows, left : left + columns]


class GraphPreprocessing(nn.Module):
    """Does what `EagerPreprocessing` does, for one camera size, with constant matrices."""

    def __init__(self, steps: tuple[Step, ...], image_input: ImageInput) -> None:
        super().__init__()
        size = (image_input.height, image_input.width)
        parts: list[nn.Module] = []
        for step in steps:
            match step:
                case Resize():
                    target = step.of(*size)
                    if target != size:
                        parts.append(_Matrices(size, target, step))
                    size = target
                case CenterCrop():
                    parts.append(_Crop(step))
                    size = step.size
                case SquarePad():
                    parts.append(_Pad())
                    size = (max(size), max(size))
                case Normalise():
                    parts.append(_Affine(step))
                case SwapChannels():
                    parts.append(_Swap())
        self.parts = nn.ModuleList(parts)
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        """As `EagerPreprocessing`."""
        x = in_unit_range(image)
        for part in self.parts:
            x = part(x)
        return x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1)


def resize_matrix(source: int, target: int, step: Resize) -> Tensor:
    """Matrix float32 [target, source] of PyTorch's own resize of one axis.

    In float32, as the reference computes: where it places its weights is rounded, too, by up to a
    ten-thousandth, and a matrix without that would be further from its pixels.
    """
    unit = torch.eye(source)[None, None]
    return _interpolated(unit, (target, source), step)[0, 0]


class _Matrices(nn.Module):
    rows: Tensor
    columns: Tensor

    def __init__(self, source: tuple[int, int], target: tuple[int, int], step: Resize) -> None:
        super().__init__()
        self.register_buffer("rows", resize_matrix(source[0], target[0], step))
        columns = resize_matrix(source[1], target[1], step).T.contiguous()
        self.register_buffer("columns", columns)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns


class _Crop(nn.Module):
    def __init__(self, step: CenterCrop) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return _cropped(x, self.step)


class _Pad(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _padded(x)


class _Affine(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, step: Normalise) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(step.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(step.std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class _Swap(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 2:], x[:, 1:2], x[:, :1]], dim=1) if x.shape[1] == 3 else x
