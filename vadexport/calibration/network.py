"""Which layers of a network can be INT8."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport.passes.base import GraphView, attributes

#: Axis of a weight's output channels; of a `Gemm` it hangs on `transB`.
_OUTPUT_AXES: Final = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 1}


@dataclass(frozen=True)
class Layer:
    """A node with constant weights, which multiplies them with one tensor.

    Attributes:
        node: its name.
        kind: its operator.
        activation: the tensor that it reads.
        weight: name of its weights; several layers may share them.
        bias: name of its bias; empty where it has none, or where it is no constant.
        axis: of the weights' output channels.
        groups: of a convolution; 1 for all others.
    """

    node: str
    kind: str
    activation: str
    weight: str
    bias: str
    axis: int
    groups: int

    @property
    def depthwise(self) -> bool:
        """Whether each output channel may read input channels of its own group alone."""
        return self.groups > 1


def find_layers(model: onnx.ModelProto, network_nodes: frozenset[str]) -> tuple[Layer, ...]:
    """Layers among the nodes of the network, in the order of computation.

    Left out are those whose weights are no float32 constant, products of two computed tensors
    (attention), transposed convolutions in groups, whose output channels lie on two axes, biases
    that are not one value a channel, and weights that two layers read along different axes.
    """
    view = GraphView(model)
    found = []
    for node in model.graph.node:
        axis = _OUTPUT_AXES.get(node.op_type)
        if node.name not in network_nodes or axis is None:
            continue
        weight = view.constant(node.input[1])
        if weight is None or weight.dtype != np.float32 or view.constant(node.input[0]) is not None:
            continue
        values = attributes(node)
        groups = int(values.get("group", 1))
        if node.op_type == "Gemm":
            axis = 0 if values.get("transB") else 1
            if values.get("transA") or values.get("alpha", 1) != 1 or values.get("beta", 1) != 1:
                continue
        if (node.op_type == "MatMul" and weight.ndim != 2) or (
            node.op_type == "ConvTranspose" and groups > 1
        ):
            continue
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias and not _one_a_channel(view.constant(bias), weight.shape[axis]):
            continue
        found.append(
            Layer(node.name, node.op_type, node.input[0], node.input[1], bias, axis, groups)
        )
    ways: dict[str, set[tuple[int, int]]] = {}
    for layer in found:
        ways.setdefault(layer.weight, set()).add((layer.axis, layer.groups))
    return tuple(layer for layer in found if len(ways[layer.weight]) == 1)


def _one_a_channel(bias: NDArray[np.generic] | None, channels: int) -> bool:
    """Whether a bias is a constant that has a value for each channel, or one for all."""
    return bias is not None and bias.size in (1, channels) and bias.shape[:-1] in ((), (1,))


def sums(model: onnx.ModelProto, network_nodes: frozenset[str]) -> list[onnx.NodeProto]:
    """`Add` nodes of the network that add two computed tensors: residual connections."""
    view = GraphView(model)
    return [
        node
        for node in model.graph.node
        if node.op_type == "Add"
        and node.name in network_nodes
        and all(view.constant(name) is None for name in node.input)
    ]
