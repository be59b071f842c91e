import signal
import subprocess
import sys
import time

import pytest

from vadexport.artifact.folder import open_artifact
from vadexport.cli.console import Console

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
BOTH = pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture
def start():
    """Start a command line in a process that ends with the test."""
    started = []

    def begin(*words):
        process = subprocess.Popen(
            [sys.executable, "-m", "vadexport", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def stopped(process, sent):
    """Send a signal; the status, and the last line of what is said then."""
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, err.splitlines()[-1]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def wait_for(true, process, limit_s=120):
    end = time.monotonic() + limit_s
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def many(images, tmp_path):
    """A folder of so many images that scoring them takes a while."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3000):
        (folder / f"{number}.png").hardlink_to(images / "good" / f"{number % 12}.png")
    return folder


@BOTH
def test_predict(start, artifact, many, tmp_path, sent):
    out = tmp_path / "out"
    out.mkdir()
    process = start("predict", artifact, many, "--jsonl", out / "a.jsonl")
    assert process.stdout.readline()
    assert stopped(process, sent) == (130, "vadexport: interrupted, nothing was written")
    assert names(out) == []


@BOTH
def test_predict_with_heatmaps(start, artifact, many, tmp_path, sent):
    out = tmp_path / "out"
    out.mkdir()
    words = ["--heatmaps", out / "maps", "--jsonl", out / "a.jsonl"]
    process = start("predict", artifact, many, *words)
    assert process.stdout.readline()
    line = f"vadexport: interrupted, heatmaps made so far stay in {out / 'maps'}"
    assert stopped(process, sent) == (130, line)
    assert names(out) == ["maps"]
    made = [path for path in (out / "maps").rglob("*") if path.is_file()]
    assert made
    assert all(path.name.endswith(".heatmap.png") for path in made)


@BOTH
def test_build(start, checkpoint, tmp_path, sent):
    process = start("build", checkpoint, "-o", tmp_path / "a", "--target", "onnxruntime:fp32")
    wait_for((tmp_path / ".a.partial").exists, process)
    assert stopped(process, sent) == (130, "vadexport: interrupted, nothing was written")
    assert names(tmp_path) == []


@BOTH
def test_a_fit_says_what_it_kept(start, images, tmp_path, sent):
    # The teacher is kept when its stage ends; the student would take an hour.
    words = ["--width", "8", "--size", "64", "--teacher-steps", "1", "--steps", "100000"]
    output = tmp_path / "d.safetensors"
    process = start("fit", "efficient_ad", images / "good", "-o", output, *words)
    wait_for(
        lambda: any("teacher" in name and "tmp" not in name for name in names(tmp_path)), process
    )
    status, line = stopped(process, sent)
    assert status == 130
    assert line == (
        "vadexport: interrupted, "
        "training was kept: the same command goes on where it was last saved"
    )
    kept = names(tmp_path)
    assert [name.startswith(".d.safetensors.training-") for name in kept] == [True]


def test_a_fit_that_kept_nothing(start, images, tmp_path):
    # An older training is no work of this one.
    (tmp_path / ".d.safetensors.training-train").write_text("old")
    words = ["--size", "64", "--steps", "100000"]
    process = start("fit", "autoencoder", images / "good", "-o", tmp_path / "d.safetensors", *words)
    for line in process.stderr:
        if "starts anew" in line:
            break
    status, line = stopped(process, signal.SIGTERM)
    assert (status, line) == (130, "vadexport: interrupted, nothing was written")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 1, 2, 3, 4, 5, 6, 7])
@BOTH
def test_build_at_any_time(start, checkpoint, tmp_path, sent, seconds):
    # Imports of packages, which it may fall into, end the process or turn it into another error.
    process = start("build", checkpoint, "-o", tmp_path / "a")
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        built = (tmp_path / "a").exists()
        status, last = stopped(process, sent)
        if built:
            assert status in (0, -sent) or (status, last) == (
                *(130, f"vadexport: interrupted, {tmp_path / 'a'} was written"),
            )
            open_artifact(tmp_path / "a")
        else:
            assert (status, last) == (130, "vadexport: interrupted, nothing was written")
            assert names(tmp_path) == []


def importing(start, folder, monkeypatch, seconds):
    """A build of a model whose module takes so long to import, and catches all that it can."""
    module = f"""
import pathlib, time
pathlib.Path({str(folder / "importing")!r}).touch()
try:
    time.sleep({seconds})
except BaseException:
    raise ValueError("what was that?") from None
def make(): ...
"""
    (folder / "slow_to_import.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    words = ["python:slow_to_import:make", "--image-size", "8x8", "-o", folder / "a"]
    process = start("build", *words)
    wait_for((folder / "importing").exists, process)
    return process


@BOTH
def test_an_import_is_not_interrupted(start, tmp_path, monkeypatch, sent):
    process = importing(start, tmp_path, monkeypatch, 2)
    assert stopped(process, sent) == (130, "vadexport: interrupted, nothing was written")


@BOTH
def test_an_import_is_interrupted_by_the_second_request(start, tmp_path, monkeypatch, sent):
    process = importing(start, tmp_path, monkeypatch, 250)
    process.send_signal(sent)
    time.sleep(0.5)
    assert process.poll() is None
    assert stopped(process, sent) == (130, "vadexport: interrupted, nothing was written")


def test_an_interruption_that_a_package_caught():
    console = Console()
    console.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        console.step("trace", 0, 1)
