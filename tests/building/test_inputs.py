import re

import numpy as np
import pytest
from PIL import Image

from vadexport.building import BuildOptions
from vadexport.building.inputs import build_images
from vadexport.contract import ImageInput
from vadexport.errors import InputError
from vadexport.images.colouring import save_png
from vadexport.listening import Listener
from vadexport.targets import Target

GRAY = ImageInput(24, 32, 1)


class Told(Listener):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture
def chosen(tmp_path):
    """Save images and choose those of a build; gives them and what was warned of."""

    def choose(images, target="onnxruntime:int8", image_input=GRAY):
        folder = tmp_path / "good"
        folder.mkdir(exist_ok=True)
        for number, image in enumerate(images):
            save_png(image, folder / f"{number}.png")
        targets = (Target.parse(target),)
        options = BuildOptions(tmp_path / "d", tmp_path / "a", targets, str(folder))
        told = Told()
        return build_images(options, image_input, told), told.warnings

    return choose


def noise(count, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, 24, 32, channels), np.uint8))


def flat(*levels):
    return [np.full((24, 32, 1), level, np.uint8) for level in levels]


def test_images_without_a_flaw_are_not_warned_of(chosen):
    images, warnings = chosen(noise(12))
    assert warnings == []
    assert (len(images.calibration.calibrate), len(images.checks)) == (9, 3)


def test_few_images(chosen):
    _, warnings = chosen(noise(5))
    assert warnings == [
        "4 calibration images are few: INT8 ranges need at least 8 images, better 50"
    ]


@pytest.mark.parametrize("target", ["onnxruntime:int8", "tensorrt-rtx:auto@sm86"])
def test_all_images_are_identical(chosen, target):
    _, (warning,) = chosen(noise(1) * 12, target)
    assert warning.startswith("the 9 calibration images are copies of one picture: ")


def test_many_copies_of_few_pictures(chosen):
    _, (warning,) = chosen(noise(2) * 10)
    assert warning.startswith("the 15 calibration images are copies of 2 pictures: ")


def test_copies_beside_enough_pictures_do_no_harm(chosen):
    assert chosen([*noise(20), *noise(1) * 3])[1] == []


@pytest.mark.parametrize("levels", [[0] * 12, range(12), [255]])
def test_constant_images_alone_are_refused(chosen, levels):
    with pytest.raises(InputError, match=r"all \d+ calibration images are of one gray level"):
        chosen(flat(*levels))


def test_one_colour_all_over_is_constant(chosen):
    red = np.zeros((24, 32, 3), np.uint8)
    red[..., 0] = 200
    with pytest.raises(InputError, match="one gray level or colour each"):
        chosen([red] * 8, image_input=ImageInput(24, 32, 3))


def test_of_many_images_unlike_ones_calibrate(chosen):
    # 110 of low contrast and 30 of all kinds: of 124 candidates 100 calibrate.
    dull = [image // 16 + 100 for image in noise(110)]
    images, warnings = chosen([*dull, *noise(30, seed=1)])
    assert warnings == []
    checks = {file.name for file in images.calibration.check}
    kinds = {f"{number}.png" for number in range(110, 140)} - checks
    assert kinds <= {file.name for file in images.calibration.calibrate}
    assert len(images.calibration.calibrate) == 100


def test_some_constant_images_are_named(chosen):
    images, (warning,) = chosen([*noise(30), *flat(0, 7)])
    names = {file.name for file in images.calibration.calibrate} & {"30.png", "31.png"}
    assert names  # of 24 of 32
    assert warning.startswith(f"{len(names)} of 24 calibration images are of one gray level")
    assert set(re.findall(r"\d+\.png", warning)) == names


def test_a_row_that_differs_is_not_constant(chosen):
    images = flat(*range(12))
    for image in images:
        image[-1, -1] += 1
    assert chosen(images)[1] == []


@pytest.mark.parametrize("target", ["onnxruntime:fp32", "tensorrt-rtx:fp16@sm86"])
def test_what_sets_no_ranges_may_be_constant(chosen, target):
    assert chosen(flat(3, 4), target)[1] == []


def test_a_wrong_size_is_refused_whichever_images_are_chosen(chosen, tmp_path):
    with pytest.raises(InputError, match=r"normal images are 24x32, the detector takes 32x24"):
        chosen(noise(12), image_input=ImageInput(32, 24, 1))
    save_png(np.zeros((24, 33, 1), np.uint8), tmp_path / "good" / "wide.png")
    with pytest.raises(InputError, match=r"images differ in size.*wide\.png"):
        chosen(noise(12))


def test_a_wrong_depth_is_refused(chosen, tmp_path):
    with pytest.raises(InputError, match="has 8 bits a channel, the detector takes 16"):
        chosen(noise(12), image_input=ImageInput(24, 32, 1, dtype="uint16"))
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(tmp_path / "good" / "deep.png")
    with pytest.raises(InputError, match=r"images differ in bit depth.*deep\.png has 16"):
        chosen(noise(12))


def test_an_image_that_cannot_be_read_is_refused(chosen, tmp_path):
    chosen(noise(12))
    path = tmp_path / "good" / "3.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match=r"3\.png"):
        chosen([])
