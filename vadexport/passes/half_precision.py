"""float16 for a graph's network, by casts in the graph: nothing is left to a backend's choice."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vadexport.passes.base import GraphView, tensors_read

#: Largest float16, and the smallest that keeps all its bits.
LARGEST_HALF: Final = 65504.0
SMALLEST_HALF: Final = 2.0**-14
#: Room that a defect may need above the values that normal images reach.
HEADROOM: Final = 4.0

#: Layers worth computing in float16.
_LAYERS: Final = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
#: Operators that take what a layer in float16 gives, each with its inputs that are data (None: all
#: of them); others are shapes, scales and indices. Norms, divisions, powers, exponentials and
#: reductions are not among them.
_FOLLOWERS: Final[dict[str, tuple[int, ...] | None]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Min", "Concat", "Identity", "Neg", "Abs"), None),
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Elu", "Clip", "Sigmoid", "HardSigmoid"), None),
    **dict.fromkeys(("HardSwish", "Tanh", "Gelu", "MaxPool", "AveragePool", "Transpose"), None),
    **dict.fromkeys(("Resize", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice"), (0,)),
    **dict.fromkeys(("Split", "Gather", "Expand"), (0,)),
    "Pad": (0, 2),
    "Where": (1, 2),
}


@dataclass(frozen=True)
class KeptNode:
    """A node of the network that stays in float32 although float16 has its operator.

    Attributes:
        name: of the node.
        layer: whether it is a convolution or a matrix product.
        reason: in words.
    """

    name: str
    layer: bool
    reason: str


@dataclass(frozen=True)
class HalfPlan:
    """Which nodes are to compute in float16.

    Attributes:
        nodes: their names.
        layers: how many of them are convolutions or matrix products.
        kept: what stays in float32 for the values it has.
    """

    nodes: frozenset[str]
    layers: int
    kept: tuple[KeptNode, ...]

    @property
    def kept_layers(self) -> dict[str, int]:
        """How many layers stay in float32, by the reason."""
        return dict(Counter(node.reason for node in self.kept if node.layer))


def half_candidates(model: onnx.ModelProto, network_nodes: frozenset[str]) -> list[onnx.NodeProto]:
    """Nodes of the network that float16 has an operator for, in order of computation."""
    view = GraphView(model)
    return [
        node
        for node in model.graph.node
        if node.name in network_nodes
        and (node.op_type in _LAYERS or node.op_type in _FOLLOWERS)
        and all(view.dtype(name) == TensorProto.FLOAT for name in _tensors(node))
    ]


def observed_tensors(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Tensors whose largest values `plan_half` needs: inputs and outputs of candidates."""
    return list(dict.fromkeys(name for node in nodes for name in _tensors(node)))


def plan_half(
    model: onnx.ModelProto,
    network_nodes: frozenset[str],
    largest: Mapping[str, float],
    in_full: Mapping[str, str] = MappingProxyType({}),
) -> HalfPlan:
    """Choose what computes in float16.

    Layers do, and operators behind them that compute nothing which float16 is too coarse for. A
    node stays in float32 if a value that it takes or gives could overflow, or is so small that
    float16 drops its bits.

    Args:
        model: float32 graph.
        network_nodes: names of the nodes that may compute in float16.
        largest: largest magnitude of each of `observed_tensors` on normal images.
        in_full: nodes that stay in float32 for another reason, each with it in words.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    chosen: set[str] = set()
    halves: set[str] = set()
    kept = []
    layers = 0
    for node in half_candidates(model, network_nodes):
        is_layer = node.op_type in _LAYERS
        if not is_layer and halves.isdisjoint(_data_inputs(node)):
            continue  # nothing is gained: it would round what comes in float32 and goes on so
        reason = in_full.get(node.name) or _unfit(node, largest, constants)
        if reason is not None:
            kept.append(KeptNode(node.name, is_layer, reason))
            continue
        chosen.add(node.name)
        halves.update(node.output)
        layers += is_layer
    return HalfPlan(frozenset(chosen), layers, tuple(kept))


def layers_of(model: onnx.ModelProto, plan: HalfPlan) -> list[list[str]]:
    """The plan's nodes, each layer with what follows it until the next, in order of computation."""
    found: list[list[str]] = []
    for node in model.graph.node:
        if node.name in plan.nodes:
            if node.op_type in _LAYERS or not found:
                found.append([])
            found[-1].append(node.name)
    return found


def to_half(model: onnx.ModelProto, plan: HalfPlan) -> onnx.ModelProto:
    """A copy of `model` whose planned nodes compute in float16; all others as before.

    Weights are rounded to float16, and casts stand wherever a tensor passes from one to the other.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    read_in_full = {output.name for output in graph.output}
    for node in graph.node:
        if node.name in plan.nodes:
            data = _data_indices(node)
            read_in_full.update(name for index, name in enumerate(node.input) if index not in data)
        else:
            read_in_full.update(tensors_read(node))
    rewritten: list[onnx.NodeProto] = []
    halves: set[str] = set()

    def half(name: str) -> str:
        """Name of a tensor's float16 form, which is made where there is none yet."""
        if name not in halves:
            halves.add(name)
            if name in constants:
                value = numpy_helper.to_array(constants[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(value, _half_name(name)))
            else:
                rewritten.append(_cast(name, _half_name(name), TensorProto.FLOAT16))
        return _half_name(name)

    for node in graph.node:
        if node.name not in plan.nodes:
            rewritten.append(node)
            continue
        for index in _data_indices(node):
            node.input[index] = half(node.input[index])
        outputs = list(node.output)
        halves.update(outputs)
        node.output[:] = [_half_name(name) for name in outputs]
        rewritten.append(node)
        rewritten += [
            _cast(_half_name(name), name, TensorProto.FLOAT)
            for name in outputs
            if name in read_in_full
        ]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rewritten]
    del graph.node[:]
    graph.node.extend(kept)
    _drop(result, halves - read_in_full)
    return result


def _drop(model: onnx.ModelProto, names: set[str]) -> None:
    """Remove descriptions and weights of tensors that are now only there in float16."""
    graph = model.graph
    described = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(described)
    weights = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def _unfit(
    node: onnx.NodeProto, largest: Mapping[str, float], constants: Mapping[str, TensorProto]
) -> str | None:
    """Why a node's values do not suit float16; None where they do."""
    for name in _tensors(node):
        value = largest.get(name)
        room = HEADROOM
        if value is None and name in constants:
            value = float(np.abs(numpy_helper.to_array(constants[name])).max(initial=0.0))
            room = 1.0  # a weight is what it is, whatever the image
        if value is None:
            continue
        if not value * room <= LARGEST_HALF:
            return f"{name} reaches {value:.3g}, float16 ends at {LARGEST_HALF:g}"
        if 0 < value < SMALLEST_HALF:
            return f"{name} reaches no more than {value:.3g}, too little for float16"
    return None


def _tensors(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors of a node that would be float16."""
    yield from _data_inputs(node)
    yield from (name for name in node.output if name)


def _data_inputs(node: onnx.NodeProto) -> list[str]:
    return [node.input[index] for index in _data_indices(node)]


def _data_indices(node: onnx.NodeProto) -> list[int]:
    wanted = _FOLLOWERS.get(node.op_type)
    return [
        index
        for index, name in enumerate(node.input)
        if name and (wanted is None or index in wanted)
    ]


def _half_name(name: str) -> str:
    return f"{name}/half"


def _cast(source: str, destination: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [destination], f"{destination}/cast", to=dtype)
