"""Whose disturbed calls a verification warns of."""

import pytest

from vadexport.backends.base import Execution
from vadexport.verification.latency import LatencyFigures, Speedup
from vadexport.verification.result import Latency
from vadexport.verification.statistics import Interval
from vadexport.verifying.arena import COMPILED, REFERENCE
from vadexport.verifying.judging import _timing_warnings

EXECUTION = Execution("a backend", "float32", "a processor", 2, {})


def latency(waited, again=None):
    """Of contestants by name, with the share of their calls that waited."""
    found = {
        name: LatencyFigures(name, EXECUTION, 1.0, None, (1.0,), disturbed_calls=share, again=again)
        for name, share in waited.items()
    }
    artifact, reference = found["openvino:fp32"], found[REFERENCE]
    ratio = Speedup(artifact.name, reference.name, Interval(1.0, 1.0, 1.0))
    return Latency(artifact, reference, ratio, 1, compiled=found.get(COMPILED))


@pytest.mark.parametrize("name", ["openvino:fp32", REFERENCE, COMPILED])
def test_any_whose_calls_waited(name):
    waited = {"openvino:fp32": 0.0, REFERENCE: 0.0, COMPILED: 0.0}
    assert list(_timing_warnings(latency(waited))) == []
    (warning,) = _timing_warnings(latency({**waited, name: 0.4}))
    assert warning.startswith("other programs took the processors while latency was measured")
    assert f"(calls that waited: 40% of {name})" in warning


def test_where_torch_compile_was_not_timed():
    assert list(_timing_warnings(latency({"openvino:fp32": 0.0, REFERENCE: 0.05}))) == []


def test_what_differs_from_itself():
    found = latency({"openvino:fp32": 0.0, REFERENCE: 0.0}, again=Interval(1.1, 1.0, 1.25))
    (warning,) = _timing_warnings(found)
    assert "timed against itself, openvino:fp32 by up to 1.25" in warning
