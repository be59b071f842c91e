"""Every family takes 16-bit images: fit, checkpoint, graph."""

import numpy as np
import onnxruntime
import pytest
import torch

from vadexport.contract import INPUT_NAME, RAW_SCORE, ImageInput
from vadexport.detectors.checkpoint import load_detector, save_detector
from vadexport.detectors.families import FAMILIES
from vadexport.tracing.graph import simplify, trace

#: Choices small enough for a test.
TINY = {
    "patchcore": {"coreset_ratio": 0.05},
    "padim": {},
    "student_teacher": {"levels": (1, 2), "steps": 6, "batch_size": 3},
    "efficient_ad": {"width": 4, "teacher_steps": 5, "steps": 6, "batch_size": 2},
    "autoencoder": {"width": 8, "latent": 4, "steps": 12, "batch_size": 4},
    "diffusion": {"width": 8, "steps": 8, "batch_size": 4, "denoise_steps": 2, "start": 200},
}
INPUT = ImageInput(64, 64, 1, dtype="uint16")
#: Of the spread of normal scores: what an FP32 artifact may differ from its reference.
MOST_DRIFT = 1e-3


@pytest.fixture(scope="module")
def deep():
    """Smooth images unlike each other that use a narrow part of the range, uint16 [H, W, 1]."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64] / 20
    phases = random.uniform(0, 6, 10)
    waves = [30_000 + 3000 * np.sin(x + phase + y * phase / 3) for phase in phases]
    return [
        (wave + random.normal(0, 300, wave.shape))[..., None].astype(np.uint16) for wave in waves
    ]


def test_all_families_are_here():
    assert set(TINY) == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_whole_way_to_the_graph(name, deep, tmp_path):
    family = FAMILIES[name]
    config = family.load(family.config)(**TINY[name])
    fitted = family.load("fit")(deep, config, INPUT)
    save_detector(fitted.eval(), tmp_path / "detector.safetensors")
    detector = load_detector(tmp_path / "detector.safetensors")
    assert detector.image_input == INPUT
    graph = simplify(trace(detector, INPUT)).model.SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint16)"
    for image in (deep[0], deep[0] // 256 * 256):
        with torch.inference_mode():
            expected = float(detector(torch.from_numpy(image)[None])[RAW_SCORE])
        (found,) = session.run([RAW_SCORE], {INPUT_NAME: image[None]})
        assert abs(found[0] - expected) <= MOST_DRIFT * detector.thresholds.spread
    with torch.inference_mode():
        whole, cut = (
            float(detector(torch.from_numpy(image)[None])[RAW_SCORE])
            for image in (deep[0], deep[0] // 256 * 256)
        )
    assert whole != cut
