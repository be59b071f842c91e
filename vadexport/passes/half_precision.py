"""float16 for a graph's network, by casts in the graph: nothing is left to a backend's choice."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from vadexport.passes.base import GraphView
from vadexport.passes.narrow import FOLLOWERS, LAYERS, data_inputs, data_tensors, narrowed

#: Largest float16, and the smallest that keeps all its bits.
LARGEST_HALF: Final = 65504.0
SMALLEST_HALF: Final = 2.0**-14
#: Room that a defect may need above the values that normal images reach.
HEADROOM: Final = 4.0


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
        and (node.op_type in LAYERS or node.op_type in FOLLOWERS)
        and all(view.dtype(name) == TensorProto.FLOAT for name in data_tensors(node))
    ]


def observed_tensors(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Tensors whose largest values `plan_half` needs: inputs and outputs of candidates."""
    return list(dict.fromkeys(name for node in nodes for name in data_tensors(node)))


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
        is_layer = node.op_type in LAYERS
        if not is_layer and halves.isdisjoint(data_inputs(node)):
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
            if node.op_type in LAYERS or not found:
                found.append([])
            found[-1].append(node.name)
    return found


def to_half(model: onnx.ModelProto, plan: HalfPlan) -> onnx.ModelProto:
    """A copy of `model` whose planned nodes compute in float16; all others as before.

    Weights are rounded to float16, and casts stand wherever a tensor passes from one to the other.
    """
    return narrowed(model, plan.nodes, TensorProto.FLOAT16)


def _unfit(
    node: onnx.NodeProto, largest: Mapping[str, float], constants: Mapping[str, TensorProto]
) -> str | None:
    """Why a node's values do not suit float16; None where they do."""
    for name in data_tensors(node):
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
