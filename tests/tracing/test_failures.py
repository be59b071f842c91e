"""Models that PyTorch cannot trace: one line that says why and what to do."""

import traceback
from dataclasses import replace

import pytest
import torch
from torch import nn

from vadexport.errors import InputError
from vadexport.sources.plain import PlainModel, plain_detector
from vadexport.sources.spec import SourceSpec
from vadexport.tracing.graph import trace


class Branching(nn.Module):
    def forward(self, x):
        brightest = x.amax((1, 2, 3))
        if brightest.sum() > 0:
            return brightest * 2
        return brightest


class Counting(nn.Module):
    def forward(self, x):
        found = x.mean((1, 2, 3))
        for _ in range(int(x.max()) + 1):
            found = found + 1
        return found


class OneByOne(nn.Module):
    def forward(self, x):
        return torch.stack([x[number].mean() for number in range(len(x))])


class WithoutAxes(nn.Module):
    def forward(self, x):
        return torch.stack([x[number].amax() for number in range(len(x))])


class Talking(nn.Module):
    def forward(self, x):
        print("thinking")  # noqa: T201 - as users do
        return x.mean((1, 2, 3))


def detector_of(network):
    model = PlainModel(type(network).__name__, network.eval(), "call .eval()")
    return plain_detector(SourceSpec("own", image_size=(16, 16)), model)


@pytest.mark.parametrize(
    ("network", "batch", "words"),
    [
        (Branching(), 1, r"test_failures\.py:\d+, `if brightest\.sum\(\) > 0:`.*torch\.where"),
        (Branching(), None, r"depends on the values of the image.*torch\.where"),
        (Counting(), 1, r"test_failures\.py:\d+, `for _ in range\(.*torch\.where"),
        (OneByOne(), None, r"the number of images becomes a constant.*build with --batch 1"),
        (WithoutAxes(), 1, r"cannot take aten\.amax\.default, as called: .*'dim' is not provided$"),
    ],
)
def test_what_cannot_be_traced(network, batch, words, capfd):
    detector = detector_of(network)
    with pytest.raises(InputError, match=words) as caught:
        trace(detector, replace(detector.image_input, batch=batch))
    assert str(caught.value).startswith(f"PyTorch cannot trace {type(network).__name__}: ")
    assert "\n" not in str(caught.value)
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")


def test_the_graph_that_pytorch_prints_is_kept_for_the_traceback():
    detector = detector_of(Branching())
    with pytest.raises(InputError) as caught:
        trace(detector, detector.image_input)
    assert "def forward(self" in "".join(traceback.format_exception(caught.value))


def test_what_a_model_prints_is_no_result(capsys):
    detector = detector_of(Talking())
    capsys.readouterr()
    trace(detector, detector.image_input)
    told = capsys.readouterr()
    assert told.out == ""
    assert "thinking" in told.err
