"""What judges forms: the float graph is run once, and never on many images at a time."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from tests.passes.half_graphs import graph
from vadexport.building import integers as module
from vadexport.building.climbing import Graph
from vadexport.building.integers import Integers
from vadexport.contract import ImageInput
from vadexport.listening import Listener
from vadexport.targets import Target

pytestmark = pytest.mark.usefixtures("in_process")
TARGET = Target("onnxruntime", "auto")
CHECKS = np.random.default_rng(4).integers(0, 256, size=(3, 32, 32, 1), dtype=np.uint8)


@pytest.fixture
def integers(tmp_path):
    def make(batch):
        model = graph(
            "uint8[N,32,32,1] image",
            "x = Cast<to = 1>(image)\n raw_score = ReduceMax<keepdims = 0>(x, axes)",
            "float[N] raw_score",
            axes=np.array([1, 2, 3]),
        )
        onnx.save(model, tmp_path / "model.onnx")
        return Integers(
            base=Graph(tmp_path / "model.onnx", (), {}),
            network_nodes=frozenset({"x"}),
            calibration=(),
            checks=CHECKS,
            image_input=ImageInput(32, 32, 1, batch=batch),
            thresholds=None,
            climber=SimpleNamespace(threads=1, unit=SimpleNamespace(value=1.0)),
            work=tmp_path,
            listener=Listener(),
            notes=[],
        )

    return make


@pytest.mark.parametrize(("batch", "each", "normal"), [(None, 1, 3), (1, 1, 3), (2, 2, 2)])
def test_a_graph_that_takes_any_number_is_judged_one_by_one(integers, batch, each, normal):
    judging = integers(batch).judging
    assert {len(call) for call in judging.calls} == {each}
    assert judging.normal == normal
    assert len(judging.expected["raw_score"]) == each * len(judging.calls) >= 9
    np.testing.assert_array_equal(judging.expected["raw_score"][:3], CHECKS.max(axis=(1, 2, 3)))


def test_the_float_graph_is_run_once(integers, monkeypatch):
    runs = []
    scored = module.scored
    monkeypatch.setattr(module, "scored", lambda *given: runs.append(1) or scored(*given))
    build = integers(1)
    judged = [build.judged(build.base.path, TARGET) for _ in range(3)]
    assert [one.drift for one in judged] == [0, 0, 0]
    assert runs == [1]
