"""From patch scores to a full-size anomaly map."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from vadexport.errors import InputError


def gaussian_kernel(sigma: float) -> Tensor:
    """One-dimensional Gaussian of `2·⌈4σ⌉ + 1` taps that sums to one, float32."""
    radius = math.ceil(4 * sigma)
    taps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    return (kernel / kernel.sum()).to(torch.float32)


def blur_kernel(sigma: float, size: tuple[int, int]) -> Tensor:
    """`gaussian_kernel` for blurring maps of `size`; one tap of 1 where sigma is 0.

    Raises:
        InputError: the map is too small for its borders to be reflected.
    """
    kernel = gaussian_kernel(sigma) if sigma > 0 else torch.ones(1)
    if kernel.numel() // 2 >= min(size):
        raise InputError(f"{size} is too small for a blur of {sigma}")
    return kernel


def blur(image: Tensor, kernel: Tensor) -> Tensor:
    """Blur `[N, 1, H, W]` along both axes with reflected borders; the size stays."""
    radius = kernel.numel() // 2
    padded = functional.pad(image, [radius] * 4, mode="reflect")
    rows = functional.conv2d(padded, kernel.view(1, 1, -1, 1))
    return functional.conv2d(rows, kernel.view(1, 1, 1, -1))


def full_size_map(patch_scores: Tensor, size: tuple[int, int], kernel: Tensor) -> Tensor:
    """Upsample patch scores `[N, 1, h, w]` bilinearly to `size` and blur them.

    Both as in PatchCore's reference code (Roth et al. 2022), σ of the blur given by `kernel`.
    """
    upsampled = functional.interpolate(
        patch_scores, size, mode="bilinear", align_corners=False, antialias=False
    )
    return blur(upsampled, kernel)
