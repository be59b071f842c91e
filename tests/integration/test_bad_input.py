import os
import pickle

import numpy as np
import pytest
import torch

from tests.integration.refusals import assert_refused
from vadexport.images.colouring import save_png


@pytest.fixture
def good(images, tmp_path):
    """A folder of twelve normal images to spoil."""
    folder = tmp_path / "good"
    folder.mkdir()
    for path in (images / "good").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "patchcore", "nowhere", "-o", "d.safetensors"],
        ["build", "nowhere.safetensors", "-o", "a"],
        ["verify", "nowhere", "--reference", "nowhere.safetensors", "--images", "nowhere"],
        ["predict", "nowhere", "nowhere"],
        ["evaluate", "nowhere", "nowhere"],
        ["inspect", "nowhere"],
    ],
)
def test_a_missing_path(vadexport, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert_refused(vadexport(*words), 2, "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder(vadexport, tmp_path):
    (tmp_path / "empty").mkdir()
    result = vadexport("fit", "patchcore", tmp_path / "empty", "-o", tmp_path / "d.safetensors")
    assert_refused(result, 2, "empty")


def test_a_folder_of_other_files(vadexport, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no image")
    result = vadexport("fit", "patchcore", tmp_path / "notes", "-o", tmp_path / "d.safetensors")
    assert_refused(result, 2, "notes", "image")
    assert not (tmp_path / "d.safetensors").exists()


def test_a_truncated_jpeg_among_good_images(vadexport, good, tmp_path):
    from PIL import Image

    broken = good / "broken.jpg"
    Image.fromarray(np.full((96, 96), 7, np.uint8)).save(broken)
    broken.write_bytes(broken.read_bytes()[:-200])
    words = ["fit", "patchcore", good, "-o", tmp_path / "d.safetensors", "--coreset", "0.05"]
    assert_refused(vadexport(*words), 2, "broken.jpg", "--skip-unreadable")
    assert not (tmp_path / "d.safetensors").exists()
    skipped = vadexport(*words, "--skip-unreadable")
    assert skipped.status == 0
    assert "broken.jpg" in skipped.err


def test_images_of_different_sizes(vadexport, good, tmp_path):
    save_png(np.zeros((50, 60, 1), np.uint8), good / "small.png")
    result = vadexport("fit", "patchcore", good, "-o", tmp_path / "d.safetensors")
    assert_refused(result, 2, "small.png")


def test_an_image_of_another_size_than_the_artifacts(vadexport, artifact, tmp_path):
    save_png(np.zeros((50, 60, 1), np.uint8), tmp_path / "small.png")
    result = vadexport("predict", artifact, tmp_path / "small.png")
    assert_refused(result, 2, "small.png", "96")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (pickle.dumps({"state_dict": 1}), "pickle"),
        (pickle.dumps({"state_dict": 1}, protocol=0), "pickle"),
        (b"PK\x03\x04 a zip", "truncated, damaged: an archive without its end"),
        (b"\x00" * 100, "safetensors"),
        (b"", "safetensors"),
    ],
)
@pytest.mark.parametrize("command", ["build", "inspect"])
def test_a_checkpoint_of_another_format(vadexport, tmp_path, command, content, word):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    words = ["-o", tmp_path / "a"] if command == "build" else []
    assert_refused(vadexport(command, path, *words), 2, "model.ckpt", word)
    assert not (tmp_path / "a").exists()


def test_a_pickle_is_not_run(vadexport, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "hacked"),))

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "evil.pkl"):
        assert_refused(vadexport("build", tmp_path / name, "-o", tmp_path / "a"), 2, "pickle")
    assert not (tmp_path / "hacked").exists()


def test_a_truncated_checkpoint(vadexport, checkpoint, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:-100])
    assert_refused(
        vadexport("build", path, "-o", tmp_path / "a"), 2, "cut.safetensors", "truncated"
    )


def test_weights_that_are_not_finite(vadexport, tampered, tmp_path):
    path = tampered({"memory_bank": lambda bank: bank.index_fill(0, torch.tensor([0]), np.nan)})
    result = vadexport("build", path, "-o", tmp_path / "a")
    assert_refused(result, 2, "memory_bank", "NaN")


def test_scores_that_are_not_finite(vadexport, tampered, tmp_path):
    # Every weight is a number, but squared distances overflow.
    path = tampered({"memory_bank": lambda bank: bank * 0 + 1e30})
    assert_refused(vadexport("build", path, "-o", tmp_path / "a"), 2, "not finite")
    assert not (tmp_path / "a").exists()


def test_verify_fails_where_the_reference_is_not_finite(vadexport, artifacts, images, tampered):
    path = tampered({"memory_bank": lambda bank: bank * 0 + 1e30})
    result = vadexport(
        *("verify", artifacts / "openvino-fp32", "--reference", path, "--images", images),
        *("--rounds", "0", "--report", path.parent / "report"),
    )
    assert result.status == 1, result.err
    assert "Traceback" not in result.err
    last = result.err.splitlines()[-1]
    assert "16 of 16 images have scores that are not finite" in last
    assert "(reference)" in last


def test_int8_without_calibration(vadexport, checkpoint, tmp_path):
    result = vadexport("build", checkpoint, "-o", tmp_path / "a", "--target", "openvino:int8")
    assert_refused(result, 2, "--calibration")
    assert not (tmp_path / "a").exists()


def test_few_calibration_images_are_warned_of(vadexport, checkpoint, good, tmp_path):
    for path in sorted(good.iterdir())[5:]:
        path.unlink()
    result = vadexport(
        *("build", checkpoint, "-o", tmp_path / "a", "--target", "onnxruntime:int8"),
        *("--calibration", good),
    )
    assert "warning" in result.err
    assert "few" in result.err
    assert (tmp_path / "a" / "manifest.json").is_file()


def test_defects_among_the_normal_images_are_named(vadexport, checkpoint, images, good, tmp_path):
    for path in (images / "scratch").iterdir():
        (good / f"scratch{path.name}").write_bytes(path.read_bytes())
    result = vadexport(
        *("build", checkpoint, "-o", tmp_path / "a", "--target", "onnxruntime:int8"),
        *("--calibration", good),
    )
    (warning,) = [line for line in result.err.splitlines() if line.startswith("warning")]
    assert "of 16 normal images look like defects to the detector" in warning
    assert all(f"scratch{number}.png" in warning for number in range(4))
    assert (tmp_path / "a" / "manifest.json").is_file()


def test_an_unknown_target(vadexport, checkpoint, tmp_path):
    result = vadexport("build", checkpoint, "-o", tmp_path / "a", "--target", "abacus:fp32")
    assert_refused(result, 2, "abacus")
    assert "openvino:fp32" in result.err


def test_a_detector_without_normal_scores_and_no_normal_images(vadexport, tampered, tmp_path):
    # Generated images check the graph's arithmetic; a spread of normal scores they cannot give.
    few = tampered({"normal_scores": lambda scores: scores[:1]})
    result = vadexport("build", few, "-o", tmp_path / "a")
    assert_refused(result, 2, "drift is measured in units of the spread", "give normal images")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("command", ["predict", "inspect", "verify"])
def test_an_artifact_with_one_changed_byte(
    vadexport, artifacts, checkpoint, images, tmp_path, command
):
    import shutil

    folder = tmp_path / "a"
    shutil.copytree(artifacts / "openvino-fp32", folder)
    weights = bytearray((folder / "model.bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    (folder / "model.bin").write_bytes(weights)
    words = {
        "predict": [images],
        "inspect": [],
        "verify": ["--reference", checkpoint, "--images", images],
    }[command]
    assert_refused(vadexport(command, folder, *words), 2, "model.bin", "changed")


def test_several_artifacts_where_one_is_wanted(vadexport, artifacts, images):
    assert_refused(vadexport("predict", artifacts, images), 2, "openvino-fp32")


@pytest.mark.parametrize("family", ["patchcore", "padim", "autoencoder"])
def test_black_images_bring_no_drift_unit(vadexport, tmp_path, family):
    black, detector = tmp_path / "black", tmp_path / "d.safetensors"
    black.mkdir()
    for number in range(12):
        save_png(np.zeros((96, 96, 1), np.uint8), black / f"{number}.png")
    few = ["--steps", "3"] if family == "autoencoder" else []
    fitted = vadexport("fit", family, black, "-o", detector, *few)
    assert fitted.status == 0
    assert "drift has no unit" in fitted.err
    result = vadexport("build", detector, "-o", tmp_path / "a")
    assert_refused(result, 2, "give normal images")


def test_one_normal_image_builds_only_with_others_to_set_the_unit(vadexport, good, tmp_path):
    detector = tmp_path / "d.safetensors"
    one = min(good.iterdir())
    assert vadexport("fit", "patchcore", one, "-o", detector).status == 0
    alike = tmp_path / "alike"
    alike.mkdir()
    for number in range(8):
        (alike / f"{number}.png").write_bytes(one.read_bytes())
    result = vadexport("build", detector, "-o", tmp_path / "a", "--calibration", alike)
    assert_refused(result, 2, "same score")
    result = vadexport("build", detector, "-o", tmp_path / "a", "--calibration", good)
    assert result.status == 0, result.err


@pytest.mark.parametrize(
    "words",
    [
        ["fit patchcore", "x", "-o", "y", "--levels", "3,2"],
        ["fit patchcore", "x", "-o", "y", "--size", "0x4"],
        ["fit", "abacus", "x", "-o", "y"],
        ["build", "x"],
        ["build", "x", "-o", "y", "--batch", "none"],
        ["build", "x", "-o", "y", "--target", "tensorrt-rtx:fp16@sm87"],
        ["build", "x", "-o", "y", "--tensorrt", "level"],
        ["build", "x", "-o", "y", "--bacth", "1"],
        ["verify", "x"],
        ["", "abracadabra"],
        ["", "-q", "fit"],
    ],
)
def test_wrong_usage(vadexport, words):
    command, *rest = words
    result = vadexport(*command.split(), *rest)
    assert_refused(result, 2)
    assert len(result.err.splitlines()) == 1
    help_of = " ".join(["vadexport", *command.split(), "--help"])
    assert result.err.endswith(f" (see `{help_of}`)\n")
    assert ". (see" not in result.err


@pytest.mark.parametrize("words", [[], ["fit"]])
def test_a_command_that_is_not_finished_shows_its_help(vadexport, words):
    result = vadexport(*words)
    assert result.status == 2
    assert result.err.startswith("Usage: vadexport")
    assert "Example" in result.err
