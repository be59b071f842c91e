"""A detector that makes no decisions: what `verify` still holds its `pred_score` to."""

import shutil
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from vadexport.artifact import read_manifest, write_manifest
from vadexport.building import BuildOptions, build
from vadexport.errors import InputError
from vadexport.listening import Listener
from vadexport.sources import SourceSpec
from vadexport.targets import Target
from vadexport.verifying import VerifyOptions, verify

pytestmark = pytest.mark.usefixtures("in_process")

BRIGHTNESS = """
import torch
class Brightness(torch.nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3))
def make(): return Brightness().eval()
"""


@pytest.fixture
def built(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "undecided", raising=False)
    (tmp_path / "undecided.py").write_text(BRIGHTNESS)
    spec = SourceSpec("python:undecided:make", image_size=(96, 96), camera="gray")
    chosen = (Target("onnxruntime", "fp32"),)
    build(BuildOptions(spec, tmp_path / "a", chosen, str(images / "good")), Listener())
    return spec


def spoilt(folder, copy, operator, value):
    """A copy of an artifact whose `pred_score` goes through another node."""
    shutil.copytree(folder, copy)
    model = onnx.load(copy / "model.onnx")
    (place,) = (n for n, node in enumerate(model.graph.node) if "pred_score" in node.output)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for number, name in enumerate(names):
                names[number] = "untouched" if name == "pred_score" else name
    constant = numpy_helper.from_array(np.array(value, np.float32), "constant")
    model.graph.initializer.append(constant)
    model.graph.node.insert(
        place + 1, helper.make_node(operator, ["untouched", "constant"], ["pred_score"])
    )
    onnx.save(model, copy / "model.onnx")
    write_manifest(copy, read_manifest(copy))
    return copy


def fallen(artifact, spec, images, **limits):
    options = VerifyOptions(artifact, spec, str(images), limits, rounds=0)
    (found,) = verify(options, Listener()).verifications
    return {check.name for check in found.checks if not check.held}


def test_its_score_must_be_a_number_and_the_references(built, images, tmp_path):
    assert fallen(tmp_path / "a", built, images) == set()
    nothing = spoilt(tmp_path / "a", tmp_path / "b", "Mul", np.nan)
    assert "finite" in fallen(nothing, built, images)
    another = spoilt(tmp_path / "a", tmp_path / "c", "Add", 0.01)
    assert fallen(another, built, images) == {"outputs"}


@pytest.mark.parametrize("name", ["max_flips", "max_map_drift"])
def test_limits_on_what_it_does_not_give(built, images, tmp_path, name):
    with pytest.raises(InputError, match="cannot be judged: the detector"):
        fallen(tmp_path / "a", built, images, **{name: 0.1})
