"""Targets that a detector cannot have: a fact about it, told once, and no other target's end."""

import sys

import pytest

from vadexport.building import BuildOptions, build
from vadexport.errors import InputError
from vadexport.listening import Listener
from vadexport.sources import SourceSpec
from vadexport.targets import Target

WITHOUT_LAYERS = """
import torch
class Brightness(torch.nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3))
def make(): return Brightness().eval()
"""


class Told(Listener):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture
def built(tmp_path, monkeypatch, images):
    """Build the named targets of a detector without layers; the result, and what was warned of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "own_brightness", raising=False)
    (tmp_path / "own_brightness.py").write_text(WITHOUT_LAYERS)
    spec = SourceSpec("python:own_brightness:make", image_size=(96, 96), camera="gray")

    def go(told, *targets):
        chosen = tuple(map(Target.parse, targets))
        return build(BuildOptions(spec, tmp_path / "a", chosen, str(images / "good")), told)

    return go


@pytest.mark.parametrize("targets", [["openvino:int8"], ["openvino:int8", "onnxruntime:int8"]])
def test_nothing_to_quantise_is_wrong_input_and_told_once(built, targets):
    told = Told()
    with pytest.raises(InputError, match=r"network of Brightness has no convolution.* fp32") as got:
        built(told, *targets)
    assert got.value.exit_status == 2
    assert [line for line in told.warnings if "convolution" in line] == []


def test_other_targets_are_built(built):
    told = Told()
    result = built(told, "onnxruntime:int8", "onnxruntime:fp32")
    assert [one.folder is None for one in result.targets] == [True, False]
    assert result.targets[0].error.exit_status == 2
    (line,) = (line for line in told.warnings if "convolution" in line)
    assert line.startswith("onnxruntime:int8 was not built: ")


@pytest.mark.parametrize("target", ["openvino:auto", "onnxruntime:auto"])
def test_auto_is_float_where_there_is_nothing_to_quantise(built, target):
    result = built(Told(), target)
    (one,) = result.targets
    assert one.error is None
    assert one.precision == {"network": "fp32", "score head": "fp32"}
    assert str(one.resolved) == target
    (note,) = (note for note in result.notes if note.startswith(f"{target}: float32, for "))
    assert "no convolution" in note
