import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from tests.passes.half_graphs import graph, names, run, stored_as_half
from vadexport.passes.half_precision import plan_half, to_half
from vadexport.passes.half_rounding import holds_half, rounded_as_half


@pytest.fixture
def one_too_many():
    """(x + 2048) - 2048: float16 has no 2049."""
    return graph(
        "float[1] x",
        """
        half = Cast<to = 10>(x)
        large = Cast<to = 10>(many)
        more = Add(half, large)
        left = Sub(more, large)
        y = Cast<to = 1>(left)
        """,
        "float[1] y",
        many=np.array([2048.0]),
    )


class TestReason:
    def test_onnx_runtime_rounds_nothing_on_processors(self, one_too_many):
        # If this fails, ONNX Runtime has learnt float16, and the module may go.
        assert run(one_too_many, x=np.ones(1, np.float32))["y"] == 1

    def test_numpys_float16_gives_nothing_and_so_does_the_graph_in_which_casts_stand(
        self, one_too_many
    ):
        one, many = np.float16(1), np.float16(2048)
        assert (one + many) - many == 0
        assert run(rounded_as_half(one_too_many), x=np.ones(1, np.float32))["y"] == 0

    def test_onnx_runtime_keeps_the_casts_of_every_tensor(self):
        # All casts in a row round: none of them may be folded with its neighbours.
        model = graph(
            "float[3] x",
            "a = Cast<to = 10>(x)\n b = Identity(a)\n y = Cast<to = 1>(b)",
            "float[3] y",
        )
        x = np.array([2049, 1e-8, 70000], np.float32)
        assert run(rounded_as_half(model), x=x)["y"].tolist() == [2048, 0, np.inf]


class TestEquality:
    @given(
        values=st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=20),
        weight=st.floats(-100, 100, width=32),
    )
    @example(values=[2049.0, 2051.0], weight=1.0)  # halfway: to even
    @example(values=[5.9e-8, 2.98e-8, 2.99e-8], weight=1.0)  # subnormal
    @example(values=[65519.0, 60000.0], weight=2.0)  # infinite
    @settings(deadline=None, max_examples=50)
    def test_of_single_operations_with_numpys_float16(self, values, weight):
        model = graph(
            f"float[{len(values)}] x, float w",
            """
            xh = Cast<to = 10>(x)
            wh = Cast<to = 10>(w)
            product = Mul(xh, wh)
            sum = Add(product, xh)
            y = Cast<to = 1>(sum)
            """,
            f"float[{len(values)}] y",
        )
        x, w = np.array(values, np.float32), np.array(weight, np.float32)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            half = x.astype(np.float16)
            expected = half * w.astype(np.float16) + half  # numpy rounds each operation correctly
        np.testing.assert_array_equal(
            run(rounded_as_half(model), x=x, w=w)["y"], expected.astype(np.float32)
        )

    @given(
        seed=st.integers(0, 2**32),
        channels=st.integers(1, 5),
        size=st.integers(3, 9),
        kernel=st.sampled_from([1, 3]),
        activation=st.sampled_from(["Relu", "LeakyRelu", "Tanh", "Abs"]),
        scale=st.sampled_from([0.01, 1.0, 50.0]),
    )
    @settings(deadline=None, max_examples=30)
    def test_of_networks_with_float16_storage(
        self, seed, channels, size, kernel, activation, scale
    ):
        rng = np.random.default_rng(seed)
        model = graph(
            f"float[1,{channels},{size},{size}] x",
            f"""
            c = Conv<pads = [{", ".join([str(kernel // 2)] * 4)}]>(x, w, b)
            a = {activation}(c)
            s = Add(a, x)
            p = AveragePool<kernel_shape = [2,2]>(s)
            d = Conv(p, v)
            """,
            f"float[1,2,{size - 1},{size - 1}] d, float[1,{channels},{size - 1},{size - 1}] p",
            w=rng.normal(size=(channels, channels, kernel, kernel)),
            b=rng.normal(size=channels),
            v=rng.normal(size=(2, channels, 1, 1)),
        )
        half = to_half(model, plan_half(model, names(model), {}))
        x = (rng.normal(size=(1, channels, size, size)) * scale).astype(np.float32)
        found, expected = run(rounded_as_half(half), x=x), stored_as_half(half, x=x)
        # Sums of another order may round one float16 otherwise.
        step = 2**-10 * float(np.abs(expected["p"]).max())
        assert np.abs(found["p"] - expected["p"]).max() <= 2 * step
        gain = np.abs(onnx.numpy_helper.to_array(model.graph.initializer[2])).sum(axis=1).max()
        assert np.abs(found["d"] - expected["d"]).max() <= 2 * step * (1 + gain)


class TestGraph:
    def test_without_float16_comes_back_equal(self):
        model = graph(
            "float[1,2] x",
            "h = MatMul(x, w)\n i = Cast<to = 6>(h)\n y = Cast<to = 1>(i)",
            "float[1,2] y",
            w=np.eye(2),
        )
        result = rounded_as_half(model)
        assert result == model
        assert result is not model
        assert not holds_half(model)

    def test_stays_as_it_was_given(self, one_too_many):
        before = one_too_many.SerializeToString(deterministic=True)
        rounded_as_half(one_too_many)
        assert one_too_many.SerializeToString(deterministic=True) == before

    def test_has_float16_only_between_the_two_casts_of_a_rounding(self, one_too_many):
        result = rounded_as_half(one_too_many)
        onnx.checker.check_model(result, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(result, strict_mode=True).graph
        halves = {
            value.name
            for value in inferred.value_info
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16
        }
        assert halves == {f"{name}/rounded" for name in ("half", "large", "more", "left")}
        readers = [n for n in result.graph.node if halves.intersection(n.input)]
        assert {node.op_type for node in readers} == {"Cast"}

    def test_names_each_node_once_and_says_nothing_wrong_of_types(self, one_too_many):
        described = onnx.shape_inference.infer_shapes(one_too_many)
        result = rounded_as_half(described)
        assert len(names(result)) == len(result.graph.node)
        onnx.checker.check_model(result, full_check=True)

    def test_weights_in_float16_become_float32_of_the_same_values(self):
        model = graph("float[1,2] x", "y = MatMul(x, w)", "float[1,2] y", w=[[0.1, 1], [3e-8, 2]])
        half = to_half(model, plan_half(model, names(model), {}))
        assert holds_half(half)
        (weight,) = rounded_as_half(half).graph.initializer
        value = onnx.numpy_helper.to_array(weight)
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, np.array([[0.1, 1], [3e-8, 2]], np.float16))

    @pytest.mark.parametrize("integer", [TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8])
    def test_casts_of_integers(self, integer):
        model = graph(
            "float[4] x",
            f"""
            i = Cast<to = {integer}>(x)
            h = Cast<to = 10>(i)
            doubled = Add(h, h)
            back = Cast<to = {integer}>(doubled)
            y = Cast<to = 1>(back)
            """,
            "float[4] y",
        )
        x = np.array([0, 3, 64.9, 127], np.float32)
        found = run(rounded_as_half(model), x=x)["y"]
        assert found.tolist() == [0, 6, 128, 254]
        if integer != TensorProto.UINT8:
            x = np.array([2049, -2051, 4095, 1025], np.float32)
            found = run(rounded_as_half(model), x=x)["y"]
            expected = 2 * x.astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(found, expected)
