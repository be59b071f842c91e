"""How much `verify` measures, and in which unit."""

import json
import sys

import pytest

from vadexport.building import BuildOptions, build
from vadexport.listening import Listener
from vadexport.sources import SourceSpec
from vadexport.targets import Target
from vadexport.verification import contest
from vadexport.verifying import VerifyOptions, verify

BRIGHTNESS = """
import torch
class Brightness(torch.nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3))
def make(): return Brightness().eval()
"""


class Noting(Listener):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only contestants move."""
    now = [0.0]
    monkeypatch.setattr(contest.time, "perf_counter", lambda: now[0])

    def contestants(*seconds):
        def taking(own):
            def call(_number):
                now[0] += own

            return call

        return {str(number): taking(each) for number, each in enumerate(seconds)}

    return contestants


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [((0.01, 0.02), 100), ((1.0, 0.5), 40), ((20.0, 0.1), 10)],
)
def test_as_many_rounds_as_a_minute_has_time_for(clock, seconds, rounds):
    assert contest._affordable_rounds(clock(*seconds)) == rounds


@pytest.mark.parametrize("given", [None, 12])
def test_the_report_says_how_many_rounds_ran(
    artifact, checkpoint, images, tmp_path, monkeypatch, given
):
    rounds = given or 10
    monkeypatch.setattr(contest, "_MEASURING_S", 0.0)
    told = Noting()
    options = VerifyOptions(
        artifact, checkpoint, str(images), rounds=given, threads=1, report=tmp_path
    )
    (found,) = verify(options, told).verifications
    assert len(found.latency.reference.samples_ms) == rounds
    report = json.loads((tmp_path / "latency.json").read_text())
    assert report["environment"]["latency_rounds"] == rounds
    parts = report["parts"]
    assert 0 < parts["preprocessing_ms"] < parts["call_ms"] == report["artifact"]["median_ms"]
    assert report["environment"]["load_before"] >= 0
    assert {"processors", "affinity", "governor", "load_after"} <= set(report["environment"])
    assert [line.split(",")[0] for line in told.notes] == (
        ["latency is measured in 10 rounds"] if given is None else []
    )


def test_no_rounds_at_all(artifact, checkpoint, images, tmp_path):
    options = VerifyOptions(artifact, checkpoint, str(images), rounds=0, report=tmp_path)
    (found,) = verify(options, Listener()).verifications
    assert found.latency is None
    assert found.environment["latency_rounds"] == 0


def test_the_unit_of_a_source_that_brings_none_is_the_builds(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "own_unit", raising=False)
    (tmp_path / "own_unit.py").write_text(BRIGHTNESS)
    spec = SourceSpec("python:own_unit:make", image_size=(96, 96), camera="gray")
    chosen = (Target("onnxruntime", "fp32"),)
    built = build(BuildOptions(spec, tmp_path / "a", chosen, str(images / "good")), Listener())
    options = VerifyOptions(tmp_path / "a", spec, str(images / "scratch"), rounds=0)
    (found,) = verify(options, Listener()).verifications
    assert found.drift_unit_from == "12 normal images, when it was built"
    assert built.drift_unit.startswith(f"{found.drift_unit:.4g}, ")


def test_the_unit_of_a_detector_that_brings_it(artifact, checkpoint, images, tmp_path):
    options = VerifyOptions(artifact, checkpoint, str(images), rounds=0, report=tmp_path)
    (found,) = verify(options, Listener()).verifications
    assert found.drift_unit_from == "the 12 normal images that set its thresholds"


def test_throughput_of_streams(artifact, checkpoint, images, tmp_path):
    options = VerifyOptions(
        artifact, checkpoint, str(images), rounds=3, threads=2, streams=2, report=tmp_path
    )
    (found,) = verify(options, Listener()).verifications
    assert (found.latency.throughput.streams, found.latency.reference_throughput.streams) == (2, 1)
    report = json.loads((tmp_path / "latency.json").read_text())
    assert report["throughput"]["images_per_s"] == found.latency.throughput.images_per_s > 0
    assert "in 2 streams" in (tmp_path / "summary.md").read_text()
