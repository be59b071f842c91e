import importlib.util
import math
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from vadexport.artifact import open_artifact
from vadexport.images.colouring import save_png


def assert_refused(result, status, *words):
    """One line of error that says all of `words`, no traceback, the right exit status."""
    lines = [line for line in result.err.splitlines() if not line.startswith(("  ", "warning:"))]
    assert result.status == status, result.err
    assert "Traceback" not in result.err
    assert len(lines) == 1, result.err
    if status == 2:
        assert lines[0].startswith("vadexport: error: ")
    for word in words:
        assert str(word) in lines[-1]


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


def test_an_image_of_another_size_than_the_artifacts(vadexport, artifacts, tmp_path):
    save_png(np.zeros((50, 60, 1), np.uint8), tmp_path / "small.png")
    result = vadexport("predict", artifacts / "openvino-fp32", tmp_path / "small.png")
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
    assert_refused(result, 1, "finite")


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


def test_an_unknown_target(vadexport, checkpoint, tmp_path):
    result = vadexport("build", checkpoint, "-o", tmp_path / "a", "--target", "abacus:fp32")
    assert_refused(result, 2, "abacus")
    assert "openvino:fp32" in result.err


def test_a_missing_backend_fails_that_target_only(vadexport, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    alone = vadexport("build", checkpoint, "-o", tmp_path / "a", "--target", "openvino:fp32")
    assert_refused(alone, 3, "openvino", "pip install")
    assert alone.err.count("pip install") == 1
    assert not (tmp_path / "a").exists()
    both = vadexport(
        *("build", checkpoint, "-o", tmp_path / "a"),
        *("--target", "openvino:fp32", "--target", "onnxruntime:fp32"),
    )
    assert both.status == 3
    assert "warning: openvino:fp32 is not built" in both.err
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["onnxruntime-fp32"]


def test_doctor_names_what_is_missing(vadexport, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "nncf", None)
    result = vadexport("doctor")
    assert result.status == 0
    assert "vadexport[openvino]" in result.out
    assert "vadexport[int8]" in result.out


def test_a_destination_that_cannot_be_written(vadexport, checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for destination in (tmp_path / "file", tmp_path / "file" / "a"):
        assert_refused(vadexport("build", checkpoint, "-o", destination), 2, "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_of_something_else_is_not_replaced(vadexport, checkpoint, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert_refused(vadexport("build", checkpoint, "-o", tmp_path), 2, "something else")
    assert (tmp_path / "thesis.txt").exists()


def test_a_detector_without_normal_scores_and_no_normal_images(vadexport, tampered, tmp_path):
    # Generated images check the graph's arithmetic; a spread of normal scores they cannot give.
    few = tampered({"normal_scores": lambda scores: scores[:1]})
    result = vadexport("build", few, "-o", tmp_path / "a")
    assert_refused(result, 2, "drift is measured in units of the spread", "give normal images")
    assert not (tmp_path / "a").exists()


def test_int8_without_nncf_is_missing_before_any_work(
    vadexport, checkpoint, images, tmp_path, monkeypatch
):
    find = importlib.util.find_spec

    def without_nncf(name, package=None):
        return None if name == "nncf" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_nncf)
    words = ("build", checkpoint, "-o", tmp_path / "a", "--calibration", images / "good")
    alone = vadexport(*words, "--target", "openvino:int8")
    assert_refused(alone, 3, "nncf", "vadexport[int8]")
    assert "reference" not in alone.err
    both = vadexport(*words, "--target", "openvino:int8", "--target", "onnxruntime:fp32")
    assert both.status == 3
    assert (tmp_path / "a" / "onnxruntime-fp32" / "manifest.json").is_file()


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of a given size."""
    mounted = []

    def mount(megabytes):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder]
        if sys.platform != "linux" or subprocess.run(command, check=False).returncode:
            pytest.skip("mounting a small disk takes Linux and root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)  # noqa: S607 - wherever the system has it


def test_a_full_disk(checkpoint, small_disk):
    # In the smaller ones the graph finds no room, in others only what the backend makes of it.
    size = math.ceil(checkpoint.stat().st_size / 2**20)
    statuses = []
    for megabytes in range(size, 12 * size, 2 * size):
        disk = small_disk(megabytes)
        command = [sys.executable, "-m", "vadexport", "build", checkpoint, "-o", disk / "a"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        statuses.append(done.returncode)
        if done.returncode == 0:
            break
        last = done.stderr.strip().splitlines()[-1]
        assert last == f"vadexport: error: cannot write {disk / 'a'}: No space left on device"
        assert list(disk.iterdir()) == []
    assert statuses == [*[2] * (len(statuses) - 1), 0]
    assert len(statuses) > 2


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_files_that_may_not_grow(checkpoint, tmp_path):
    # A limit on file size is another way for writes to fail in the middle.
    import resource

    done = subprocess.run(
        [sys.executable, "-m", "vadexport", "build", checkpoint, "-o", tmp_path / "a"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert list(tmp_path.iterdir()) == []


def _start_build(checkpoint, destination):
    """Start a build in a process of its own, and wait until it is in the middle."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vadexport", "build", checkpoint, "-o", destination],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "reference" in line:
            break
    time.sleep(0.2)
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_stopped_leaves_the_old_artifact(vadexport, checkpoint, tmp_path, sent):
    destination = tmp_path / "a"
    assert vadexport("build", checkpoint, "-o", destination).status == 0
    before = (destination / "manifest.json").read_bytes()
    process = _start_build(checkpoint, destination)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in err
    open_artifact(destination)
    assert (destination / "manifest.json").read_bytes() == before
    if sent == signal.SIGINT:
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert vadexport("build", checkpoint, "-o", destination).status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


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
        ["build", "x", "-o", "y", "--target", "tensorrt-rtx:fp16@sm86"],
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
