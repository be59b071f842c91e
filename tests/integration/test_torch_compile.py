"""The reference under `torch.compile`, beside the eager one."""

import json
import shutil
import sys

import pytest

from tests.integration.refusals import assert_refused

pytestmark = pytest.mark.slow

BRIGHTNESS = """
import torch
class Brightness(torch.nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3)).sin()
def make(): return Brightness().eval()
"""

with_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source that compiles in no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "brightness", raising=False)
    (tmp_path / "brightness.py").write_text(BRIGHTNESS)
    return ("python:brightness:make", "--image-size", "96", "--camera", "gray")


@with_compiler
def test_bench_times_a_source_both_ways(vadexport, source, images):
    words = ("--images", images, "--rounds", "3", "--threads", "1", "--torch-compile", "--json")
    found = vadexport("bench", *source, *words)
    assert found.status == 0, found.err
    eager, compiled = json.loads(found.out)["contestants"]
    assert compiled["name"] == f"{eager['name']} under torch.compile"
    assert eager["execution"]["backend"].endswith("eager")
    assert compiled["execution"]["backend"].endswith("torch.compile")
    assert compiled["footprint"]["load_ms"] > 5 * eager["footprint"]["load_ms"]  # it compiled
    assert compiled["speedup_over_first"]["value"] > 0


@with_compiler
def test_verify_reports_the_speedup_over_both(vadexport, source, images, tmp_path):
    built = vadexport(
        *("build", *source, "-o", tmp_path / "a", "--target", "onnxruntime:fp32"),
        *("--calibration", images / "good"),
    )
    assert built.status == 0, built.err
    words = ("--images", images, "--rounds", "3", "--threads", "1", "--torch-compile")
    found = vadexport("verify", tmp_path / "a", "--reference", source[0], *words)
    assert found.status == 0, found.err
    assert "torch.compile: median, and speed-up over it" in " ".join(found.out.split())
    report = json.loads((tmp_path / "a" / "report" / "latency.json").read_text())
    assert report["compiled"]["execution"]["backend"].endswith("torch.compile")
    assert report["speedup_over_compiled"]["baseline"] == "reference under torch.compile"
    assert report["speedup"]["baseline"] == "reference"


def test_without_a_compiler_the_rest_goes_on(
    vadexport, artifact, checkpoint, images, tmp_path, monkeypatch
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    words = ("--images", images, "--rounds", "3", "--torch-compile", "--report", tmp_path)
    found = vadexport("verify", artifact, "--reference", checkpoint, *words)
    assert found.status == 0, found.err
    (line,) = [each for each in found.err.splitlines() if "torch.compile is not timed" in each]
    assert "needs a C++ compiler, and no-such-compiler is not here" in line
    report = json.loads((tmp_path / "latency.json").read_text())
    assert (report["compiled"], report["speedup_over_compiled"]) == (None, None)


def test_where_there_is_nothing_to_compile(vadexport, artifact, checkpoint, images):
    found = vadexport("bench", artifact, "--images", images, "--torch-compile")
    assert_refused(found, 2, "--torch-compile is for a source")
    words = ("--reference", checkpoint, "--images", images, "--rounds", "0", "--torch-compile")
    assert_refused(
        vadexport("verify", artifact, *words), 2, "--torch-compile or --streams needs a measurement"
    )
