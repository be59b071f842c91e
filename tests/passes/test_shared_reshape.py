"""Reshapes of one transposed tensor: the same bits, one of them at the tensor itself."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.passes.half_graphs import graph, run
from vadexport.passes import apply_passes
from vadexport.passes.shared_reshape import SharedReshape

#: Of the 48 values that a tensor of two images has.
SHAPES = [(48,), (2, 24), (4, -1), (2, 3, 8), (1, 6, 2, 4), (-1, 3)]


def views(shapes, *, transposed="Transpose<perm = [0, 2, 3, 1]>(x)", options="", tail=""):
    """A tensor that is transposed, and reshaped in several ways."""
    lines = [f"t = {transposed}"]
    lines += [f"y{n} = Reshape{options}(t, s{n})" for n in range(len(shapes))]
    outputs = ", ".join(f"float[{','.join('abcd'[: len(s)])}] y{n}" for n, s in enumerate(shapes))
    more = ", float[n, h, w, c] also" if tail else ""
    constants = {f"s{n}": np.array(shape) for n, shape in enumerate(shapes)}
    return graph("float[2,3,2,4] x", "\n".join([*lines, tail]), outputs + more, **constants)


def rewritten(model):
    made, places = apply_passes(model, (SharedReshape(),))
    onnx.checker.check_model(made, full_check=True)
    return made, places["shared-reshape"]


def feed(seed=0):
    return np.random.default_rng(seed).normal(size=(2, 3, 2, 4)).astype(np.float32)


@given(st.lists(st.sampled_from(SHAPES), min_size=2, max_size=5), st.integers(0, 2**16))
def test_the_same_bits(shapes, seed):
    model = views(shapes)
    made, places = rewritten(model)
    assert places == 1
    assert sum("t" in node.input for node in made.graph.node) == 1
    expected, found = (run(each, x=feed(seed)) for each in (model, made))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_zero_that_means_no_values_is_a_size():
    model = views([(0, 4), (2, 0)], options="<allowzero = 1>")
    del model.graph.input[:]
    model.graph.input.append(onnx.helper.make_tensor_value_info("x", 1, [0, 3, 2, 4]))
    made, places = rewritten(model)
    assert places == 1
    expected, found = (run(each, x=np.zeros((0, 3, 2, 4), np.float32)) for each in (model, made))
    for name, value in expected.items():
        assert found[name].shape == value.shape


@pytest.mark.parametrize(
    "model",
    [
        views([(2, 24)]),
        views([(2, 24), (0, 24)]),
        views([(2, 24), (48,)], transposed="Identity(x)"),
        views([(2, 24), (48,)], tail="also = Relu(t)"),
    ],
    ids=["one", "a size of the tensor", "not transposed", "read elsewhere"],
)
def test_left_alone(model):
    made, places = rewritten(model)
    assert places == 0
    assert made.graph == model.graph


def test_a_shape_that_is_computed_is_left_alone():
    model = graph(
        "float[2,3,2,4] x, int64[2] s",
        """
        t = Transpose<perm = [0, 2, 3, 1]>(x)
        a = Reshape(t, s)
        b = Reshape(t, all)
        """,
        "float[n,k] a, float[m] b",
        all=np.array([-1]),
    )
    assert rewritten(model)[1] == 0


def test_an_output_is_left_alone():
    model = views([(2, 24), (48,)])
    model.graph.output.append(onnx.helper.make_tensor_value_info("t", 1, [2, 2, 4, 3]))
    assert rewritten(model)[1] == 0
