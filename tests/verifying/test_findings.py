"""Which masks belong to the images that are verified, and what the report says was left out."""

import json
import shutil

import numpy as np
import pytest

from vadexport.images.colouring import save_png
from vadexport.images.listing import test_images as images_to_test
from vadexport.listening import Listener
from vadexport.verifying import VerifyOptions, verify
from vadexport.verifying.findings import _masks


@pytest.fixture
def category(tmp_path):
    for name in ("test/good/0", "test/cut/0", "test/cut/1", "ground_truth/cut/0_mask"):
        path = tmp_path / "cable" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(np.zeros((4, 4), np.uint8), path)
    save_png(np.zeros((4, 4), np.uint8), tmp_path / "cable/ground_truth/cut/1_mask.png")
    return tmp_path / "cable"


def masks_of(root):
    found, warnings = _masks(root, images_to_test(root))
    assert warnings == []
    return sorted(mask.name for mask in found.values())


def test_those_of_a_category_and_those_beside_its_images(category):
    assert masks_of(category) == ["0_mask.png", "1_mask.png"]
    assert masks_of(category / "test") == ["0_mask.png", "1_mask.png"]


def test_a_folder_of_another_name_has_none(category):
    (category / "test").rename(category / "images")
    assert masks_of(category / "images") == []


def test_masks_beside_images_that_they_are_not_of_are_left_out_with_a_warning(category):
    (category / "ground_truth/cut/1_mask.png").rename(category / "ground_truth/cut/7_mask.png")
    found, (line,) = _masks(category / "test", images_to_test(category / "test"))
    assert found == {}
    assert line.startswith("AUPRO is left out: ")


@pytest.mark.usefixtures("in_process")
def test_every_report_says_what_was_left_out(artifact, checkpoint, images, tmp_path):
    pytest.importorskip("jinja2")
    root = tmp_path / "cable"
    shutil.copytree(images, root / "test")
    (root / "test" / "good" / "1.png").write_bytes(b"no image")
    (root / "ground_truth" / "scratch").mkdir(parents=True)
    save_png(np.zeros((96, 96), np.uint8), root / "ground_truth" / "scratch" / "99_mask.png")
    options = VerifyOptions(
        artifact,
        checkpoint,
        str(root / "test"),
        rounds=0,
        report=tmp_path / "report",
        skip_unreadable=True,
    )
    (found,) = verify(options, Listener()).verifications
    lines = [line for line in found.warnings if "left out" in line]
    assert len(lines) == 2
    assert any(line.startswith("AUPRO is left out: ") for line in lines)
    (line,) = [line for line in lines if line.startswith("1 of 16 images could not be read")]
    assert line.endswith("good/1.png")
    report = tmp_path / "report"
    assert set(lines) <= set(json.loads((report / "parity.json").read_text())["warnings"])
    for name in ("index.html", "summary.md", "junit.xml"):
        text = (report / name).read_text()
        assert "AUPRO is left out" in text
        assert "1 of 16 images could not be read" in text
