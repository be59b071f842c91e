"""ResNets that learnt EfficientNet-Lite0's features, for where no ImageNet weights can be had.

A ResNet with random weights makes features that mean little. Here it learns, through a linear layer
a level that is then dropped, what the feature maps of a pretrained EfficientNet-Lite0 are on crops
of the training images. It is a ResNet whose weights were trained, on little; not an ImageNet one.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from vadexport.detectors.backbones import Backbone, create_backbone, timm_model
from vadexport.detectors.patchcore import PatchCoreConfig
from vadexport.fitting import FitOptions, fit
from vadexport.images import decode, training_images
from vadexport.listening import Listener

LEVELS = (2, 3)
#: Steps that each learns for, some minutes on a processor.
STEPS = {"resnet18": 400, "wide_resnet50_2": 120}
_BATCH, _CROP, _RATE = 8, 128, 1e-3


def fit_patchcore(name: str, images: Path, destination: Path) -> None:
    """Fit PatchCore with the distilled ResNet `name` on the images that it learnt on."""
    state = distil(name, images).state_dict()
    make = timm_model.create

    def create(wanted: str, levels: tuple[int, ...], *, pretrained: bool) -> Backbone:
        backbone = make(wanted, levels, pretrained=False)
        if pretrained:
            backbone.load_state_dict(state)
        return backbone

    with mock.patch.object(timm_model, "create", create):
        config = PatchCoreConfig(backbone=name, levels=LEVELS)
        fit(FitOptions("patchcore", str(images), destination, config=config), Listener())


def distil(name: str, images: Path, steps: int | None = None) -> Backbone:
    """Train the backbone `name` of timm; the same each time.

    Args:
        name: of the backbone.
        images: to learn on.
        steps: to learn for; None for those of `STEPS`.
    """
    torch.manual_seed(0)
    teacher = create_backbone("efficientnet_lite0", LEVELS, pretrained=True)
    student = create_backbone(name, LEVELS, pretrained=False).requires_grad_().train()
    heads = nn.ModuleList(
        nn.Conv2d(ours, theirs, 1)
        for ours, theirs in zip(student.channels, teacher.channels, strict=True)
    ).train()
    files = training_images(str(images))
    pixels = torch.stack([torch.from_numpy(decode(file.path, 3)) for file in files])
    pixels = pixels.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        seen = [teacher(_normalised(part, teacher)) for part in pixels.split(_BATCH)]
    # Channels count alike, however much they vary.
    spreads = [
        torch.cat(maps).std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-3)
        for maps in zip(*seen, strict=True)
    ]
    steps = steps or STEPS[name]
    optimiser = torch.optim.AdamW([*student.parameters(), *heads.parameters()], lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
    for number, crop in enumerate(_crops(pixels, steps)):
        with torch.no_grad():
            wanted = teacher(_normalised(crop, teacher))
        found = student(_normalised(crop, student))
        loss = sum(
            ((head(ours) - theirs) / spread).square().mean()
            for head, ours, theirs, spread in zip(heads, found, wanted, spreads, strict=True)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if number % 20 == 0:
            print(f"{name}: step {number} of {steps}, loss {float(loss):.3f}", flush=True)
    return student.eval().requires_grad_(requires_grad=False)


def _crops(pixels: Tensor, steps: int) -> Iterator[Tensor]:
    """Batches of random crops, mirrored at random."""
    random = np.random.default_rng(0)
    cut = partial(random.integers, 0)
    height, width = pixels.shape[-2:]
    for _ in range(steps):
        crops = []
        for number in random.integers(len(pixels), size=_BATCH):
            # Multiples of the stride of the deepest level, so that all levels stay aligned.
            top, left = (16 * int(cut((side - _CROP) // 16 + 1)) for side in (height, width))
            crop = pixels[number, :, top : top + _CROP, left : left + _CROP]
            crops.append(crop.flip(-1) if random.random() < 0.5 else crop)
        yield torch.stack(crops)


def _normalised(x: Tensor, backbone: Backbone) -> Tensor:
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (backbone.mean, backbone.std))
    return (x - mean) / std
