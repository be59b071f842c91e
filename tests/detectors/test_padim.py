from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional

from vadexport import contract
from vadexport.contract import ImageInput
from vadexport.detectors.checkpoint import load_detector, save_detector
from vadexport.detectors.padim import PaDiM, PaDiMConfig, fit, gaussians
from vadexport.errors import InputError
from vadexport.tracing.graph import simplify, trace

CONFIG = PaDiMConfig(channels=20, blur_sigma=2.0)


@pytest.fixture(scope="module")
def detector(crops):
    return fit(crops, CONFIG, ImageInput(96, 96, 1)).eval()


@pytest.fixture(scope="module")
def oblong(coloured):
    return fit(coloured, CONFIG, ImageInput(88, 112, 3), size=(64, 80)).eval()


def embedded(detector, images):
    """Patches of images, float64 [n, D, h, w], by the paper's words and torch's primitives."""
    with torch.inference_mode():
        x = detector.preprocessing(torch.from_numpy(np.stack(images)))
        first, second = detector.backbone(x)
        up = functional.interpolate(second, first.shape[-2:], mode="nearest")
        return torch.cat([first, up], dim=1)[:, detector.chosen].double().numpy()


def mahalanobis(patches, normal):
    """Distances [n, h, w] of patches to the Gaussians of normal patches, by the definition."""
    found = np.zeros((len(patches), *patches.shape[2:]))
    for i, j in np.ndindex(patches.shape[2:]):
        rows = normal[:, :, i, j]
        covariance = np.cov(rows, rowvar=False) + 0.01 * np.eye(rows.shape[1])
        centred = patches[:, :, i, j] - rows.mean(axis=0)
        squared = np.einsum("nd,de,ne->n", centred, np.linalg.inv(covariance), centred)
        found[:, i, j] = np.sqrt(squared)
    return found


@pytest.mark.parametrize("name", ["detector", "oblong"])
def test_distances_are_mahalanobis_by_definition(request, crops, coloured, name):
    detector = request.getfixturevalue(name)
    images = crops if name == "detector" else coloured
    patches = embedded(detector, images)
    expected = mahalanobis(patches[:3] + 0.5, patches)
    centred = torch.from_numpy(patches[:3] + 0.5).float().flatten(2).permute(2, 0, 1)
    whitened = (centred - detector.mean[:, None]) @ detector.whitening
    found = whitened.square().sum(2).sqrt().T.reshape(expected.shape).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_each_image_is_judged_by_gaussians_that_left_it_out(crops, detector):
    patches = embedded(detector, crops)
    left_out = np.arange(len(crops)) % 5 == 0
    distances = torch.from_numpy(mahalanobis(patches[left_out], patches[~left_out])).float()
    upsampled = functional.interpolate(distances[:, None], (96, 96), mode="bilinear")
    from scipy.ndimage import gaussian_filter

    maps = [
        gaussian_filter(one, 2.0, mode="mirror", truncate=4.0) for one in upsampled[:, 0].numpy()
    ]
    expected = [one.max() for one in maps]
    np.testing.assert_allclose(detector.normal_scores[left_out].numpy(), expected, rtol=2e-4)


def test_score_is_the_largest_value_of_the_map(detector, crops):
    with torch.inference_mode():
        outputs = detector(torch.from_numpy(crops[0])[None])
    assert outputs["raw_score"].item() == outputs["anomaly_map"].max().item()


def test_a_scratch_is_found_where_it_is(detector, crops):
    scratched = crops[3].copy()
    scratched[60:66, 20:40] = 255
    with torch.inference_mode():
        before, after = (
            detector(torch.from_numpy(image)[None])["anomaly_map"][0, 0]
            for image in (crops[3], scratched)
        )
    row, column = np.unravel_index(int((after - before).argmax()), (96, 96))
    assert 50 <= row <= 76
    assert 10 <= column <= 50


@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize("name", ["detector", "oblong"])
def test_the_graph_gives_the_detectors_scores(request, crops, coloured, name, batch):
    detector = request.getfixturevalue(name)
    images = np.stack((crops if name == "detector" else coloured)[: batch or 5])
    graph = simplify(trace(detector, replace(detector.image_input, batch=batch)))
    session = onnxruntime.InferenceSession(
        graph.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = dict(zip(contract.OUTPUT_NAMES, session.run(None, {"image": images}), strict=True))
    low, high = np.quantile(detector.normal_scores.double().numpy(), [0.25, 0.75])
    for number, image in enumerate(images):
        with torch.inference_mode():
            expected = detector(torch.from_numpy(image)[None])
        drift = abs(found["raw_score"][number] - expected["raw_score"].item()) / (high - low)
        assert drift <= 1e-3
        difference = np.abs(found["anomaly_map"][number] - expected["anomaly_map"][0].numpy())
        assert difference.max() / (high - low) <= 1e-3


def test_round_trip_and_seeds(detector, crops, tmp_path):
    save_detector(detector, tmp_path / "d.safetensors")
    again = load_detector(tmp_path / "d.safetensors")
    assert isinstance(again, PaDiM)
    with torch.inference_mode():
        for image in crops[:3]:
            x = torch.from_numpy(image)[None]
            assert torch.equal(again(x)["anomaly_map"], detector(x)["anomaly_map"])
    other = PaDiM(replace(CONFIG, seed=1), ImageInput(96, 96, 1))
    assert torch.equal(PaDiM(CONFIG, ImageInput(96, 96, 1)).chosen, detector.chosen)
    assert not torch.equal(other.chosen, detector.chosen)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("whitening", (), r"whitening has the shape \(\)"),
        ("whitening", (0, 20, 20), "damaged, or unfitted"),
        ("whitening", (10**12, 0, 20), "damaged"),
        ("whitening", (144, 20, 19), "damaged"),
        ("mean", (), "does not fit its own configuration"),
        ("mean", (10**12, 0), "does not fit its own configuration"),
        ("mean", (144, 19), "does not fit its own configuration"),
        ("chosen", (), "channels do not fit"),
        ("chosen", (19,), "channels do not fit"),
    ],
    ids=str,
)
def test_damaged_gaussians_are_refused(detector, tmp_path, name, shape, words):
    path = tmp_path / "d.safetensors"
    save_detector(detector, path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state[name] = torch.zeros(shape, dtype=state[name].dtype)
    save_file(state, path, metadata)
    with pytest.raises(InputError, match=words) as caught:
        load_detector(path)
    assert str(path) in str(caught.value)


def test_gaussians_are_finite_where_all_images_are_equal():
    mean, whitening = gaussians(torch.ones(4, 6, 3))
    torch.testing.assert_close(mean, torch.ones(3, 6))
    torch.testing.assert_close(whitening, torch.eye(6).expand(3, 6, 6) * 10)


def test_wrong_use(crops):
    with pytest.raises(InputError, match="at least three"):
        fit(crops[:2], CONFIG, ImageInput(96, 96, 1))
    with pytest.raises(InputError, match="152 channels"):
        fit(crops[:3], replace(CONFIG, channels=153), ImageInput(96, 96, 1))
    with pytest.raises(InputError, match="at least one"):
        PaDiMConfig(channels=0)


def test_gaussians_that_no_graph_can_hold_are_refused_before_the_work(crops):
    told = []
    with pytest.raises(InputError, match=r"20736 Gaussians of 152 channels take 1\.9 GB.*--size"):
        fit(
            crops,
            PaDiMConfig(channels=152),
            ImageInput(96, 96, 1),
            size=(1152, 1152),
            progress=lambda *step: told.append(step),
        )
    assert told == []
