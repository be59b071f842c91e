"""Small networks that describe patches, and what they are taught (EfficientAD's PDN)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from vadexport.detectors.backbones import Backbone
from vadexport.detectors.normal_images import NormalImages
from vadexport.errors import InputError

#: A description covers the image but for a border, this wide in pixels of the description.
BORDER = 4
#: Smallest side of the networks' input.
SMALLEST = 64
#: Channels of the autoencoder's bottleneck, at most 1/64 of the resolution.
_LATENT = 64
_HALVINGS = 6
#: Normal images that the teacher's features are normalised by, at most.
_MEASURED = 64


def description_network(width: int, channels: int) -> nn.Sequential:
    """PDN-S (paper, table 6) with `width` in place of 128: a 33-pixel patch, stride 4."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(3, width, 4),
            first_relu=nn.ReLU(),
            first_pool=nn.AvgPool2d(2, 2),
            second=nn.Conv2d(width, 2 * width, 4),
            second_relu=nn.ReLU(),
            second_pool=nn.AvgPool2d(2, 2),
            third=nn.Conv2d(2 * width, 2 * width, 3),
            third_relu=nn.ReLU(),
            last=nn.Conv2d(2 * width, channels, 4),
        )
    )


def description_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the description of an image of `size`.

    Raises:
        InputError: the image is too small.
    """
    if min(size) < SMALLEST:
        raise InputError(f"{size} is too small: the networks take {SMALLEST} pixels and more")
    height, width = (((side - 3) // 2 - 3) // 2 - 5 for side in size)
    return height, width


def autoencoder(
    width: int, channels: int, size: tuple[int, int], described: tuple[int, int]
) -> nn.Sequential:
    """From images of `size` through a bottleneck to descriptions of the size `described`.

    The paper's is made for 256 pixels, its bottleneck one vector; here a 64th of the resolution
    is left, so that other sizes and shapes fit. Its dropout is left out.
    """
    layers: list[nn.Module] = []
    inputs, sizes = 3, [size]
    for number in range(_HALVINGS):
        outputs = width if number < 2 else 2 * width
        layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.ReLU()]
        inputs = outputs
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    layers += [nn.Conv2d(inputs, _LATENT, 1)]
    inputs = _LATENT
    # Back up to an eighth of the image, then to the description itself.
    for wanted in [*sizes[-2:2:-1], described]:
        layers += [
            nn.Upsample(wanted, mode="bilinear", align_corners=False),
            nn.Conv2d(inputs, 2 * width, 3, padding=1),
            nn.ReLU(),
        ]
        inputs = 2 * width
    layers.append(nn.Conv2d(inputs, channels, 3, padding=1))
    return nn.Sequential(*layers)


class Teaching:
    """The backbone's features, brought to mean 0 and deviation 1 by the normal images."""

    def __init__(self, backbone: Backbone, normal: NormalImages) -> None:
        """Measure the features of normal images.

        Args:
            backbone: pretrained, on the device of the images.
            normal: of which those to train on are measured.
        """
        self._backbone = backbone
        self._mean = self._std = torch.zeros(1)
        with torch.no_grad():
            found = [self._raw(normal.batch([index])) for index in normal.training[:_MEASURED]]
        count = len(found)
        mean = torch.stack([each.mean(dim=(0, 2, 3)) for each in found]).sum(dim=0) / count
        squares = torch.stack([each.square().mean(dim=(0, 2, 3)) for each in found]).sum(dim=0)
        variance = (squares / count - mean.square()).clamp_min(1e-8)
        self._mean, self._std = mean.view(1, -1, 1, 1), variance.sqrt().view(1, -1, 1, 1)

    @torch.no_grad()
    def of(self, x: Tensor) -> Tensor:
        """What the teacher should say of `x`: `[N, C, h, w]` of `description_size`."""
        return (self._raw(x) - self._mean) / self._std

    def _raw(self, x: Tensor) -> Tensor:
        height, width = description_size((x.shape[2], x.shape[3]))
        whole = (height + 2 * BORDER, width + 2 * BORDER)
        levels = [
            functional.interpolate(
                functional.avg_pool2d(level, 3, stride=1, padding=1),
                whole,
                mode="bilinear",
                align_corners=False,
            )
            for level in self._backbone(x)
        ]
        return torch.cat(levels, dim=1)[:, :, BORDER:-BORDER, BORDER:-BORDER]


def collages(x: Tensor, generator: torch.Generator) -> Tensor:
    """Altered copies of normal images, so that a teacher sees more than normal structure.

    Half of each batch stays as it is; in the others a part of another image, mirrored, inverted
    or of other contrast, is pasted, and noise is added.
    """
    altered = []
    count, _, height, width = x.shape
    for number in range(count):
        image = x[number]
        if _uniform(generator, 0, 1) < 0.5:
            altered.append(image)
            continue
        other = x[int(torch.randint(count, (1,), generator=generator))].flip(
            dims=[1 + int(torch.randint(2, (1,), generator=generator))]
        )
        other = other * _uniform(generator, -1.5, 1.5) + _uniform(generator, -0.5, 0.5)
        top, left = _uniform(generator, 0, 0.8), _uniform(generator, 0, 0.8)
        rows = (torch.arange(height) / height - top - 0.1).abs() < _uniform(generator, 0.02, 0.4)
        columns = (torch.arange(width) / width - left - 0.1).abs() < _uniform(generator, 0.02, 0.4)
        inside = (rows[:, None] & columns[None, :]).to(x.device)
        pasted = torch.where(inside, other, image)
        noise = torch.randn(image.shape, generator=generator).to(x.device)
        altered.append(pasted + noise * _uniform(generator, 0, 0.2))
    return torch.stack(altered).contiguous(memory_format=torch.channels_last)


def other_light(x: Tensor, generator: torch.Generator) -> Tensor:
    """Normal images, a little brighter or darker and of other contrast.

    The paper alters one of brightness, contrast and saturation, before the image is normalised.
    """
    count = x.shape[0]
    gain = 0.8 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    offset = 0.4 * torch.rand(count, 1, 1, 1, generator=generator) - 0.2
    return x * gain.to(x.device) + offset.to(x.device)


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))
