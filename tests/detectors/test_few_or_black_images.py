"""A folder of black images, or of one image, ends in a detector that works or in one clear line."""

import numpy as np
import pytest
import torch

from vadexport import contract
from vadexport.contract import ImageInput
from vadexport.detectors.checkpoint import load_detector, save_detector
from vadexport.detectors.families import FAMILIES
from vadexport.errors import InputError

#: Choices small enough for a test.
TINY = {
    "patchcore": {"coreset_ratio": 0.05, "blur_sigma": 2.0},
    "padim": {"channels": 10, "blur_sigma": 2.0},
    "student_teacher": {"levels": (1, 2), "steps": 3},
    "efficient_ad": {"width": 4, "teacher_steps": 2, "steps": 2},
    "autoencoder": {"width": 4, "latent": 2, "steps": 3},
    "diffusion": {"width": 8, "steps": 3, "denoise_steps": 2},
}
#: What a family cannot do, and what it says then.
REFUSED = {
    ("padim", "one image"): "at least three normal images .*, not 1$",
    ("padim", "one black image"): "at least three normal images .*, not 1$",
    ("efficient_ad", "black images"): "are the images all of one colour",
    ("efficient_ad", "one black image"): "are the images all of one colour",
}
SHAPE = (64, 64, 1)


def images_of(kind):
    if kind == "one image":
        return [noise(0)]
    return [np.zeros(SHAPE, np.uint8)] * (1 if kind == "one black image" else 6)


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)


def test_every_family_is_here():
    assert set(TINY) == set(FAMILIES)


@pytest.mark.parametrize("kind", ["black images", "one image", "one black image"])
@pytest.mark.parametrize("name", TINY)
def test_fit(name, kind, tmp_path):
    family = FAMILIES[name]
    config = family.load(family.config)(**TINY[name])
    images = images_of(kind)
    if (name, kind) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name, kind]) as caught:
            family.load("fit")(images, config, ImageInput(*SHAPE))
        assert "\n" not in str(caught.value)
        return
    detector = family.load("fit")(images, config, ImageInput(*SHAPE))
    held_out = 1 if family.trains or len(images) == 1 else 6
    assert len(detector.normal_scores) == held_out
    assert detector.normal_scores.isfinite().all()
    save_detector(detector, tmp_path / "d.safetensors")
    # Thresholds that are not finite would be refused here.
    loaded = load_detector(tmp_path / "d.safetensors")
    with torch.inference_mode():
        normal, other = (loaded(torch.from_numpy(image)[None]) for image in (images[0], noise(1)))
    for outputs in (normal, other):
        assert all(outputs[name].isfinite().all() for name in contract.OUTPUT_NAMES)
    if not family.trains:  # three steps teach nothing
        assert normal[contract.RAW_SCORE] < other[contract.RAW_SCORE]
        assert other[contract.PRED_LABEL]
