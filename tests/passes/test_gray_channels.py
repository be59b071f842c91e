"""A gray image repeated before its normalisation: the same bits, and only where the rule holds."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vadexport.passes import apply_passes
from vadexport.passes.gray_channels import GrayChannels


def normalising(steps, shape=(2, 1, 5, 4), opset=20, dtype=TensorProto.FLOAT, given=()):
    """A graph of steps, each an operator, its constant, and the place of the image in it."""
    nodes, constants, before = [], [], "x"
    for number, (kind, value, place) in enumerate(steps):
        inputs = [before, f"c{number}"] if place == 0 else [f"c{number}", before]
        before = f"y{number}"
        nodes.append(helper.make_node(kind, inputs, [before], name=before))
        constants.append(numpy_helper.from_array(value, f"c{number}"))
    values = [helper.make_tensor_value_info("x", dtype, shape)]
    values += [
        helper.make_tensor_value_info(c.name, dtype, list(c.dims))
        for c in constants
        if c.name in given
    ]
    graph = helper.make_graph(
        nodes,
        "normalising",
        values,
        [helper.make_tensor_value_info(before, dtype, None)],
        [constant for constant in constants if constant.name not in given],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def rewritten(model):
    result, places = apply_passes(model, (GrayChannels(),))
    return result, places["gray-channels"]


def run(model, x):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_same_bits(data):
    channels = data.draw(st.integers(2, 4))
    height, width = data.draw(st.sampled_from([(5, 4), (1, 3), (7, 1)]))
    batch = data.draw(st.sampled_from([1, 2, "N"]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    steps = []
    for _ in range(data.draw(st.integers(1, 3))):
        shape = data.draw(st.sampled_from([(channels, 1, 1), (1, channels, 1, 1)]))
        value = random.uniform(0.2, 2, shape).astype(np.float32)
        kind = data.draw(st.sampled_from(["Sub", "Add", "Mul", "Div"]))
        steps.append((kind, value, data.draw(st.integers(0, 1))))
    model = normalising(steps, (batch, 1, height, width), data.draw(st.integers(13, 20)))
    made, places = rewritten(model)
    assert places == 1  # behind it there are all channels
    assert [node.op_type for node in made.graph.node][:2] == ["Concat", steps[0][0]]
    count = 3 if batch == "N" else batch
    x = random.uniform(0.1, 255, (count, 1, height, width)).astype(np.float32)
    np.testing.assert_array_equal(run(made, x), run(model, x))


THREE = np.array([0.5, 0.4, 0.3], np.float32).reshape(3, 1, 1)


@pytest.mark.parametrize(
    "model",
    [
        normalising([("Sub", THREE, 0)], (2, 3, 5, 4)),
        normalising([("Sub", THREE, 0)], (2, 1, 5, 4), given=("c0",)),
        normalising([("Sub", THREE, 0)], (2, 1, 1, 1)),
        normalising([("Sub", THREE, 0)], (2, 1, "H", 4)),
        normalising([("Sub", THREE, 0)], (1, 5, 4)),
        normalising([("Sub", THREE.reshape(1, 1, 3, 1), 0)], (2, 1, 3, 4)),
        normalising([("Sub", np.ones((3, 5, 1), np.float32), 0)]),
        normalising([("Sub", np.ones((2, 3, 1, 1), np.float32), 0)]),
        normalising([("Sub", np.ones((1, 1, 1), np.float32), 0)]),
        normalising([("Sub", np.ones((5, 1, 1), np.float32), 0)]),
        normalising([("Sub", np.float32(0.5), 0)]),
        normalising([("Pow", THREE, 0)]),
        normalising([("Sub", THREE.astype(np.float16), 0)], dtype=TensorProto.FLOAT16),
    ],
    ids=[
        *("three channels", "dynamic mean", "one pixel", "dynamic height", "no batch"),
        *("other axis", "also along rows", "also along the batch", "one mean", "features"),
        *("scalar", "another operator", "float16"),
    ],
)
def test_what_almost_matches_is_left_alone(model):
    made, places = rewritten(model)
    assert places == 0
    assert made == model
