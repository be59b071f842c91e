"""Artifacts that crash, or say nothing, beside one that is well."""

import json
import shutil
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from vadexport.backends.onnxruntime.runner import OnnxRuntimeRunner
from vadexport.building import BuildOptions, build
from vadexport.errors import BackendError
from vadexport.listening import Listener
from vadexport.targets import Target
from vadexport.verifying import VerifyOptions, verify

pytestmark = pytest.mark.usefixtures("in_process")

FILES = {"parity.json", "junit.xml", "summary.md", "index.html"}


@pytest.fixture(scope="module")
def built(checkpoint, images, tmp_path_factory, children_here):
    folder = tmp_path_factory.mktemp("failing") / "two"
    targets = (Target("onnxruntime", "fp32"), Target("openvino", "fp32"))
    with children_here():
        build(BuildOptions(checkpoint, folder, targets, str(images / "good")), Listener())
    return folder


@pytest.fixture
def two(built, tmp_path):
    """An artifact of each backend, with what an earlier verification left."""
    for name in ("onnxruntime-fp32", "openvino-fp32"):
        shutil.copytree(built / name, tmp_path / "two" / name)
        report = tmp_path / "two" / name / "report"
        report.mkdir(exist_ok=True)
        (report / "latency.json").write_text("of an earlier one")
    return tmp_path / "two"


@pytest.fixture
def verified(two, checkpoint, images):
    def run(rounds=0):
        options = VerifyOptions(two, checkpoint, str(images), rounds=rounds, threads=1)
        result = verify(options, Listener())
        bad, good = sorted(result.verifications, key=lambda one: one.target)
        assert (bad.target, good.target) == ("onnxruntime:fp32", "openvino:fp32")
        for report in result.reports:
            held = json.loads((report / "parity.json").read_text(encoding="utf-8"))["held"]
            assert held == (report.parent.name == "openvino-fp32")
            assert {path.name for path in report.iterdir()} >= FILES
        assert good.held, [check.line for check in good.checks]
        return result, bad

    return run


def crashing_at(monkeypatch, number):
    """The ONNX Runtime artifact fails at this call, and at all after it."""
    infer, calls = OnnxRuntimeRunner.infer, []

    def crash(runner, image):
        calls.append(image)
        if len(calls) >= number:
            raise BackendError("onnxruntime:fp32 crashed (SIGSEGV)")
        return infer(runner, image)

    monkeypatch.setattr(OnnxRuntimeRunner, "infer", crash)


@pytest.mark.parametrize("number", [1, 5, 18], ids=["first", "among the images", "repeat"])
def test_one_that_crashes_does_not_cost_the_others_their_verdict(
    verified, monkeypatch, two, number
):
    crashing_at(monkeypatch, number)
    result, bad = verified()
    (check,) = [check for check in bad.checks if not check.held]
    assert check.name == "runs"
    assert check.line.startswith("onnxruntime:fp32 crashed (SIGSEGV)")
    assert (result.held, result.exit_status) == (False, 4)
    assert result.reasons == (f"onnxruntime:fp32: {check.line}",)
    report = two / "onnxruntime-fp32" / "report"
    assert not (report / "latency.json").exists()
    assert ET.parse(report / "junit.xml").getroot().get("failures") == "1"
    assert "crashed (SIGSEGV)" in (report / "summary.md").read_text(encoding="utf-8")


def test_one_that_crashes_while_it_is_timed(verified, monkeypatch):
    crashing_at(monkeypatch, 1 + 16 + 8 + 3)
    result, bad = verified(rounds=5)
    assert [check.name for check in bad.checks] == ["runs"]
    good = next(one for one in result.verifications if one.held)
    assert len(good.latency.artifact.samples_ms) == 5


def test_one_without_a_single_finite_score(verified, monkeypatch):
    infer = OnnxRuntimeRunner.infer

    def blank(runner, image):
        found = infer(runner, image)
        return {name: np.full_like(one, np.nan, np.float32) for name, one in found.items()}

    monkeypatch.setattr(OnnxRuntimeRunner, "infer", blank)
    result, bad = verified()
    assert result.exit_status == 1
    assert bad.figures.not_finite == bad.figures.images == 16
    assert {check.name for check in bad.checks if not check.held} >= {"finite", "repeat"}
    assert "16 of 16 images have scores that are not finite" in result.reasons[0]


def test_the_reference_must_not_fail(two, checkpoint, images, monkeypatch):
    from vadexport.backends.pytorch import PyTorchRunner

    def crash(*_):
        raise BackendError("reference crashed")

    monkeypatch.setattr(PyTorchRunner, "infer", crash)
    options = VerifyOptions(two, checkpoint, str(images), rounds=0, threads=1)
    with pytest.raises(BackendError, match="reference crashed"):
        verify(options, Listener())
    # What lies there is no verdict on what was asked for.
    assert not list(two.glob("*/report/latency.json"))
    assert list(two.glob("*/report/build.json"))
