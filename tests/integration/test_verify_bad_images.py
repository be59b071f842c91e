"""What is wrong with the images that `verify` is given, or with what is known of them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.integration.refusals import assert_refused


@pytest.fixture
def category(images, tmp_path):
    """A category whose test images have masks, of 96 × 96 pixels."""
    root = tmp_path / "category"
    for kind, name in (("good", "good"), ("scratch", "defect")):
        source = images / name if (images / name).is_dir() else images / kind
        for number, path in enumerate(sorted(source.iterdir())[:4]):
            folder = root / "test" / kind
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / f"{number}.png")
    marked = np.zeros((96, 96), np.uint8)
    marked[20:40, 30:60] = 255
    masks = root / "ground_truth" / "scratch"
    masks.mkdir(parents=True)
    for path in (root / "test" / "scratch").iterdir():
        Image.fromarray(marked).save(masks / f"{path.stem}_mask.png")
    return root


@pytest.fixture
def words(artifact, checkpoint, tmp_path):
    report = ("--report", tmp_path / "report")
    return ("verify", artifact, "--reference", checkpoint, "--rounds", "0", *report)


def test_masks_give_a_pro_of_both(vadexport, words, category, tmp_path):
    done = vadexport(*words, "--images", category)
    assert done.status == 0, done.err
    evidence = json.loads((tmp_path / "report" / "parity.json").read_text())["evidence"]
    found = evidence["aupro"]
    assert 0 < found["reference"] <= 1
    assert found["artifact"] == pytest.approx(found["reference"], abs=1e-3)
    assert evidence["f1_max"]["artifact"] == pytest.approx(evidence["f1_max"]["reference"])
    for file in ("summary.md", "index.html"):
        assert "AUPRO" in (tmp_path / "report" / file).read_text()


def test_masks_of_another_size(vadexport, words, category):
    path = category / "ground_truth" / "scratch" / "1_mask.png"
    Image.fromarray(np.zeros((48, 96), np.uint8)).save(path)
    assert_refused(vadexport(*words, "--images", category), 2, str(path), "48×96")


def test_a_mask_of_no_image(vadexport, words, category):
    path = category / "ground_truth" / "scratch" / "99_mask.png"
    shutil.copy(path.with_name("1_mask.png"), path)
    assert_refused(vadexport(*words, "--images", category), 2, str(path), "the mask of no image")


def test_a_truncated_mask(vadexport, words, category):
    path = category / "ground_truth" / "scratch" / "1_mask.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert_refused(vadexport(*words, "--images", category), 2, str(path))


def test_labels_that_match_no_image(vadexport, words, images, tmp_path):
    listed = tmp_path / "labels.txt"
    paths = sorted((images / "good").iterdir())[:3]
    listed.write_text("".join(f"{path}\tnormal\n" for path in [*paths, tmp_path / "none.png"]))
    assert_refused(vadexport(*words, "--images", listed), 2, "none.png")


def test_one_image_alone(vadexport, words, images):
    path = min((images / "good").iterdir())
    done = vadexport(*words, "--images", path)
    assert done.status == 0, done.err
    assert "1 image is few: parity on it says little" in done.err


def test_a_reference_that_fails_on_one_image(vadexport, images, tmp_path, monkeypatch):
    (tmp_path / "moody.py").write_text("""
import torch
class Moody(torch.nn.Module):
    def forward(self, x):
        if not torch.compiler.is_compiling() and float(x.mean()) > 0.9:
            raise RuntimeError("too bright for me")
        return x.mean(dim=(1, 2, 3))
def make():
    return Moody().eval()
""")
    monkeypatch.syspath_prepend(tmp_path)
    source = "python:moody:make"
    options = ("--image-size", "96x96", "--threshold", "0.5")
    built = vadexport(
        *("build", source, *options, "-o", tmp_path / "a", "--target", "onnxruntime:fp32"),
        *("--calibration", images / "good"),
    )
    assert built.status == 0, built.err
    folder = tmp_path / "images"
    shutil.copytree(images / "good", folder)
    Image.fromarray(np.full((96, 96), 255, np.uint8)).save(folder / "white.png")
    done = vadexport(
        *("verify", tmp_path / "a", "--reference", source, "--images", folder),
        *("--rounds", "0", "--report", tmp_path / "report"),
    )
    assert_refused(done, 4, "too bright for me", "on white.png")
    assert not (tmp_path / "report").exists()
