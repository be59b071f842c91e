import numpy as np
import pytest
import torch
from scipy import ndimage

from vadexport.contract import ImageInput
from vadexport.detectors.student_teacher import StudentTeacher, StudentTeacherConfig, fit
from vadexport.errors import InputError

SIZE = (64, 96)


def upsampled(array, size):
    """Bilinear by pixel centres, float64, of [..., h, w]."""
    for axis, target in zip((-2, -1), size, strict=True):
        source = array.shape[axis]
        at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, source - 1)
        shape = [1] * array.ndim
        shape[axis] = target
        weight = (at - low).reshape(shape)
        array = np.take(array, low, axis) * (1 - weight) + np.take(array, high, axis) * weight
    return array


def reference_map(taught, learnt, size):
    """The paper's product of halved squared distances, float64, [N, H, W]."""
    product = 1.0
    for level in zip(taught, learnt, strict=True):
        t, s = (each.double().numpy() for each in level)
        t = t / np.sqrt((t**2).sum(axis=1, keepdims=True))
        s = s / np.sqrt((s**2).sum(axis=1, keepdims=True))
        product = product * upsampled(((t - s) ** 2).sum(axis=1) / 2, size)
    return product


def detector_of(**choices):
    config = StudentTeacherConfig(levels=(1, 2, 3), **choices)
    return StudentTeacher(config, ImageInput(*SIZE, 1)).eval()


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 24, 16, 24), (2, 40, 8, 12), (2, 112, 4, 6)]
    return tuple(torch.randn(shape, generator=generator) for shape in (*shapes, *shapes))


def test_score_against_float64(features):
    score, anomaly_map = detector_of().score(torch.zeros(0), features)
    expected = reference_map(features[:3], features[3:], SIZE)
    assert anomaly_map.shape == (2, 1, *SIZE)
    np.testing.assert_allclose(anomaly_map[:, 0].numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(score.numpy(), expected.max(axis=(1, 2)), rtol=1e-4)


def test_blur_against_scipy(features):
    detector = detector_of(blur_sigma=2.0)
    score, anomaly_map = detector.score(torch.zeros(0), features)
    raw = reference_map(features[:3], features[3:], SIZE)
    expected = np.stack([ndimage.gaussian_filter(m, 2.0, mode="mirror", radius=8) for m in raw])
    np.testing.assert_allclose(anomaly_map[:, 0].numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(score.numpy(), expected.max(axis=(1, 2)), rtol=1e-4)


def test_alike_is_zero_and_length_does_not_count(features):
    taught = features[:3]
    score, anomaly_map = detector_of().score(torch.zeros(0), (*taught, *(3 * t for t in taught)))
    assert score.abs().max() < 1e-12
    assert anomaly_map.abs().max() < 1e-12


def test_features_of_length_zero_are_no_nan(features):
    nothing = tuple(torch.zeros_like(each) for each in features)
    assert detector_of().score(torch.zeros(0), nothing)[0].tolist() == [0, 0]


def test_network_gives_teacher_then_student(crops):
    config = StudentTeacherConfig(levels=(1, 2), steps=3, batch_size=4)
    detector = fit(crops, config, ImageInput(96, 96, 1))
    x = detector.preprocessing(torch.from_numpy(crops[0])[None])
    with torch.no_grad():
        found = detector.network(x)
        expected = (*detector.teacher(x), *detector.student(x))
    assert len(found) == 4
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_training_leaves_the_teacher_as_it_was(crops):
    config = StudentTeacherConfig(levels=(1,), steps=3, batch_size=4)
    fresh = StudentTeacher(config, ImageInput(96, 96, 1), pretrained=True)
    trained = fit(crops, config, ImageInput(96, 96, 1))
    for name, value in fresh.teacher.state_dict().items():
        assert torch.equal(trained.teacher.state_dict()[name], value), name
    changed = trained.student.state_dict()
    assert any(not torch.equal(changed[k], v) for k, v in fresh.student.state_dict().items())


@pytest.mark.parametrize("choices", [{"blur_sigma": -1}, {"blur_sigma": 65}])
def test_wrong_choices(choices):
    with pytest.raises(InputError):
        StudentTeacherConfig(**choices)


def test_too_small_for_the_blur():
    with pytest.raises(InputError, match="too small"):
        StudentTeacher(StudentTeacherConfig(blur_sigma=20), ImageInput(64, 64, 1))
