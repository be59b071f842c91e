"""What may be said of an engine where there is no GPU to run it: never that it ran."""

import json
import shutil

import pytest

from tests.integration.refusals import assert_refused
from vadexport import runtime
from vadexport.artifact import read_manifest
from vadexport.errors import MissingDeviceError

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.slow


@pytest.fixture
def words(checkpoint, images):
    return ("--reference", checkpoint, "--images", images, "--threads", "1")


def copied(engine, destination, *targets):
    for target in targets:
        shutil.copytree(engine(target), destination / engine(target).name)
    return destination


def test_without_a_proxy_it_is_refused(vadexport, engine, words, tmp_path):
    report = tmp_path / "report"
    refused = vadexport("verify", engine("tensorrt-rtx:fp32"), *words, "--report", report)
    assert_refused(refused, 3, "tensorrt-rtx:fp32 cannot run here: no NVIDIA GPU", "--proxy")
    assert not report.exists()


def test_a_proxy_proves_the_graph_and_says_so(vadexport, engine, words, tmp_path):
    report = tmp_path / "report"
    report.mkdir()
    (report / "latency.json").write_text("of an older verification")
    verified = vadexport(
        *("verify", engine("tensorrt-rtx:fp32"), *words, "--proxy", "--report", report)
    )
    assert verified.status == 0, verified.err
    said = "its ONNX graph, run on the processor; the artifact itself did not run"
    assert f"tensorrt-rtx:fp32: {said}" in " ".join(verified.out.split())
    assert "not the artifact was verified but the ONNX graph behind it" in verified.err
    assert "latency" not in verified.err
    parity = json.loads((report / "parity.json").read_text(encoding="utf-8"))
    assert (parity["proven_on"], parity["held"]) == ("graph", True)
    assert parity["environment"]["latency_rounds"] == 0
    assert "gpu" not in parity["environment"]
    assert not (report / "latency.json").exists()
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "not the artifact was verified but the ONNX graph behind it" in page


@pytest.mark.parametrize(
    ("target", "most"),
    [
        ("tensorrt-rtx:fp16@sm86+sm89", 0.1),
        ("tensorrt-rtx:int8", 10),
        ("onnxruntime:fp16@cuda", 0.1),
    ],
)
def test_a_proxy_has_the_precision_of_its_graph(vadexport, engine, words, tmp_path, target, most):
    report = ("--report", tmp_path / "report", "--proxy", "--json")
    verified = vadexport("verify", engine(target), *words, *report)
    assert verified.status in (0, 1), verified.err  # of so few calibration images
    (found,) = json.loads(verified.out)
    checks = {check["name"]: check["held"] for check in found["parity"]["checks"]}
    assert checks["finite"]
    assert checks["outputs"]
    assert found["latency"] is None
    # More than rounding of float32 explains: what the precision does to values was seen.
    assert 1e-4 < found["parity"]["figures"]["drift_max"] < most


@pytest.mark.parametrize("limit", ["--min-speedup", "--max-latency-ms"])
def test_a_proxy_is_no_measurement_of_speed(vadexport, engine, words, limit):
    refused = vadexport("verify", engine("tensorrt-rtx:fp32"), *words, "--proxy", limit, "2")
    assert_refused(refused, 2, "needs a measurement", "GPU is")


def test_beside_others_only_they_are_timed(vadexport, engine, words, tmp_path):
    folder = copied(engine, tmp_path / "a", "tensorrt-rtx:fp32", "openvino:fp32")
    refused = vadexport("verify", folder, *words)
    assert_refused(refused, 3, "tensorrt-rtx:fp32 cannot run here", "--proxy")
    verified = vadexport("verify", folder, *words, "--proxy", "--rounds", "10", "--json")
    found = {each["parity"]["target"]: each for each in json.loads(verified.out)}
    assert found["openvino:fp32"]["parity"]["proven_on"] == "artifact"
    assert len(found["openvino:fp32"]["latency"]["artifact"]["samples_ms"]) == 10
    proxied = found["tensorrt-rtx:fp32"]
    assert proxied["parity"]["proven_on"] == "graph"
    assert proxied["latency"] is None
    assert proxied["parity"]["held"]
    assert not {"latency", "speedup"} & {each["name"] for each in proxied["parity"]["checks"]}
    assert (folder / "openvino-fp32" / "report" / "latency.json").exists()
    assert not (folder / "tensorrt-rtx-fp32" / "report" / "latency.json").exists()


def test_a_limit_that_one_of_several_cannot_be_held_to_is_refused(
    vadexport, engine, words, tmp_path
):
    folder = copied(engine, tmp_path / "a", "tensorrt-rtx:fp32", "openvino:fp32")
    refused = vadexport("verify", folder, *words, "--proxy", "--max-latency-ms", "10000")
    assert_refused(refused, 2, "cannot be held against tensorrt-rtx:fp32")


@pytest.mark.parametrize("target", ["tensorrt-rtx:fp32", "onnxruntime:fp16@cuda"])
@pytest.mark.parametrize("use", ["predict", "evaluate"])
def test_it_does_not_score(vadexport, engine, images, use, target):
    message = {"t": "no NVIDIA GPU", "o": "this ONNX Runtime cannot use NVIDIA GPUs"}[target[0]]
    assert_refused(vadexport(use, engine(target), images), 3, message)


def test_it_cannot_be_loaded(engine):
    with pytest.raises(MissingDeviceError, match="no NVIDIA GPU") as caught:
        runtime.load(engine("tensorrt-rtx:fp32"))
    assert len(str(caught.value).splitlines()) == 1


def test_inspected(vadexport, engine):
    shown = dict(
        line.split(None, 1)
        for line in vadexport("inspect", engine("tensorrt-rtx:fp16@sm86+sm89")).out.splitlines()
    )
    assert shown["target"] == "tensorrt-rtx:fp16@sm86+sm89"
    assert shown["precision"].startswith("network fp16, ")
    assert "its ONNX graph; itself it did not run" in " ".join(shown["drift"].split())
    assert "tensorrt-rtx " in shown["tools"]
    for name in ("model.engine", "model.onnx", "settings.json"):
        assert name in shown["files"]
    assert shown["integrity"] == "every file is the one that was built"


@pytest.mark.parametrize("name", ["model.engine", "model.onnx", "settings.json"])
def test_a_changed_file_is_named(vadexport, engine, words, tmp_path, name):
    folder = copied(engine, tmp_path, "tensorrt-rtx:fp32") / "tensorrt-rtx-fp32"
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    for line in (["inspect", folder], ["verify", folder, *words, "--proxy"]):
        assert_refused(vadexport(*line), 2, f"{name} was changed after it was built")


def test_a_manifest_that_claims_something_else_is_refused(vadexport, engine, tmp_path):
    folder = copied(engine, tmp_path, "tensorrt-rtx:fp32") / "tensorrt-rtx-fp32"
    assert read_manifest(folder).proven_on == "graph"
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(
        text.replace('"proven_on": "graph"', '"proven_on": "artifact"'), encoding="utf-8"
    )
    assert_refused(vadexport("inspect", folder), 2, "manifest")
