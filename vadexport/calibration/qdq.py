"""Quantisers in a graph: what of a network is INT8, written as Q/DQ nodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vadexport.calibration.network import Layer, sums
from vadexport.passes.base import drop_unread

_SIGNED_STEPS: Final = 127
_UNSIGNED_STEPS: Final = 255
#: Zero of what can be negative, in uint8.
_MIDDLE: Final = 128
#: A bias in steps of its layer's products stays below this, for it becomes an int32.
_MOST_BIAS_STEPS: Final = 2.0**30


@dataclass(frozen=True)
class Form:
    """How one plan is written for those who run it; ranges and weights are the same in all.

    Attributes:
        signed: all integers are int8, as TensorRT takes them; else what is never negative is
            uint8, in the same range with twice as many steps.
        sums: both sides of a residual connection are quantised, as ONNX Runtime needs it to run
            the layer before it in INT8; else the side that a layer computes is left as it is.
        offset: what can be negative is uint8 about 128, with the values of int8: ONNX Runtime runs
            a layer in INT8 only where it reads and gives integers of one type.
    """

    signed: bool = True
    sums: bool = False
    offset: bool = False


@dataclass(frozen=True)
class QuantisedWeight:
    """Weights as integers.

    Attributes:
        values: int8, of the weights' shape.
        scales: float32 [C], of a step of each output channel.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """All that a network's INT8 form takes.

    Attributes:
        layers: that can be INT8.
        reach: by the name of a tensor that a quantiser may follow, the largest magnitude that INT8
            can still tell.
        weights: by name.
        shifts: by the name of a layer's node, float64 [2, C]: what rounding its weights and what it
            reads adds to its output on average, in an unsigned form and in a signed one.
        never_negative: tensors that come out of a ReLU.
    """

    layers: tuple[Layer, ...]
    reach: Mapping[str, float]
    weights: Mapping[str, QuantisedWeight]
    shifts: Mapping[str, NDArray[np.float64]]
    never_negative: frozenset[str]


def quantised(
    model: onnx.ModelProto,
    plan: Plan,
    network_nodes: frozenset[str],
    form: Form,
    float_nodes: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """A copy of a graph with quantisers before its layers and residual connections.

    Symmetric, activations per tensor, weights per output channel. Biases stay float32 and are whole
    multiples of a step of their layer's products: backends keep them as int32, some rounding them
    (ONNX Runtime), some not, and so all come to the same.

    Args:
        model: that the plan was made for.
        plan: what becomes of its layers.
        network_nodes: names of the nodes that may be quantised.
        form: how it is written.
        float_nodes: names of layers that stay in float.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    layers = {layer.node: layer for layer in plan.layers if layer.node not in float_nodes}
    tensors = dict.fromkeys(layer.activation for layer in layers.values())
    if form.sums:
        tensors.update(_summands(made, layers, tensors, plan, network_nodes))
    steps = {
        name: _step(
            plan.reach[name],
            unsigned=not form.signed and name in plan.never_negative,
            offset=form.offset,
        )
        for name in tensors
    }
    added = {node.name for node in sums(made, network_nodes)}
    nodes: list[onnx.NodeProto] = []
    for each in graph.input:
        if each.name in steps:
            nodes += _pair(graph, each.name, steps[each.name])
    done: set[str] = set()
    for node in list(graph.node):
        layer = layers.get(node.name)
        if layer is not None:
            if layer.weight not in done:
                done.add(layer.weight)
                nodes.append(_weight(graph, layer, plan.weights[layer.weight]))
            _read_integers(graph, node, layer, plan, form, steps[layer.activation].size)
        elif node.name in added:
            node.input[:] = [f"{n}/dequantised" if n in steps else n for n in node.input]
        nodes.append(node)
        for name in node.output:
            if name in steps:
                nodes += _pair(graph, name, steps[name])
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    drop_unread(graph)
    return made


def _read_integers(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    layer: Layer,
    plan: Plan,
    form: Form,
    step: np.float32,
) -> None:
    """Let a layer read what quantisers give, and round its bias to steps of its products."""
    product = (step * plan.weights[layer.weight].scales).astype(np.float64)
    node.input[0] = f"{layer.activation}/dequantised"
    node.input[1] = f"{layer.weight}/dequantised"
    if layer.kind == "MatMul":
        return
    known = next((each for each in graph.initializer if each.name == layer.bias), None)
    bias = np.zeros(len(product)) if known is None else numpy_helper.to_array(known).reshape(-1)
    shifts = plan.shifts.get(layer.node)
    shift = 0.0 if shifts is None else shifts[int(form.signed)]
    steps = np.rint((bias - shift) / product)
    name = f"{layer.node}/bias"
    whole = (steps * product).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(whole, name))
    node.input[2:] = [name]


def least_scales(
    layer: Layer, bias: NDArray[Any], reach: float, scales: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scales of weights, raised where the layer's bias would not fit into an int32.

    A channel whose weights are next to nothing has steps so small that its bias counts more of them
    than an int32 can, or that a step of its products is none in float32.
    """
    step = reach / _UNSIGNED_STEPS
    scales = np.maximum(scales, np.finfo(np.float32).tiny / min(step, 1.0))
    if not layer.bias:
        return scales
    least = np.abs(bias.reshape(-1).astype(np.float64)) / (step * _MOST_BIAS_STEPS)
    return np.maximum(scales, least)


def _summands(
    model: onnx.ModelProto,
    layers: Mapping[str, Layer],
    tensors: Mapping[str, None],
    plan: Plan,
    network_nodes: frozenset[str],
) -> dict[str, None]:
    """What INT8 layers add to each other; the sum of a float layer stays in float."""
    makers = {each.output[0] for each in model.graph.node if each.name in layers}
    found: dict[str, None] = {}
    for node in sums(model, network_nodes):
        known = all(name in makers or name in tensors for name in node.input)
        if known and all(name in plan.reach for name in node.input):
            found.update(dict.fromkeys(node.input))
    return found


@dataclass(frozen=True)
class _Step:
    """Size of a step of a tensor's integers, and their zero, whose type is theirs."""

    size: np.float32
    zero: NDArray[Any]


def steps_of(reach: float, *, never_negative: bool) -> tuple[float, float]:
    """Sizes of a step of a tensor, in an unsigned form and in a signed one."""
    return (
        float(_step(reach, unsigned=never_negative).size),
        float(_step(reach, unsigned=False).size),
    )


def _step(reach: float, *, unsigned: bool, offset: bool = False) -> _Step:
    """The step with which a range ends at `reach`.

    Rounded down, so that ONNX Runtime sees that a range ends where a ReLU6 does, and drops that.
    """
    steps = _UNSIGNED_STEPS if unsigned else _SIGNED_STEPS
    step = np.float32(reach / steps)
    while step * np.float32(steps) > np.float32(reach):
        step = np.nextafter(step, np.float32(0))
    if offset and not unsigned:
        return _Step(step, np.array(_MIDDLE, np.uint8))
    return _Step(step, np.array(0, np.uint8 if unsigned else np.int8))


def _pair(graph: onnx.GraphProto, name: str, step: _Step) -> list[onnx.NodeProto]:
    scale, zero = f"{name}/step", f"{name}/zero"
    graph.initializer.append(numpy_helper.from_array(np.asarray(step.size), scale))
    graph.initializer.append(numpy_helper.from_array(step.zero, zero))
    return [
        helper.make_node(
            "QuantizeLinear", [name, scale, zero], [f"{name}/quantised"], name=f"{name}/quantise"
        ),
        helper.make_node(
            "DequantizeLinear",
            [f"{name}/quantised", scale, zero],
            [f"{name}/dequantised"],
            name=f"{name}/dequantise",
        ),
    ]


def _weight(graph: onnx.GraphProto, layer: Layer, weight: QuantisedWeight) -> onnx.NodeProto:
    names = [f"{layer.weight}/{part}" for part in ("int8", "scales", "zeros")]
    zeros = np.zeros(len(weight.scales), np.int8)
    values: tuple[NDArray[Any], ...] = (weight.values, weight.scales, zeros)
    for name, value in zip(names, values, strict=True):
        graph.initializer.append(numpy_helper.from_array(value, name))
    return helper.make_node(
        "DequantizeLinear",
        names,
        [f"{layer.weight}/dequantised"],
        name=f"{layer.weight}/dequantise",
        axis=layer.axis,
    )
