import numpy as np
import pytest
import torch
from torch.nn import functional

from vadexport.verification.causes import likely_cause

MEAN, STD = (
    np.array(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)


@pytest.fixture(scope="module")
def pixels():
    """Noisy waves, [2, 3, 88, 112] from 0 to 1."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:88, :112] / 20
    phase = rng.uniform(0, 6, (2, 3, 1, 1))
    return (0.5 + 0.3 * np.sin(x + phase + y) + rng.normal(0, 0.08, (2, 3, 88, 112))).clip(0, 1)


def resized(pixels, **options):
    scaled = functional.interpolate(torch.from_numpy(pixels), (64, 80), **options)
    return (scaled.numpy() - MEAN) / STD


def right(pixels):
    return resized(pixels, mode="bilinear", antialias=True).astype(np.float32)


CAUSES = {
    "blue first": (lambda p: right(p[:, ::-1].copy()), "another order (2, 1, 0)"),
    "normalised twice": (lambda p: (right(p) - MEAN) / STD, "another normalisation"),
    "not normalised": (lambda p: right(p) * STD + MEAN, "another normalisation"),
    "exchanged": (lambda p: (right(p) * STD + MEAN - STD) / MEAN, "another normalisation"),
    "divided by 256": (lambda p: right(p * 255 / 256), "scaled by 0.996, 0.996, 0.996"),
    "no antialiasing": (lambda p: resized(p, mode="bilinear"), "only fine detail"),
    "nearest": (lambda p: resized(p, mode="nearest"), "only fine detail"),
    "another size": (lambda p: right(p)[:, :, 1:], "size, 3x63x80 where the reference has 3x64x80"),
    "upside down": (lambda p: right(p)[:, :, ::-1], None),
    "moved by half": (lambda p: np.roll(right(p), 32, 2), None),
    "one value is no number": (lambda p: np.where(right(p) > 1, np.nan, right(p)), None),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_known_pattern(pixels, name):
    change, words = CAUSES[name]
    found = likely_cause(right(pixels), change(pixels))
    if words is None:
        assert found is None
    else:
        assert words in found


def test_gray_channels_are_in_any_order(pixels):
    gray = np.repeat(right(pixels)[:, :1], 3, 1)
    assert "another normalisation" in likely_cause(gray, 2 * gray[:, ::-1])
