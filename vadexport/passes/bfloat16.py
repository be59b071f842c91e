"""bfloat16 for what of a graph's network is not INT8, by casts in the graph.

bfloat16 has float32's range, so no value overflows, and 8 bits of precision. OpenVINO computes such
nodes in bfloat16 and all others in float32, whatever its own choice of precision would be; ONNX
Runtime has no such kernels for processors.
"""

from collections.abc import Collection

import onnx
from onnx import TensorProto

from vadexport.passes.base import GraphView
from vadexport.passes.narrow import FOLLOWERS, LAYERS, data_inputs, data_tensors, narrowed


def bfloat16_nodes(model: onnx.ModelProto, network_nodes: Collection[str]) -> frozenset[str]:
    """Names of nodes that may compute in bfloat16, of a graph whose network may be INT8 in part.

    Layers that read no quantised tensor do, and operators behind them. An operator with several
    inputs computes as what gives its last one does, so that it stays with the layer that a backend
    computes it together with.

    Args:
        model: float32 graph, or one with Q/DQ nodes.
        network_nodes: names of the network's nodes.
    """
    view = GraphView(model)
    place = {name: n for n, node in enumerate(model.graph.node) for name in node.output}
    chosen: set[str] = set()
    narrow: set[str] = set()
    for node in model.graph.node:
        if node.name not in network_nodes or any(
            view.dtype(name) != TensorProto.FLOAT for name in data_tensors(node)
        ):
            continue
        computed = [name for name in data_inputs(node) if view.constant(name) is None]
        if not computed:
            continue
        if node.op_type in LAYERS:
            makers = [view.producer(name) for name in data_inputs(node)]
            suits = all(one is None or one.op_type != "DequantizeLinear" for one in makers)
        else:
            suits = (
                node.op_type in FOLLOWERS
                and max(computed, key=lambda name: place.get(name, -1)) in narrow
            )
        if suits:
            chosen.add(node.name)
            narrow.update(node.output)
    return frozenset(chosen)


def to_bfloat16(model: onnx.ModelProto, network_nodes: Collection[str]) -> onnx.ModelProto:
    """A copy of `model` whose network computes in bfloat16 where it is not INT8."""
    return narrowed(model, bfloat16_nodes(model, network_nodes), TensorProto.BFLOAT16)
