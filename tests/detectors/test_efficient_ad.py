import numpy as np
import pytest
import torch

from vadexport.contract import ImageInput
from vadexport.detectors.backbones import create_backbone
from vadexport.detectors.efficient_ad import EfficientAd, EfficientAdConfig, fit, hardest
from vadexport.detectors.normal_images import NormalImages
from vadexport.detectors.patch_description import (
    Teaching,
    collages,
    description_network,
    description_size,
    other_light,
)
from vadexport.detectors.preprocessing import Preprocessing, PreprocessingConfig
from vadexport.errors import InputError

SIZE = (80, 112)
TINY = EfficientAdConfig(width=4, teacher_steps=3, steps=3)


def plain(size):
    return PreprocessingConfig(size, (0.5,) * 3, (0.5,) * 3)


def detector_of(channels=6, size=SIZE):
    return EfficientAd(TINY, ImageInput(*size, 1), plain(size), channels).eval()


def upsampled(array, size):
    """Bilinear by pixel centres, float64, of [h, w]."""
    for axis, target in enumerate(size):
        source = array.shape[axis]
        at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, source - 1)
        weight = np.expand_dims(at - low, 1 - axis)
        array = np.take(array, low, axis) * (1 - weight) + np.take(array, high, axis) * weight
    return array


def test_score_against_float64():
    detector = detector_of()
    detector.quantiles = torch.tensor([[0.5, 2.0], [1.0, 4.0]])
    generator = torch.Generator().manual_seed(0)
    height, width = description_size(SIZE)
    features = [torch.randn(2, c, height, width, generator=generator) for c in (6, 12, 6)]
    score, anomaly_map = detector.score(torch.zeros(0), features)
    taught, learnt, rebuilt = (each.double().numpy() for each in features)
    for number in range(2):
        first = ((taught[number] - learnt[number, :6]) ** 2).mean(axis=0)
        second = ((rebuilt[number] - learnt[number, 6:]) ** 2).mean(axis=0)
        maps = [upsampled(np.pad(each, 4, mode="edge"), SIZE) for each in (first, second)]
        expected = 0.5 * (0.1 * (maps[0] - 0.5) / 1.5) + 0.5 * (0.1 * (maps[1] - 1) / 3)
        np.testing.assert_allclose(anomaly_map[number, 0].numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(score[number].item(), expected.max(), rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), SIZE, (101, 67), (256, 320)])
def test_all_networks_describe_the_same_places(size):
    detector = detector_of(size=size)
    with torch.no_grad():
        shapes = [each.shape for each in detector.network(torch.zeros(1, 3, *size))]
    wanted = description_size(size)
    assert shapes == [(1, 6, *wanted), (1, 12, *wanted), (1, 6, *wanted)]


def test_a_patch_is_33_pixels():
    network = description_network(4, 3).double()
    x = torch.randn(1, 3, 96, 96, dtype=torch.float64, requires_grad=True)
    network(x)[0, :, 8, 8].sum().backward()
    rows = x.grad[0].abs().sum(dim=(0, 2)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 <= 33
    assert rows.min() == 8 * 4


def test_quantiles_become_0_and_a_tenth(crops):
    detector = fit(crops, TINY, ImageInput(96, 96, 1))
    normal = NormalImages(crops, detector.preprocessing, seed=TINY.seed)
    with torch.no_grad():
        maps = detector.differences(detector.network(normal.batch(normal.held_out)))
    expected = [np.quantile(each.double().numpy(), [0.9, 0.995]) for each in maps]
    np.testing.assert_allclose(detector.quantiles.numpy(), expected, rtol=1e-4)


def test_black_images_have_no_spread():
    images = [np.zeros((64, 64, 1), dtype=np.uint8)] * 6
    with pytest.raises(InputError, match="no spread"):
        fit(images, TINY, ImageInput(64, 64, 1))


def test_the_teacher_is_taught_normalised_features(crops):
    backbone = create_backbone("efficientnet_lite0", (1, 2), pretrained=True)
    config = PreprocessingConfig((96, 96), backbone.mean, backbone.std)
    normal = NormalImages(crops, Preprocessing(config), seed=0)
    told = Teaching(backbone, normal).of(normal.batch(normal.training))
    assert told.shape[1:] == (64, *description_size((96, 96)))
    torch.testing.assert_close(told.mean(dim=(0, 2, 3)), torch.zeros(64), atol=1e-3, rtol=0)
    deviations = told.square().mean(dim=(0, 2, 3)).sqrt()
    torch.testing.assert_close(deviations, torch.ones(64), atol=2e-2, rtol=0)


def test_hardest():
    values = torch.arange(1000.0)
    assert hardest(values, 0.01) == values[-10:].mean()
    assert hardest(values, 1e-9) == 999
    assert hardest(values, 1.0) == values.mean()


@pytest.mark.parametrize("alter", [collages, other_light])
def test_alterations_follow_their_generator(alter):
    x = torch.rand(8, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    first, again, other = (alter(x, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert first.shape == x.shape
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "choices", [{"width": 0}, {"hard_share": 0}, {"hard_share": 2}, {"teacher_steps": 0}]
)
def test_wrong_choices(choices):
    with pytest.raises(InputError):
        EfficientAdConfig(**choices)


def test_too_small():
    with pytest.raises(InputError, match="64 pixels"):
        detector_of(size=(63, 100))


@pytest.mark.parametrize("weight", [torch.zeros(0), torch.zeros(0, 8, 4, 4), torch.zeros(3)])
def test_a_damaged_teacher(weight):
    with pytest.raises(InputError, match="damaged"):
        EfficientAd.from_config(
            detector_of().config(),
            ImageInput(*SIZE, 1),
            plain(SIZE),
            {"teacher.last.weight": weight},
        )
