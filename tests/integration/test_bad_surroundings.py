"""Packages that are missing, disks that are full, builds that are stopped."""

import math
import signal
import subprocess
import sys
import time

import pytest

from tests.integration.refusals import assert_refused
from vadexport.artifact import open_artifact


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
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = vadexport("doctor")
    assert result.status == 0
    assert "vadexport[openvino]" in result.out
    assert "vadexport[report]" in result.out


def test_a_destination_that_cannot_be_written(vadexport, checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for destination in (tmp_path / "file", tmp_path / "file" / "a"):
        assert_refused(vadexport("build", checkpoint, "-o", destination), 2, "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_of_something_else_is_not_replaced(vadexport, checkpoint, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert_refused(vadexport("build", checkpoint, "-o", tmp_path), 2, "something else")
    assert (tmp_path / "thesis.txt").exists()


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
    for megabytes in range(size, 12 * size, 3 * size):
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
