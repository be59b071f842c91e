"""Models of users that cannot be read: what is at fault, and what to do."""

import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from vadexport.detectors.steps import CenterCrop, Resize
from vadexport.errors import InputError
from vadexport.sources import SourceSpec, open_source
from vadexport.sources.plain import PlainModel, plain_detector


class Fixed(nn.Module):
    """Takes images of 24×24 alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 24 * 24, 1)

    def forward(self, x):
        return self.layer(x.flatten(1))[:, 0]


class Broken(nn.Module):
    def forward(self, x):
        return {"score": x}["scores"]


class Comparing(nn.Module):
    """A damaged row of the bank is never the nearest, so no score shows it."""

    def __init__(self, bank):
        super().__init__()
        self.register_buffer("memory_bank", bank)

    def forward(self, x):
        distance = (x.mean((1, 2, 3))[:, None] - self.memory_bank).abs()
        return distance.nan_to_num(nan=9.0).amin(1)


def opened(network, size=(16, 16), **spec):
    model = PlainModel(type(network).__name__, network.eval(), "call .eval()")
    return plain_detector(SourceSpec("own", image_size=size, **spec), model)


@pytest.mark.parametrize(
    ("network", "fault"),
    [
        (Fixed(), r"shapes cannot be multiplied.*; --resize and --image-size set another size$"),
        (Broken(), r"KeyError: 'scores' \(test_user_models\.py:\d+\)$"),
        (
            nn.Sequential(nn.Conv2d(3, 1, 3)).double(),
            r"weights 0\.weight are float64: .*\.float\(\)",
        ),
        (nn.Sequential(nn.Conv2d(3, 1, 3)).to("meta"), r"0\.weight are on PyTorch's device meta"),
    ],
)
def test_only_the_fault_is_named(network, fault):
    with pytest.raises(InputError, match=fault) as caught:
        opened(network)
    assert ("--resize" in str(caught.value)) == ("--resize" in fault)
    assert "\n" not in str(caught.value)


def test_a_crop_that_is_larger_than_the_image():
    with pytest.raises(InputError, match=r"--crop 32x16 is larger than the image.*16x16 there"):
        opened(Fixed(), steps=(CenterCrop((32, 16)),))
    with pytest.raises(InputError, match=r"--crop 24x24 is larger .* 20x25 there"):
        opened(Fixed(), size=(40, 50), steps=(Resize(20), CenterCrop((24, 24))))
    assert opened(Fixed(), steps=(Resize(24), CenterCrop((24, 24))))


def test_a_bank_that_is_damaged_where_no_score_shows_it():
    bank = torch.linspace(0, 1, 5)
    assert opened(Comparing(bank))
    with pytest.raises(InputError, match="weights memory_bank hold NaN: they are damaged"):
        opened(Comparing(bank.where(bank != 0.5, torch.nan)))


def test_one_number_that_says_unset():
    network = Comparing(torch.linspace(0, 1, 5))
    network.register_buffer("threshold", torch.tensor(torch.nan))
    assert opened(network)


def test_weights_of_an_onnx_file_that_are_damaged(save_onnx, network):
    path = save_onnx(network("tuple"), ["pred_score", "anomaly_map"])
    model = onnx.load(path)
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    with pytest.raises(InputError, match=f"weights {weight.name} of .* hold NaN"):
        open_source(path)


def test_python_code_is_no_file_of_a_detector(in_folder):
    (in_folder / "own_model.py").write_text("def make(): ...")
    with pytest.raises(InputError, match=r"is Python code: .*python:own_model:factory.*ONNX"):
        open_source(in_folder / "own_model.py")


@pytest.fixture
def own_code(in_folder, monkeypatch):
    """Write a module into the current folder; gives the location of its `make`."""

    def write(text):
        (in_folder / "own_talking.py").write_text(text)
        monkeypatch.delitem(sys.modules, "own_talking", raising=False)
        return "python:own_talking:make"

    return write


def test_what_a_model_prints_is_no_result(own_code, capsys):
    text = """
import torch
class Talking(torch.nn.Module):
    def forward(self, x):
        print("thinking")
        return x.mean((1, 2, 3))
def make(): return Talking().eval()
"""
    open_source(SourceSpec(own_code(text), image_size=(16, 16)))
    told = capsys.readouterr()
    assert told.out == ""
    assert "thinking" in told.err


def test_an_assertion_without_words(own_code):
    text = """
import torch
class Asserting(torch.nn.Module):
    def forward(self, x):
        assert x.shape[-1] == 24
        return x.mean((1, 2, 3))
def make(): return Asserting().eval()
"""
    fault = r"AssertionError: assert x\.shape\[-1\] == 24 \(own_talking\.py:5\); --resize and"
    with pytest.raises(InputError, match=fault):
        open_source(SourceSpec(own_code(text)))


def test_weights_without_values(own_code):
    text = """
import torch
def make(): return torch.nn.Conv2d(3, 1, 3, device="meta").eval()
"""
    with pytest.raises(InputError, match="weights weight are on PyTorch's device meta"):
        open_source(SourceSpec(own_code(text)))
