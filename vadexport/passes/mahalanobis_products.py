"""Products of Mahalanobis distances in whatever form a graph has them."""

from collections.abc import Collection
from typing import Final

import numpy as np
import onnx

from vadexport.passes.base import GraphView

#: Values of the matrices from which on reading them takes a time that can be measured.
_LEAST_VALUES: Final = 250_000


def constant_products(model: onnx.ModelProto, network_nodes: Collection[str]) -> frozenset[str]:
    """Names of products `δᵀ W`, a constant matrix a position, of which only squares are read.

    Squares that are taken off something (Woodbury's identity) are not among them: what is left of
    such a difference is far more exact than its two sides need to be.

    Args:
        model: ONNX graph.
        network_nodes: names of nodes that are left out.
    """
    view = GraphView(model)
    found = set()
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.name in network_nodes:
            continue
        matrices, product = view.constant(node.input[1]), node.output[0]
        if (
            matrices is not None
            and matrices.ndim == 3
            and len(matrices) > 1
            and matrices.dtype == np.float32
            and matrices.size >= _LEAST_VALUES
            and view.rank(node.input[0]) == 3
            and not view.is_output(product)
            and view.consumers(product)
            and all(_squares(reader, view) for reader in view.consumers(product))
        ):
            found.add(node.name)
    return frozenset(found)


def _squares(node: onnx.NodeProto, view: GraphView) -> bool:
    """Whether a node squares what it reads, and nothing takes the sum of its squares off."""
    if node.op_type == "Pow":
        power = view.constant(node.input[1])
        if power is None or power.size != 1 or float(power.reshape(())) != 2:
            return False
    elif node.op_type != "Mul" or node.input[0] != node.input[1]:
        return False
    sums = view.consumers(node.output[0])
    readers = [reader for each in sums for name in each.output for reader in view.consumers(name)]
    return all(each.op_type == "ReduceSum" for each in sums) and not any(
        each.op_type == "Sub" for each in readers
    )
