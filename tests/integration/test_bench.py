"""`vadexport bench` from the command line."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.integration.refusals import assert_refused
from vadexport.artifact import read_manifest, write_manifest
from vadexport.contract import ImageInput
from vadexport.detectors.checkpoint import save_detector
from vadexport.detectors.patchcore import PatchCoreConfig, fit

pytestmark = pytest.mark.slow


@pytest.fixture
def words(images):
    return ("--images", images, "--rounds", "3", "--threads", "1")


@pytest.fixture
def half(crops, tmp_path):
    """A detector of smaller images."""
    crops = [np.ascontiguousarray(crop[:64, :80]) for crop in crops]
    save_detector(fit(crops, PatchCoreConfig(), ImageInput(64, 80, 1)), tmp_path / "half.st")
    return tmp_path / "half.st"


def test_a_table(vadexport, artifacts, checkpoint, words):
    found = vadexport("bench", checkpoint, artifacts / "openvino-fp32", *words)
    assert found.status == 0, found.err
    speed, rest, notes = (part.splitlines() for part in found.out.split("\n\n"))
    assert [line.split()[0] for line in speed] == [
        "contestant",
        "detector.safetensors",
        "openvino:fp32",
    ]
    assert speed[1].split()[2:4] == ["–", "–"]  # three rounds tell no quantile
    assert "eager" in rest[1]
    assert rest[2].split()[1] == "float32"
    assert notes[0] == "3 rounds, 1 image a call; speed-up over detector.safetensors"
    assert notes[1] == "–: too few rounds tell (90% from 29, 99% from 299 on)"


def test_json_of_every_artifact_of_a_build(vadexport, artifacts, checkpoint, words):
    found = vadexport("bench", artifacts, checkpoint, *words, "--json")
    assert found.status == 0, found.err
    report = json.loads(found.out)
    names = [one["name"] for one in report["contestants"]]
    targets = sorted(path.name.replace("-", ":", 1) for path in artifacts.iterdir())
    assert names == [*targets, "detector.safetensors"]
    first, *others = report["contestants"]
    assert first["speedup_over_first"] is None
    samples = np.array([one["samples_ms"] for one in report["contestants"]])
    assert samples.shape == (len(names), 3)
    for one, own in zip(others, samples[1:], strict=True):
        assert one["speedup_over_first"]["value"] == pytest.approx(np.median(samples[0] / own))
    for one, own in zip(report["contestants"], samples, strict=True):
        assert one["median_ms"] == pytest.approx(np.median(own), abs=1e-4)
        assert one["images_per_s"] == pytest.approx(1e3 / np.median(own), rel=1e-3)
        again = one["again"]
        assert one["aa_floor"] == pytest.approx(max(again["high"], 1 / again["low"]))
        assert one["execution"]["threads"] == 1
        assert one["footprint"]["peak_mb"] > 10
        assert one["warm_up"]["calls"] > 1
    assert report["contestants"][-1]["megabytes"] == pytest.approx(checkpoint.stat().st_size / 1e6)
    assert report["environment"]["latency_rounds"] == 3
    assert report["environment"]["load_before"] >= 0


def test_two_of_one_target_are_told_apart(vadexport, artifacts, words, tmp_path):
    copies = [shutil.copytree(artifacts / "openvino-fp32", tmp_path / name) for name in "ab"]
    found = vadexport("bench", *copies, *words, "--json")
    names = [one["name"] for one in json.loads(found.out)["contestants"]]
    assert names == [f"openvino:fp32 in {copy}" for copy in copies]


def test_the_same_twice(vadexport, artifact, words):
    assert_refused(vadexport("bench", artifact, artifact, *words), 2, "is given twice")


def test_images_of_another_size(vadexport, artifact, half, words):
    found = vadexport("bench", artifact, half, *words)
    assert_refused(found, 2, "half.st takes 1 of 64x80x1", "1 of 96x96x1", "one by one")


def test_another_batch(vadexport, artifacts, words, tmp_path):
    for name in ("openvino-fp32", "onnxruntime-fp32"):
        shutil.copytree(artifacts / name, tmp_path / name)
    manifest = read_manifest(tmp_path / "openvino-fp32")
    eight = replace(manifest, image_input=replace(manifest.image_input, batch=8))
    write_manifest(tmp_path / "openvino-fp32", eight)
    found = vadexport("bench", tmp_path, *words)
    assert_refused(found, 2, "8 of 96x96x1", "1 of 96x96x1")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nowhere"], "nowhere"),
        (["."], "is no vadexport artifact"),
        ([], "Missing argument"),
    ],
)
def test_nothing_to_time(vadexport, words, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    assert_refused(vadexport("bench", *given, *words), 2, said)


def test_no_images(vadexport, artifact, tmp_path):
    assert_refused(vadexport("bench", artifact), 2, "--images")
    nothing = vadexport("bench", artifact, "--images", tmp_path)
    assert_refused(nothing, 2, tmp_path)


@pytest.mark.parametrize("rounds", ["0", "-1", "x"])
def test_rounds_that_measure_nothing(vadexport, artifact, images, rounds):
    found = vadexport("bench", artifact, "--images", images, "--rounds", rounds)
    assert_refused(found, 2, "--rounds")


def test_artifacts_alone_take_no_options_of_sources(vadexport, artifact, words):
    found = vadexport("bench", artifact, *words, "--threshold", "1")
    assert_refused(found, 2, "takes no --threshold")


def test_a_changed_artifact(vadexport, artifact, words, tmp_path):
    changed = shutil.copytree(artifact, tmp_path / "changed")
    (changed / "model.onnx").write_bytes(b"")
    assert_refused(vadexport("bench", changed, *words), 2, "was changed after it was built")


def test_throughput(vadexport, artifact, checkpoint, images):
    words = ("--images", images, "--rounds", "3", "--threads", "2", "--streams", "2")
    found = vadexport("bench", artifact, checkpoint, *words, "--json")
    assert found.status == 0, found.err
    one, reference = (each["throughput"] for each in json.loads(found.out)["contestants"])
    assert (one["streams"], reference["streams"]) == (2, 1)
    assert one["images_per_s"] == pytest.approx(np.median(one["blocks"]))
    assert min(reference["blocks"]) > 0


@pytest.mark.parametrize("command", ["bench", "verify"])
def test_more_streams_than_threads(vadexport, artifact, checkpoint, images, command):
    words = ("--images", images, "--threads", "1", "--streams", "2")
    reference = ("--reference", checkpoint) if command == "verify" else ()
    found = vadexport(command, artifact, *reference, *words)
    assert_refused(found, 2, "2 streams cannot share 1 threads")
    assert_refused(
        vadexport(command, artifact, *reference, *words, "--streams", "0"), 2, "--streams"
    )
