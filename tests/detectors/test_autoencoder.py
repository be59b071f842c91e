from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from vadexport.contract import ImageInput
from vadexport.detectors.autoencoder import Autoencoder, AutoencoderConfig, fit, ssim
from vadexport.errors import InputError


def reference_ssim(first, second):
    """Wang et al. 2004 pixel by pixel, deviations taken from the window's own mean, float64."""
    taps = np.exp(-(np.arange(-6, 7) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    a, b = (np.pad(image.astype(np.float64), 6, mode="reflect") for image in (first, second))
    found = np.empty(first.shape)
    for y, x in np.ndindex(first.shape):
        one, other = a[y : y + 13, x : x + 13], b[y : y + 13, x : x + 13]
        m1, m2 = (window * one).sum(), (window * other).sum()
        v1, v2 = (window * (one - m1) ** 2).sum(), (window * (other - m2) ** 2).sum()
        covariance = (window * (one - m1) * (other - m2)).sum()
        luminance = (2 * m1 * m2 + 0.01**2) / (m1**2 + m2**2 + 0.01**2)
        found[y, x] = luminance * (2 * covariance + 0.03**2) / (v1 + v2 + 0.03**2)
    return found


def detector_of(channels=1, size=(40, 56), **choices):
    return Autoencoder(AutoencoderConfig(width=4, **choices), ImageInput(*size, channels)).eval()


def pair(channels=1, size=(40, 56), seed=0):
    rng = np.random.default_rng(seed)
    first = ndimage.gaussian_filter(rng.random((2, channels, *size)), (0, 0, 2, 2))
    second = np.clip(first + rng.normal(0, 0.02, first.shape), 0, 1)
    return torch.from_numpy(first).float(), torch.from_numpy(second).float()


def test_ssim_against_float64():
    first, second = pair(channels=3)
    found = ssim(first, second, detector_of().window).numpy()
    for image, channel in np.ndindex(2, 3):
        expected = reference_ssim(first[image, channel].numpy(), second[image, channel].numpy())
        np.testing.assert_allclose(found[image, channel], expected, atol=2e-5)


def test_ssim_of_equal_images_is_one():
    first, _ = pair()
    for image in (first, torch.zeros_like(first), torch.ones_like(first)):
        np.testing.assert_allclose(ssim(image, image, detector_of().window), 1, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_score_against_float64(channels):
    detector = detector_of(channels, l2_weight=5.0, score_quantile=0.9)
    image, rebuilt = pair(channels)
    x = image.expand(-1, 3, -1, -1)
    score, anomaly_map = detector.score(x, (rebuilt,))
    for number in range(2):
        maps = [
            1 - reference_ssim(a, b) + 5 * (a.astype(np.float64) - b) ** 2
            for a, b in zip(image[number].numpy(), rebuilt[number].numpy(), strict=True)
        ]
        expected = np.mean(maps, axis=0)
        np.testing.assert_allclose(anomaly_map[number, 0].numpy(), expected, atol=3e-5)
        beyond = round(0.1 * 40 * 56)
        ranked = np.sort(expected, axis=None)[::-1]
        np.testing.assert_allclose(score[number].item(), ranked[beyond - 1], atol=3e-5)


def test_the_quantile_is_bounded_by_what_backends_sort():
    detector = detector_of(score_quantile=1.0)
    assert detector.ranked == 1
    large = SimpleNamespace(
        preprocessing=SimpleNamespace(config=SimpleNamespace(size=(1024, 1024))),
        method=AutoencoderConfig(score_quantile=0.9),
    )
    assert Autoencoder.ranked.fget(large) == 3840


@pytest.mark.parametrize(("size", "bottleneck"), [((64, 64), "4×4×8"), ((33, 81), "3×6×8")])
def test_the_reconstruction_has_the_size_of_the_image(size, bottleneck):
    detector = detector_of(size=size)
    x = torch.rand(2, 3, *size)
    with torch.no_grad():
        (rebuilt,) = detector.network(x)
    assert rebuilt.shape == (2, 1, *size)
    assert rebuilt.min() >= 0
    assert rebuilt.max() <= 1
    assert detector.describe()["bottleneck"] == bottleneck


def test_pixels_stay_between_zero_and_one():
    image = torch.tensor([0, 255], dtype=torch.uint8).repeat(40 * 28).view(1, 40, 56, 1)
    x = detector_of().preprocessing(image)
    assert (x.min(), x.max()) == (0, 1)


def test_a_defect_scores_higher_than_what_it_learnt(crops):
    config = AutoencoderConfig(width=8, steps=40)
    detector = fit(crops, config, ImageInput(96, 96, 1))
    spoilt = crops[0].copy()
    spoilt[30:60, 30:60] = np.indices((30, 30)).sum(axis=0)[..., None] % 2 * 255
    with torch.no_grad():
        normal, defective = (
            detector(torch.from_numpy(image)[None]) for image in (crops[0], spoilt)
        )
    assert defective["raw_score"] > normal["raw_score"]
    inside = defective["anomaly_map"][0, 0, 30:60, 30:60].mean()
    assert inside > 2 * defective["anomaly_map"].mean()


@pytest.mark.parametrize(
    "choices",
    [
        {"width": 0},
        {"latent": 0},
        {"l2_weight": -1},
        {"score_quantile": 0},
        {"score_quantile": 1.1},
    ],
)
def test_wrong_choices(choices):
    with pytest.raises(InputError):
        AutoencoderConfig(**choices)


def test_too_small():
    with pytest.raises(InputError, match="too small"):
        detector_of(size=(6, 64))


@pytest.mark.parametrize(
    ("size", "words"), [((64, 64), "0.99 quantile of the map"), ((1024, 1024), "0.9963 quantile")]
)
def test_the_quantile_that_a_large_map_really_gets_is_told(size, words):
    detector = Autoencoder(AutoencoderConfig(width=4), ImageInput(*size, 1))
    assert words in detector.describe()["score"]
