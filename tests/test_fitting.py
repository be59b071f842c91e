import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vadexport.detectors.checkpoint import load_detector
from vadexport.detectors.patchcore import PatchCoreConfig
from vadexport.errors import InputError
from vadexport.fitting import FitOptions, fit
from vadexport.images import image_digest
from vadexport.images.colouring import save_png
from vadexport.listening import Listener


class Told(Listener):
    """What a fit told its listener."""

    def __init__(self):
        self.steps, self.warnings = [], []

    def step(self, name, done, total, detail=""):
        del done, total, detail
        self.steps.append(name)

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture
def normal(crops, tmp_path):
    folder = tmp_path / "normal"
    folder.mkdir()
    for number, crop in enumerate(crops[:4]):
        save_png(crop[:, :, 0], folder / f"{number}.png")
    return folder


def put_images(folder, shape, count):
    folder.mkdir(parents=True)
    for number in range(count):
        save_png(np.full(shape, 50 * number, np.uint8), folder / f"{number}.png")


@pytest.fixture
def options(normal, tmp_path):
    config = PatchCoreConfig(coreset_ratio=0.02)
    return FitOptions("patchcore", str(normal), tmp_path / "d.safetensors", config, (32, 32))


class TestRefusedAtOnce:
    """What is wrong is said before any image's pixels are read, let alone trained on."""

    @pytest.fixture(autouse=True)
    def unreadable(self, normal):
        # Only its header is whole: decoding it would be another error.
        path = normal / "3.png"
        path.write_bytes(path.read_bytes()[:200])

    @pytest.mark.parametrize(
        ("size", "words"),
        [((20000, 20000), "pixels a side, not 20000x20000$"), ((16384, 8192), "at most 16777216")],
    )
    def test_a_network_input_too_large(self, options, size, words):
        with pytest.raises(InputError, match=words):
            fit(replace(options, size=size), Told())

    @pytest.mark.parametrize(
        ("folders", "words"),
        [
            ({}, "no such file or folder"),
            ({"good": 2}, "must hold labelled images, normal and anomalous"),
            ({"scratch": 2}, "must hold labelled images, normal and anomalous"),
        ],
        ids=["missing", "all normal", "no labels"],
    )
    def test_labelled_images_that_set_no_threshold(self, options, tmp_path, folders, words):
        labelled = tmp_path / "labelled"
        for name, count in folders.items():
            put_images(labelled / name, (96, 96), count)
        with pytest.raises(InputError, match=words):
            fit(replace(options, labelled=str(labelled)), Told())

    def test_labelled_images_of_another_size(self, options, tmp_path):
        for name in ("good", "scratch"):
            put_images(tmp_path / "labelled" / name, (96, 90), 2)
        told = Told()
        with pytest.raises(InputError, match=r"are 96×90 pixels .* those to fit on 96×96"):
            fit(replace(options, labelled=str(tmp_path / "labelled")), told)
        assert told.steps == told.warnings == []

    def test_a_folder_in_place_of_the_checkpoint(self, options):
        options.destination.mkdir()
        with pytest.raises(InputError, match=r"d\.safetensors is a folder: name the file"):
            fit(options, Told())
        assert list(options.destination.iterdir()) == []

    def test_no_folder_for_the_checkpoint(self, options, tmp_path):
        with pytest.raises(InputError, match="none does not exist: make the folder first"):
            fit(replace(options, destination=tmp_path / "none" / "d.safetensors"), Told())

    def test_a_folder_that_cannot_be_written(self, options):
        # Root may write into folders without permission, but not into this one.
        with pytest.raises(InputError, match=r"cannot write /proc/d\.safetensors: "):
            fit(replace(options, destination=Path("/proc/d.safetensors")), Told())

    def test_camera_images_too_large_for_the_network_ask_for_a_size(self, options, normal):
        shutil.rmtree(normal)
        normal.mkdir()
        save_png(np.zeros((4097, 4096), np.uint8), normal / "large.png")
        told = Told()
        with pytest.raises(InputError, match=r"not 4097x4096: .*--size"):
            fit(replace(options, size=None), told)
        assert told.steps == told.warnings == []


class TestSpread:
    @pytest.mark.parametrize("count", [4, 12])  # twelve fall into folds of two sizes
    def test_identical_images_are_warned_of(self, options, normal, count):
        for number in range(1, count):
            shutil.copyfile(normal / "0.png", normal / f"{number}.png")
        told = Told()
        detector = fit(options, told)
        assert "so drift has no unit" in told.warnings[-1]
        assert len(detector.normal_scores) == 1

    def test_one_image_is_warned_of(self, options, normal):
        told = Told()
        fit(replace(options, images=str(normal / "0.png")), told)
        assert "so drift has no unit" in told.warnings[-1]

    def test_images_that_differ_are_not(self, options):
        told = Told()
        fit(options, told)
        assert not any("drift" in warning for warning in told.warnings)


class TestFittedOn:
    def test_the_checkpoint_tells_which_images_it_was_fitted_on(self, options, normal):
        fit(options, Told())
        expected = sorted(image_digest(path) for path in normal.iterdir())
        assert list(load_detector(options.destination).fitted_on) == expected
        assert len(expected) == 4

    def test_copies_count_once_and_what_was_left_out_does_not(self, options, normal):
        shutil.copyfile(normal / "0.png", normal / "copy.png")
        (normal / "1.png").write_bytes(b"no image")
        fit(replace(options, skip_unreadable=True), Told())
        expected = sorted(image_digest(normal / f"{number}.png") for number in (0, 2, 3))
        assert list(load_detector(options.destination).fitted_on) == expected

    def test_names_and_folders_do_not_matter(self, options, normal, tmp_path):
        first = fit(options, Told())
        moved = normal.rename(tmp_path / "elsewhere")
        Path(moved / "0.png").rename(moved / "z.png")
        second = fit(replace(options, images=str(moved)), Told())
        assert second.fitted_on == first.fitted_on


class TestLabelled:
    def test_labelled_images_set_the_threshold_and_nothing_else_is_left(
        self, options, crops, tmp_path
    ):
        for name, images in {
            "good": crops[4:7],
            "dark": [crop // 4 for crop in crops[7:10]],
        }.items():
            folder = tmp_path / "labelled" / name
            folder.mkdir(parents=True)
            for number, image in enumerate(images):
                save_png(image[:, :, 0], folder / f"{number}.png")
        detector = fit(replace(options, labelled=str(tmp_path / "labelled")), Told())
        assert detector.thresholds.rule == "largest F1 score on 6 labelled images"
        assert {path.name for path in tmp_path.iterdir()} == {"normal", "labelled", "d.safetensors"}


@pytest.mark.parametrize(
    ("factor", "offset", "warned"),
    [(16, 0, True), (64, 0, True), (16, 32768, True), (128, 0, False), (257, 0, False)],
)
def test_16_bit_images_that_hardly_use_them_are_told_of(
    options, normal, crops, factor, offset, warned
):
    for number, crop in enumerate(crops[:4]):
        pixels = crop[:, :, 0].astype(np.uint16)
        pixels[0, :2] = 0, 255
        save_png(pixels * factor + offset, normal / f"{number}.png")
    told = Told()
    assert fit(options, told).image_input.dtype == "uint16"
    words = f"all values lie between {offset} and {255 * factor + offset} of 65535"
    assert any(words in warning for warning in told.warnings) == warned
