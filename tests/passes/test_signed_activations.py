import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from tests.passes.half_graphs import graph, run
from vadexport.passes.base import apply_passes
from vadexport.passes.signed_activations import SignedActivations


def quantised(zero=0, dtype=np.uint8, scale=0.1):
    """x as it is after quantising and dequantising."""
    return graph(
        "float[N] x",
        """
        q = QuantizeLinear(x, scale, zero)
        d = DequantizeLinear(q, scale, zero)
        y = Identity(d)
        """,
        "float[N] y",
        scale=np.array(scale),
        zero=np.array(zero, dtype),
    )


def applied(model):
    result, places = apply_passes(model, [SignedActivations()])
    onnx.checker.check_model(result, full_check=True)
    return result, places["signed-activations"]


def constants(model):
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


class TestRule:
    @given(
        scale=st.floats(2**-13, 10, width=32),
        values=st.lists(st.floats(-5, 3000, width=32), min_size=1, max_size=30),
    )
    @settings(deadline=None, max_examples=50)
    def test_gives_what_numpy_rounds_to_in_int8_over_the_same_range(self, scale, values):
        scale, x = np.float32(scale), np.array(values, np.float32)
        result, places = applied(quantised(scale=scale))
        assert places == 1
        step = scale * np.float32(255 / 127)
        expected = np.clip(np.rint(x / step), -128, 127) * step
        found = run(result, x=x)["y"]
        # x / step may come to lie on the other side of a half: then it is the next step.
        assert np.abs(found - expected).max() <= step * 1.001
        within = np.clip(x, 0, 255 * scale)
        positive = x >= 0
        assert np.abs(found - within)[positive].max(initial=0) <= 0.501 * step

    def test_keeps_the_largest_value_that_can_be_told(self):
        x = np.array([25.5, 1000.0], np.float32)
        before, after = run(quantised(), x=x)["y"], run(applied(quantised())[0], x=x)["y"]
        np.testing.assert_allclose(before, 25.5, rtol=1e-6)
        np.testing.assert_allclose(after, 25.5, rtol=1e-6)

    def test_makes_the_step_twice_as_coarse_and_a_trifle(self):
        values = constants(applied(quantised())[0])
        assert values["zero/signed"].dtype == np.int8
        assert values["zero/signed"] == 0
        assert values["scale/signed"].dtype == np.float32
        assert float(values["scale/signed"]) == pytest.approx(0.1 * 255 / 127, rel=1e-6)
        assert set(values) == {"scale/signed", "zero/signed"}

    def test_of_several_channels(self):
        model = graph(
            "float[N,2] x",
            """
            q = QuantizeLinear<axis = 1>(x, scale, zero)
            y = DequantizeLinear<axis = 1>(q, scale, zero)
            """,
            "float[N,2] y",
            scale=np.array([0.1, 2.0]),
            zero=np.zeros(2, np.uint8),
        )
        result, places = applied(model)
        assert places == 1
        found = run(result, x=np.array([[12.7, 254], [25.5, 510]], np.float32))["y"]
        np.testing.assert_allclose(found, [[12.65, 253], [25.5, 510]], rtol=1e-2)

    def test_constants_that_several_nodes_share_are_made_once(self):
        model = graph(
            "float[4] x",
            """
            q = QuantizeLinear(x, scale, zero)
            a = DequantizeLinear(q, scale, zero)
            p = QuantizeLinear(a, scale, zero)
            y = DequantizeLinear(p, scale, zero)
            """,
            "float[4] y",
            scale=np.array(0.5),
            zero=np.array(0, np.uint8),
        )
        result, places = applied(model)
        assert places == 2
        assert len(result.graph.initializer) == 2

    def test_types_noted_before_do_not_stay(self):
        described = onnx.shape_inference.infer_shapes(quantised())
        noted = {v.name: v.type.tensor_type.elem_type for v in described.graph.value_info}
        assert noted["q"] == TensorProto.UINT8
        result, _ = applied(described)
        assert "q" not in {value.name for value in result.graph.value_info}
        inferred = onnx.shape_inference.infer_shapes(result, strict_mode=True).graph
        noted = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
        assert noted["q"] == TensorProto.INT8


class TestLeavesAlone:
    @pytest.mark.parametrize(
        ("zero", "dtype"), [(128, np.uint8), (1, np.uint8), (0, np.int8), (-3, np.int8)]
    )
    def test_what_is_asymmetric_or_signed_already(self, zero, dtype):
        model = quantised(zero, dtype)
        result, places = applied(model)
        assert places == 0
        assert result == model

    def test_one_zero_point_among_several_that_is_not_0(self):
        model = graph(
            "float[N,2] x",
            "q = QuantizeLinear(x, scale, zero)\n y = DequantizeLinear(q, scale, zero)",
            "float[N,2] y",
            scale=np.array([0.1, 2.0]),
            zero=np.array([0, 7], np.uint8),
        )
        assert applied(model)[1] == 0

    def test_a_zero_point_that_a_caller_may_replace(self):
        model = graph(
            "float[N] x, uint8 zero",
            "q = QuantizeLinear(x, scale, zero)\n y = DequantizeLinear(q, scale, zero)",
            "float[N] y",
            scale=np.array(0.1),
        )
        assert applied(model)[1] == 0

    def test_weights_that_were_stored_in_uint8(self):
        # Their bytes would have to change with them.
        model = graph(
            "float[N,2] x",
            "w = DequantizeLinear(stored, scale, zero)\n y = MatMul(x, w)",
            "float[N,2] y",
            stored=np.array([[1, 2], [200, 255]], np.uint8),
            scale=np.array(0.1),
            zero=np.array(0, np.uint8),
        )
        result, _ = applied(model)
        x = np.eye(2, dtype=np.float32)
        np.testing.assert_array_equal(run(result, x=x)["y"], run(model, x=x)["y"])


def relu6_network():
    rng = np.random.default_rng(5)
    return graph(
        "float[1,3,16,16] image",
        """
        c1 = Conv<pads = [1,1,1,1]>(image, w1)
        r1 = Clip(c1, low, high)
        c2 = Conv<pads = [1,1,1,1]>(r1, w2)
        r2 = Clip(c2, low, high)
        y = ReduceMean<keepdims = 0>(r2, axes)
        """,
        "float[1,8] y",
        w1=rng.normal(size=(8, 3, 3, 3)) / 2,
        w2=rng.normal(size=(8, 8, 3, 3)) / 4,
        low=np.array(0.0),
        high=np.array(6.0),
        axes=np.array([2, 3]),
    )


def test_what_nncf_made_stays_near():
    nncf = pytest.importorskip("nncf")
    images = np.random.default_rng(6).normal(size=(10, 1, 3, 16, 16)).astype(np.float32)
    model = relu6_network()
    made = nncf.quantize(model, nncf.Dataset([{"image": each} for each in images]))
    unsigned = [t for t in made.graph.initializer if t.data_type == TensorProto.UINT8]
    assert unsigned  # if this fails, NNCF has learnt int8 behind a ReLU6
    result, places = applied(made)
    assert places >= 1
    types = {each.data_type for each in result.graph.initializer}
    assert TensorProto.UINT8 not in types
    exact = np.concatenate([run(model, image=each)["y"] for each in images])
    before, after = (
        np.concatenate([run(each, image=image)["y"] for image in images]) for each in (made, result)
    )
    spread = np.ptp(exact)
    assert np.abs(before - exact).max() < 0.05 * spread
    assert np.abs(after - exact).max() < 0.05 * spread
