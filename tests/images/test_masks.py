from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vadexport.errors import InputError
from vadexport.images import test_images as images_to_test
from vadexport.images.colouring import save_png
from vadexport.images.masks import find_masks, load_mask

SIZE = (6, 8)


def put(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(np.zeros(SIZE, np.uint8) if pixels is None else pixels, path)
    return path


@pytest.fixture
def category(tmp_path):
    root = tmp_path / "bottle"
    for name in ("good/0", "good/1", "crack/0", "crack/1", "dent/0"):
        put(root / "test" / f"{name}.png")
    for name in ("crack/0", "crack/1", "dent/0"):
        put(root / "ground_truth" / f"{name}_mask.png")
    return root


def found_in(category):
    masks = find_masks(category, images_to_test(category))
    return {
        image.relative_to(category / "test").as_posix(): mask.relative_to(
            category / "ground_truth"
        ).as_posix()
        for image, mask in masks.items()
    }


def test_of_images_whose_folder_is_spelt_otherwise(category, monkeypatch):
    monkeypatch.chdir(category / "test")
    masks = find_masks(category, images_to_test("."), Path())
    assert {image.as_posix() for image in masks} == {"crack/0.png", "crack/1.png", "dent/0.png"}


def refused(category, *words):
    with pytest.raises(InputError) as caught:
        found_in(category)
    for word in words:
        assert str(word) in str(caught.value)


def test_masks_are_found_by_folder_and_name(category):
    assert found_in(category) == {
        "crack/0.png": "crack/0_mask.png",
        "crack/1.png": "crack/1_mask.png",
        "dent/0.png": "dent/0_mask.png",
    }


def test_a_mask_may_lack_the_ending(category):
    masks = category / "ground_truth"
    (masks / "crack" / "1_mask.png").rename(masks / "crack" / "1.png")
    assert found_in(category)["crack/1.png"] == "crack/1.png"


def test_images_and_masks_may_be_of_different_formats(category):
    image = category / "test" / "crack" / "1.png"
    Image.new("L", SIZE[::-1]).save(image.with_suffix(".jpg"))
    image.unlink()
    mask = category / "ground_truth" / "crack" / "1_mask.png"
    Image.new("L", SIZE[::-1]).save(mask.with_suffix(".bmp"))
    mask.unlink()
    assert found_in(category)["crack/1.jpg"] == "crack/1_mask.bmp"


def test_a_normal_image_may_have_a_mask(category):
    put(category / "ground_truth" / "good" / "0_mask.png")
    assert found_in(category)["good/0.png"] == "good/0_mask.png"


@pytest.mark.parametrize("left", [None, "nothing", ".DS_Store"])
def test_a_category_may_have_no_masks(category, left):
    folder = category / "ground_truth"
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    if left is None:
        folder.rmdir()
    elif left != "nothing":
        (folder / left).write_text("")
    assert found_in(category) == {}


def test_other_files_beside_masks_are_left_out(category):
    (category / "ground_truth" / "notes.txt").write_text("by hand")
    assert len(found_in(category)) == 3


def test_a_missing_mask(category):
    (category / "ground_truth" / "crack" / "1_mask.png").unlink()
    refused(category, category / "test" / "crack" / "1.png", "no mask", "crack/1_mask.png")


def test_a_mask_of_no_image(category):
    mask = put(category / "ground_truth" / "crack" / "7_mask.png")
    refused(category, mask, "no image")


def test_a_folder_of_masks_without_masks(category):
    for path in (category / "ground_truth").rglob("*.png"):
        path.unlink()
    refused(category, "ground_truth", "no files")


def test_two_masks_of_one_image(category):
    other = put(category / "ground_truth" / "crack" / "1.png")
    refused(category, other, "1_mask.png", "several")


def test_two_images_with_one_mask(category):
    Image.new("L", SIZE[::-1]).save(category / "test" / "crack" / "1.bmp")
    refused(category, "1_mask.png", "1.bmp", "1.png", "two images")


def test_a_mask_of_another_size(category):
    mask = put(category / "ground_truth" / "crack" / "1_mask.png", np.zeros((8, 6), np.uint8))
    refused(category, mask, "8×6", category / "test" / "crack" / "1.png", "6×8")


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_a_lossy_mask(category, suffix):
    mask = category / "ground_truth" / "crack" / "1_mask.png"
    mask.unlink()
    Image.new("L", SIZE[::-1]).save(mask.with_suffix(suffix))
    refused(category, mask.with_suffix(suffix), "lossy")


def test_a_mask_that_is_no_image(category):
    mask = category / "ground_truth" / "crack" / "1_mask.png"
    mask.write_bytes(b"no image at all")
    refused(category, mask)


def test_an_unreadable_image_is_left_to_whoever_loads_it(category):
    (category / "test" / "crack" / "1.png").write_bytes(b"")
    assert len(found_in(category)) == 3


MARKED = np.array([[0, 1, 0], [0, 0, 255]], np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_whatever_is_not_black_is_a_defect(tmp_path, mode):
    Image.fromarray(MARKED).convert(mode).save(tmp_path / "mask.png")
    mask = load_mask(tmp_path / "mask.png")
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, MARKED > 0)


def test_masks_of_one_bit_and_of_one_colour_are_read(tmp_path):
    Image.fromarray(MARKED > 0).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "bit.png"), MARKED > 0)
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = MARKED
    Image.fromarray(red).save(tmp_path / "red.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "red.png"), MARKED > 0)
