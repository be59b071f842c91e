"""bfloat16 spelt out in graphs: which nodes, and that OpenVINO computes those alone so."""

import ml_dtypes
import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, numpy_helper

from tests.passes.half_graphs import graph, in_network, names, residual_network, run
from vadexport.backends.base import outputs_of
from vadexport.backends.inner import executed_layers
from vadexport.backends.openvino import bfloat16 as module
from vadexport.backends.openvino.bfloat16 import has_fast_bfloat16
from vadexport.backends.openvino.compiler import compile_graph
from vadexport.backends.openvino.runner import OpenVinoRunner
from vadexport.passes.bfloat16 import bfloat16_nodes, to_bfloat16
from vadexport.targets import Target

AUTO = Target("openvino", "auto")
IMAGE = np.random.default_rng(5).integers(0, 256, (2, 3, 16, 16)).astype(np.uint8)


def narrow_tensors(model):
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        each.name.removesuffix("/bfloat16")
        for each in inferred.value_info
        if each.type.tensor_type.elem_type == TensorProto.BFLOAT16
    }


def with_rounded_weights(model):
    """A copy whose weights `w` are those that bfloat16 has."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    weights = copy.graph.initializer[0]
    value = numpy_helper.to_array(weights).astype(ml_dtypes.bfloat16).astype(np.float32)
    weights.CopyFrom(numpy_helper.from_array(value, "w"))
    return copy


class TestNodes:
    def test_the_network_and_nothing_of_the_head(self):
        model = residual_network()
        made = to_bfloat16(model, in_network(model))
        assert bfloat16_nodes(model, in_network(model)) == in_network(model)
        assert narrow_tensors(made) == {"image", *(in_network(model))}
        weights = {each.name: each for each in made.graph.initializer}
        stored = numpy_helper.to_array(weights["w1/bfloat16"]).astype(np.float32)
        given = next(each for each in model.graph.initializer if each.name == "w1")
        expected = numpy_helper.to_array(given).astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(stored, expected)
        assert "w1" not in weights

    def test_not_layers_that_read_quantised_tensors(self):
        model = graph(
            "float[1,4,8,8] image",
            """
            image_q = QuantizeLinear(image, step, zero)
            image_d = DequantizeLinear(image_q, step, zero)
            c1 = Conv(image_d, w)
            r1 = Relu(c1)
            c2 = Conv(r1, w)
            sum1 = Add(r1, c2)
            sum1_q = QuantizeLinear(sum1, step, zero)
            sum1_d = DequantizeLinear(sum1_q, step, zero)
            c3 = Conv(sum1_d, w)
            sum2 = Add(sum1, c3)
            """,
            "float[1,4,8,8] sum2",
            w=np.eye(4)[:, :, None, None],
            step=np.array(0.1),
            zero=np.array(0, np.int8),
        )
        # A sum stays with the layer that was computed last.
        assert bfloat16_nodes(model, names(model)) == {"c2", "sum1"}


@pytest.fixture
def compiled(tmp_path):
    """The network of a graph in bfloat16, as OpenVINO runs it: outputs, and what ran in what."""

    def go(model, network):
        path = tmp_path / "model.onnx"
        onnx.save(to_bfloat16(model, network), path)
        compile_graph(path, tmp_path, AUTO)
        runner = OpenVinoRunner(tmp_path, AUTO, 1)
        ran = {}
        for layer in runner._compiled.get_runtime_model().get_ops():
            info = {key: value.astype(str) for key, value in layer.get_rt_info().items()}
            for name in info["originalLayersNames"].split(","):
                ran[name] = info["runtimePrecision"]
        told = runner.execution.with_layers(executed_layers(tmp_path, AUTO, 1))
        return outputs_of(runner, IMAGE), ran, told.layers

    return go


@pytest.fixture
def searching():
    """A convolution, then distances to rows, whose products OpenVINO may also do in bfloat16."""
    random = np.random.default_rng(7)
    return graph(
        "uint8[2,3,16,16] image",
        """
        pixels = Cast<to = 1>(image)
        features = Conv<pads = [1,1,1,1]>(pixels, w)
        rows = Transpose<perm = [0,2,3,1]>(features)
        flat = Reshape(rows, shape)
        products = MatMul(flat, bank)
        nearest = ReduceMax<keepdims = 0>(products, last)
        anomaly_map = Reshape(nearest, heat)
        raw_score = ReduceMax<keepdims = 0>(nearest, last)
        """,
        "float[2] raw_score, float[2,1,16,16] anomaly_map",
        w=random.normal(size=(16, 3, 3, 3)),
        shape=np.array([2, 256, 16]),
        bank=random.normal(size=(16, 300)),
        last=np.array([-1]),
        heat=np.array([2, 1, 16, 16]),
    )


@pytest.mark.skipif(not has_fast_bfloat16(), reason="this processor computes bfloat16 in float32")
def test_openvino_computes_the_network_in_bfloat16_and_the_head_in_float32(compiled, searching):
    found, ran, layers = compiled(searching, frozenset({"features"}))
    assert ran["features"] == "bf16"
    assert {ran[name] for name in ("products", "nearest", "raw_score")} == {"f32"}
    assert layers["bf16"] > 0
    # What is rounded is weights, and what the layer gives, to 8 bits.
    expected = run(with_rounded_weights(searching), image=IMAGE)  # whose pixels need 8 bits
    drift = np.abs(found["anomaly_map"] - expected["anomaly_map"]).max()
    assert 0 < drift < 2.0**-7 * np.abs(expected["anomaly_map"]).max()


def test_a_processor_that_is_not_fast_at_it_computes_in_float32(compiled, searching, monkeypatch):
    monkeypatch.setattr("vadexport.backends.openvino.runner.has_fast_bfloat16", lambda _: False)
    found, _, layers = compiled(searching, frozenset({"features"}))
    assert "bf16" not in layers
    expected = run(with_rounded_weights(searching), image=IMAGE)
    np.testing.assert_allclose(found["raw_score"], expected["raw_score"], rtol=1e-5)
    np.testing.assert_allclose(found["anomaly_map"], expected["anomaly_map"], rtol=1e-4)


def test_whether_it_is_fast_is_asked_of_openvino(monkeypatch):
    class Core:
        def get_property(self, device, name):
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8"]

    assert not module.has_fast_bfloat16(Core())
    monkeypatch.setattr(openvino, "Core", Core)
    assert not module.has_fast_bfloat16()
