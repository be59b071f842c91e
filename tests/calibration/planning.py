"""A block of a network, and INT8 plans of graphs, made by numpy and ONNX Runtime alone."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from tests.passes.half_graphs import graph, names
from vadexport.backends.openvino.saturation import adds_exactly
from vadexport.calibration.network import find_layers
from vadexport.calibration.qdq import Form, Plan, QuantisedWeight, quantised

#: All that plans are written in.
FORMS = [
    Form(),
    Form(signed=False),
    Form(sums=True),
    Form(signed=False, sums=True),
    Form(signed=False, sums=True, offset=True),
]

RANDOM = np.random.default_rng(21)
BLOCK = """
    c1 = Conv<pads = [1,1,1,1]>(image, w1, b1)
    x1 = Clip(c1, zero, six)
    c2 = Conv<pads = [1,1,1,1], group = 6>(x1, w2, b2)
    x2 = Clip(c2, zero, six)
    c3 = Conv(x2, w3, b3)
    c4 = Conv(c3, w4, b4)
    x4 = Clip(c4, zero, six)
    c5 = Conv(x4, w5)
    s = Add(c3, c5)
    c6 = Conv(s, w6, b6)
    y = Relu(c6)
    score = ReduceSum<keepdims = 0>(y, axes)
"""
HEAD = {"score"}
IMAGES = RANDOM.normal(size=(4, 2, 3, 10, 10)).astype(np.float32) + np.float32(0.3)


def normal(*shape):
    return RANDOM.normal(size=shape) * 3 / np.sqrt(max(1, np.prod(shape[1:])))


WEIGHTS = {
    "w1": normal(6, 3, 3, 3),
    "w2": normal(6, 1, 3, 3),
    "w3": normal(4, 6, 1, 1),
    "w4": normal(8, 4, 1, 1),
    "w5": normal(4, 8, 1, 1),
    "w6": normal(5, 4, 1, 1),
    "b1": RANDOM.normal(size=6),
    "b2": RANDOM.normal(size=6),
    "b3": RANDOM.normal(size=4),
    "b4": RANDOM.normal(size=8),
    "b6": RANDOM.normal(size=5),
    "zero": np.array(0.0),
    "six": np.array(6.0),
    "axes": np.array([1, 2, 3]),
}


def block():
    return graph("float[2,3,10,10] image", BLOCK, "float[2,5,10,10] y, float[2] score", **WEIGHTS)


@dataclass(frozen=True)
class Planned:
    model: onnx.ModelProto
    plan: Plan
    network: frozenset

    def made(self, form=None, float_nodes=frozenset()):
        made = quantised(self.model, self.plan, self.network, form or Form(), float_nodes)
        onnx.checker.check_model(made, full_check=True)
        return made


def largest_for_openvino():
    """Largest integer of weights whose products OpenVINO adds exactly on this processor."""
    pytest.importorskip("openvino")
    return 127 if adds_exactly() else 64


def planned(model, images, shift=0.0, largest=127):
    """A plan of plain min-max and nearest rounding, made here by numpy and ONNX's reference."""
    network = names(model) - HEAD
    layers = find_layers(model, network)
    marked = onnx.ModelProto.FromString(model.SerializeToString())
    every = ["image", *(name for node in model.graph.node for name in node.output)]
    del marked.graph.output[:]
    marked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in every)
    reach = dict.fromkeys(every, 0.0)
    session = onnxruntime.InferenceSession(
        marked.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for image in images:
        for name, value in zip(every, session.run(every, {"image": image}), strict=True):
            reach[name] = max(reach[name], float(np.abs(value).max()))
    values = constants(model)
    weights, shifts = {}, {}
    for layer in layers:
        weight = values[layer.weight].astype(np.float64)
        axes = tuple(a for a in range(weight.ndim) if a != layer.axis)
        scales = (np.abs(weight).max(axis=axes) / largest).astype(np.float32)
        shape = [1] * weight.ndim
        shape[layer.axis] = -1
        whole = np.rint(weight / scales.astype(np.float64).reshape(shape)).clip(-largest, largest)
        weights[layer.weight] = QuantisedWeight(whole.astype(np.int8), scales)
        shifts[layer.node] = np.full((2, len(scales)), shift)
    positive = {n.output[0] for n in model.graph.node if n.op_type in ("Relu", "Clip")}
    return Planned(model, Plan(layers, reach, weights, shifts, frozenset(positive)), network)


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
