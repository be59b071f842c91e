"""A graph cut down to what some of its tensors need."""

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper

from vadexport.passes.base import tensors_read


def cut(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A graph whose outputs are these float32 tensors, without what they do not need.

    ONNX Runtime runs every node of a graph, whatever is asked for: a score head behind the tensors
    would be run, and its memory bank held. Weights that stay are copied once, others never.

    Args:
        model: left as it is.
        tensors: names, of any tensors that nodes give or the graph is given.
    """
    graph = model.graph
    outputs = tuple(tensors)
    needed = set(outputs)
    nodes = []
    for node in reversed(graph.node):  # they stand in order of computation
        if needed.intersection(node.output):
            needed.update(filter(None, tensors_read(node)))  # optional ones have no name
            nodes.append(node)
    constants = {tensor.name for tensor in graph.initializer}
    made = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    made.functions.extend(model.functions)
    made.graph.name = graph.name
    made.graph.node.extend(reversed(nodes))
    made.graph.initializer.extend(each for each in graph.initializer if each.name in needed)
    made.graph.input.extend(
        each for each in graph.input if each.name in needed or each.name not in constants
    )
    made.graph.value_info.extend(graph.value_info)
    made.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs
    )
    return made
