"""Which masks belong to the images that are verified."""

import numpy as np
import pytest

from vadexport.images.colouring import save_png
from vadexport.images.listing import test_images as images_to_test
from vadexport.listening import Listener
from vadexport.verifying.findings import _masks


class Warned(Listener):
    def __init__(self):
        self.lines = []

    def warn(self, text):
        self.lines.append(text)


@pytest.fixture
def category(tmp_path):
    for name in ("test/good/0", "test/cut/0", "test/cut/1", "ground_truth/cut/0_mask"):
        path = tmp_path / "cable" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(np.zeros((4, 4), np.uint8), path)
    save_png(np.zeros((4, 4), np.uint8), tmp_path / "cable/ground_truth/cut/1_mask.png")
    return tmp_path / "cable"


def masks_of(root, told=None):
    found = _masks(root, images_to_test(root), told or Listener())
    return sorted(mask.name for mask in found.values())


def test_those_of_a_category_and_those_beside_its_images(category):
    assert masks_of(category) == ["0_mask.png", "1_mask.png"]
    assert masks_of(category / "test") == ["0_mask.png", "1_mask.png"]


def test_a_folder_of_another_name_has_none(category):
    (category / "test").rename(category / "images")
    assert masks_of(category / "images") == []


def test_masks_beside_images_that_they_are_not_of_are_left_out_with_a_warning(category):
    (category / "ground_truth/cut/1_mask.png").rename(category / "ground_truth/cut/7_mask.png")
    told = Warned()
    assert masks_of(category / "test", told) == []
    (line,) = told.lines
    assert line.startswith("AUPRO is left out: ")
