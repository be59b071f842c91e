"""Parts of a graph, their operators, and what layers compute in, of ONNX files and OpenVINO's."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from vadexport.backends import openvino
from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.targets import Target
from vadexport.tracing.anatomy import anatomy_in, anatomy_of


def test_parts_of_a_detector(graph_of, plain):
    _, simplified = graph_of("plain", 1)
    model, _ = apply_passes(simplified.model, DEFAULT_PASSES)
    before, network, head = anatomy_of(model)
    assert sum(network.operators.values()) == len(simplified.network_nodes())
    layers = sum(isinstance(each, nn.Conv2d) for each in plain.backbone.modules())
    assert network.layers == {"fp32": network.operators["Conv"]} == {"fp32": layers}
    kinds = {"Div": 2, "Transpose": 1, "Cast": 1, "Concat": 1, "Sub": 1}
    assert before.operators == kinds
    assert before.layers == {}
    assert head.operators["MatMul"] == head.layers["fp32"]
    parts = (before, network, head)
    assert sum(sum(part.operators.values()) for part in parts) == len(model.graph.node)
    assert sum(part.weights for part in parts) == sum(t.ByteSize() for t in model.graph.initializer)


@pytest.fixture
def quantised():
    """One convolution in INT8, one in float, and a head that asks for a size that is static."""
    weight = np.ones((4, 3, 3, 3), np.float32)
    narrow = np.ones((4, 4, 1, 1), np.float32)
    nodes = [
        helper.make_node("Transpose", ["image"], ["chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["chw"], ["preprocessed"], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["preprocessed", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"]),
        helper.make_node("QuantizeLinear", ["weight", "step", "zero"], ["qw"]),
        helper.make_node("DequantizeLinear", ["qw", "step", "zero"], ["dqw"]),
        helper.make_node("Conv", ["dq", "dqw"], ["inner"]),
        helper.make_node("Conv", ["inner", "narrow"], ["feature_0"]),
        helper.make_node("Shape", ["feature_0"], ["size"]),
        helper.make_node("Expand", ["one", "size"], ["ones"]),
        helper.make_node("Add", ["feature_0", "ones"], ["sum"]),
        helper.make_node("ReduceMax", ["sum"], ["raw_score"], keepdims=0),
    ]
    constants = {
        "step": np.array(1, np.float32),
        "zero": np.array(0, np.int8),
        "weight": weight,
        "narrow": narrow,
        "one": np.ones(1, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 8, 8, 3])],
        [helper.make_tensor_value_info("raw_score", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_an_onnx_file(quantised, tmp_path):
    onnx.checker.check_model(quantised)
    onnx.save(quantised, tmp_path / "model.onnx")
    before, network, head = anatomy_in(tmp_path)
    assert before.operators == {"Transpose": 1, "Cast": 1}
    assert network.layers == {"int8": 1, "fp32": 1}
    assert head.operators == {"Add": 1, "ReduceMax": 1}  # sizes take no time


def test_openvino_says_the_same_of_it(quantised, tmp_path):
    onnx.save(quantised, tmp_path / "graph.onnx")
    (tmp_path / "ir").mkdir()
    openvino.compile_graph(tmp_path / "graph.onnx", tmp_path / "ir", Target("openvino", "int8"))
    before, network, head = anatomy_in(tmp_path / "ir")
    assert before.operators == {"Transpose": 1, "Convert": 1}
    assert network.layers == {"int8": 1, "fp32": 1}
    assert network.operators["Convolution"] == 2
    assert head.operators == {"Add": 1, "ReduceMax": 1}


def test_where_no_feature_is_named_the_network_ends_with_its_convolutions(quantised):
    for node in quantised.graph.node:
        for names in (node.input, node.output):
            names[:] = ["inner_2" if name == "feature_0" else name for name in names]
    _, network, head = anatomy_of(quantised)
    assert network.layers == {"int8": 1, "fp32": 1}
    assert head.operators == {"Add": 1, "ReduceMax": 1}
