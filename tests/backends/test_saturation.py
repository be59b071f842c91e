"""INT8 products on processors that add them in int16, and what keeps scores there."""

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from vadexport.backends.onnxruntime import OnnxRuntimeRunner
from vadexport.backends.openvino import runner as openvino_runner
from vadexport.backends.openvino import saturation
from vadexport.backends.openvino.saturation import adds_exactly, adds_up, may_saturate
from vadexport.errors import MissingDeviceError
from vadexport.machine import MOST_WITHOUT_VNNI as MOST
from vadexport.targets import Target

openvino = pytest.importorskip("openvino")
RANDOM = np.random.default_rng(3)
#: Flags of Linux for instructions that add products of uint8 by int8 in int32.
STEP = np.float32(1 / 64)
EXACT_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}
KINDS = ("conv", "1x1", "groups", "depthwise", "matmul")


def flags():
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line.startswith(("flags", "Features"))]
    return set(found[0].partition(":")[2].split()) if found else set()


def layer(kind, largest, *, unsigned=True, rounded=False):
    """A layer in Q/DQ form whose integers are all there are; the image that it is of.

    Only with a `rounded` output does ONNX Runtime compute a convolution in integers.
    """
    if kind == "matmul":
        image, weight, axis = RANDOM.normal(size=(1, 32, 96)), (96, 64), 1
    else:
        groups = {"groups": 4, "depthwise": 48}.get(kind, 1)
        window = 1 if kind == "1x1" else 3
        image, weight, axis = RANDOM.normal(size=(1, 48, 9, 9)), (48, 48 // groups, window), 0
        weight = (*weight, window)
    kind_of_zero = np.uint8 if unsigned else np.int8
    ends = np.iinfo(kind_of_zero)
    # Whole steps, so that none is rounded to either side.
    image = RANDOM.integers(ends.min, ends.max + 1, image.shape).astype(np.float32) * STEP
    integers = RANDOM.integers(-largest, largest + 1, weight).astype(np.int8)
    integers.reshape(-1)[0] = largest
    values = {
        "step": STEP,
        "zero": np.array(0, kind_of_zero),
        "integers": integers,
        "scales": RANDOM.uniform(0.01, 0.02, weight[axis]).astype(np.float32),
        "zeros": np.zeros(weight[axis], np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "step", "zero"], ["quantised"]),
        helper.make_node("DequantizeLinear", ["quantised", "step", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["integers", "scales", "zeros"], ["w"], axis=axis),
    ]
    output = "y" if rounded else "raw_score"
    if kind == "matmul":
        nodes.append(helper.make_node("MatMul", ["x", "w"], [output]))
    else:
        shape = {"pads": [window // 2] * 4, "kernel_shape": [window, window], "group": groups}
        nodes.append(helper.make_node("Conv", ["x", "w"], [output], **shape))
    if rounded:
        reach = np.abs(integers.astype(np.float64)).sum() / weight[axis] * 0.02 * 255 * STEP
        values |= {"out": np.float32(reach / 127), "none": np.int8(0)}
        nodes.append(helper.make_node("QuantizeLinear", ["y", "out", "none"], ["z"]))
        nodes.append(helper.make_node("DequantizeLinear", ["z", "out", "none"], ["raw_score"]))
    made = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("image", 1, image.shape)],
        [helper.make_tensor_value_info("raw_score", 1, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(made, opset_imports=opsets, ir_version=9), image


def exactly(model, image):
    """In float32, by ONNX Runtime with nothing fused."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def by_openvino(model, image):
    core = openvino.Core()
    read = core.read_model(model.SerializeToString())
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([image])[0]


def apart(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="flags are Linux's")
def test_what_is_tried_is_what_the_processor_says_of_itself():
    assert adds_up() == adds_exactly() == bool(flags() & EXACT_FLAGS)


def test_two_products_of_seven_bits_fit_into_an_int16():
    ends = [
        sum(activation * weight for activation, weight in pairs)
        for weights in product((-MOST, MOST), repeat=2)
        for pairs in [list(zip((255, 255), weights, strict=True))]
    ]
    bounds = np.iinfo(np.int16)
    assert bounds.min <= min(ends) <= max(ends) <= bounds.max
    assert bounds.max < 2 * 255 * (MOST + 1)


@pytest.mark.parametrize("unsigned", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_openvino_adds_products_of_seven_bits_exactly(kind, unsigned):
    model, image = layer(kind, 127 if kind == "depthwise" else MOST, unsigned=unsigned)
    assert apart(by_openvino(model, image), exactly(model, image)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_openvino_adds_products_of_eight_bits_exactly_where_it_is_said_to(kind):
    model, image = layer(kind, 127)
    wrong = apart(by_openvino(model, image), exactly(model, image)) > 1e-3
    assert wrong == (not adds_exactly() and kind != "depthwise")


@pytest.mark.parametrize("unsigned", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_always_adds_exactly(kind, unsigned):
    model, image = layer(kind, 127, unsigned=unsigned, rounded=True)
    expected = exactly(model, image)
    runner = OnnxRuntimeRunner(model.SerializeToString(), Target("onnxruntime", "int8"), 1)
    step = 1 / 127  # sums that lie between two steps of the output may go to either
    assert apart(runner.infer(image)["raw_score"], expected) < 1.01 * step
    plain = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (by_default,) = plain.run(None, {"image": image})
    wrong = apart(by_default, expected) > 1.01 * step
    assert wrong == (not adds_exactly() and kind != "depthwise")


def test_onnx_runtime_adds_exactly_where_layers_share_weights():
    # As a denoiser's that is unrolled; ONNX Runtime alone cannot turn them into uint8 twice.
    model, image = layer("conv", 127, rounded=True)
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    again = onnx.NodeProto.FromString(conv.SerializeToString())
    again.input[0], again.output[0] = "raw_score", "second"
    (last,) = model.graph.output
    last.name = "third"
    model.graph.node.append(again)
    for node in [n for n in model.graph.node if n.output[0] in ("z", "raw_score")]:
        made = onnx.NodeProto.FromString(node.SerializeToString())
        made.input[0] = "second" if node.output[0] == "z" else "whole"
        made.output[0] = "whole" if node.output[0] == "z" else "third"
        model.graph.node.append(made)
    expected = exactly(model, image)
    runner = OnnxRuntimeRunner(model.SerializeToString(), Target("onnxruntime", "int8"), 1)
    assert apart(runner.infer(image)["third"], expected) < 1.01 / 127


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("largest", [127, MOST + 1, MOST])
def test_graphs_that_may_saturate_are_known(kind, largest, tmp_path):
    model, _ = layer(kind, largest)
    onnx.save(model, tmp_path / "model.onnx")
    core = openvino.Core()
    read = core.read_model(tmp_path / "model.onnx")
    openvino.save_model(read, tmp_path / "model.xml", compress_to_fp16=False)
    expected = largest > MOST and kind != "depthwise"
    for name in ("model.onnx", "model.xml"):
        assert may_saturate(core.read_model(tmp_path / name)) == expected


@pytest.mark.parametrize("kind", ["conv", "matmul"])
def test_weights_that_are_rounded_in_the_graph_may_saturate(kind):
    # As quantisation-aware training exports them.
    model, _ = layer(kind, 127)
    integers = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    axis = 1 if kind == "matmul" else 0
    shape = [1] * integers["integers"].ndim
    shape[axis] = -1
    exact = (integers["integers"] * integers["scales"].reshape(shape)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(exact, "exact"))
    rounding = helper.make_node(
        "QuantizeLinear", ["exact", "scales", "zeros"], ["whole"], axis=axis
    )
    (node,) = (each for each in model.graph.node if each.input[0] == "integers")
    node.input[0] = "whole"
    model.graph.node.insert(0, rounding)
    assert may_saturate(openvino.Core().read_model(model.SerializeToString()))


def test_a_graph_in_float_cannot_saturate():
    weights = numpy_helper.from_array(np.full((4, 4), 1000, np.float32), "w")
    nodes = [helper.make_node("MatMul", ["image", "w"], ["y"])]
    ends = [helper.make_tensor_value_info(name, 1, [2, 4]) for name in ("image", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert not may_saturate(openvino.Core().read_model(model.SerializeToString()))


@pytest.mark.parametrize(("largest", "exact"), list(product((127, MOST), (False, True))))
def test_what_would_saturate_is_not_run(largest, exact, tmp_path, monkeypatch):
    model, image = layer("conv", largest)
    onnx.save(model, tmp_path / "model.onnx")
    target = Target("openvino", "int8")
    openvino.save_model(
        openvino.Core().read_model(tmp_path / "model.onnx"),
        tmp_path / "model.xml",
        compress_to_fp16=False,
    )
    monkeypatch.setattr(saturation, "adds_exactly", lambda: exact)
    if largest == MOST or exact:
        opened = openvino_runner.OpenVinoRunner(tmp_path, target, 1)
        assert opened.infer(image)["raw_score"].shape == (1, 48, 9, 9)
    else:
        with pytest.raises(MissingDeviceError, match=r"no VNNI.*openvino:int8@avx2"):
            openvino_runner.OpenVinoRunner(tmp_path, target, 1)
