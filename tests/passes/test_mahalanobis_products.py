"""Which products of a score head may be narrowed."""

import numpy as np
import pytest

from tests.passes.half_graphs import graph
from vadexport.passes.mahalanobis_products import constant_products

SQUARED = "q = Mul(p, p)\n y = ReduceSum<keepdims = 0>(q, axes)"


def model(tail=SQUARED, shape=(300, 1, 32), matrices=(300, 32, 32), product="MatMul(x, w)"):
    constants = {
        "w": np.ones(matrices, np.float32),
        "axes": np.array([2]),
        "two": np.array(2.0),
        "three": np.array(3.0),
    }
    nodes = f"p = {product}\n {tail}"
    used = {name: value for name, value in constants.items() if f"{name})" in nodes}
    inputs = f"float[{','.join(map(str, shape))}] x"
    return graph(inputs, nodes, "float[a,b] y", **used)


@pytest.mark.parametrize("squares", ["Mul(p, p)", "Pow(p, two)"])
def test_squares_of_a_constant_product(squares):
    assert constant_products(model(SQUARED.replace("Mul(p, p)", squares)), ()) == {"p"}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(model(SQUARED.replace("Mul(p, p)", "Pow(p, three)")), id="cubes"),
        pytest.param(model(SQUARED.replace("Mul(p, p)", "Mul(p, x)")), id="times what it read"),
        pytest.param(model(matrices=(200, 32, 32), shape=(200, 1, 32)), id="small"),
        pytest.param(
            model("y = ReduceSum<keepdims = 0>(p, axes)"), id="the product itself is read"
        ),
        pytest.param(
            model(
                SQUARED.replace("y =", "s =")
                + "\n z = ReduceMax<keepdims = 0>(p, axes)\n y = Add(s, z)"
            ),
            id="the product is read again",
        ),
    ],
)
def test_others_are_left_alone(other):
    assert constant_products(other, ()) == frozenset()


@pytest.mark.parametrize("side", ["Sub(c, s)", "Sub(s, c)"])
def test_squares_that_are_taken_off_something_are_left_alone(side):
    tail = SQUARED.replace("y =", "s =") + f"\n c = ReduceMax<keepdims = 0>(x, axes)\n y = {side}"
    assert constant_products(model(tail), ()) == frozenset()


def test_of_the_network_are_left_alone():
    assert constant_products(model(), {"p"}) == frozenset()


def test_one_matrix_for_all_positions_is_a_layer():
    single = model(matrices=(512, 512), shape=(300, 1, 512))
    assert constant_products(single, ()) == frozenset()


def test_matrices_that_a_caller_gives_are_left_alone():
    import onnx

    given = model()
    given.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [300, 32, 32]))
    assert constant_products(given, ()) == frozenset()
