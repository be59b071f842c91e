"""The arithmetic of a graph with float16 tensors, spelt out in float32.

ONNX Runtime has hardly any float16 kernel for processors: it computes such graphs in float32, and
drops the casts that it added on the way, so that nothing is ever rounded to float16 and a check of
such a run proves nothing (tests/passes/test_half_rounding.py shows it). Here every value that
float16 would hold is rounded to it by casts that stand in the graph, which ONNX Runtime keeps. That
is float16 storage with float32 accumulation, what GPUs' matrix units do.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vadexport.passes.base import GraphView


def holds_half(model: onnx.ModelProto) -> bool:
    """Whether a graph has float16 tensors, those of graphs inside of nodes not counted."""
    view = GraphView(model)
    names = [name for node in model.graph.node for name in node.output]
    names += [tensor.name for tensor in model.graph.initializer]
    return any(view.dtype(name) == TensorProto.FLOAT16 for name in names)


def rounded_as_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without float16 tensors, that gives what float16 storage would give.

    A graph that has none is copied as it is. Graphs inside of nodes (the body of a Loop) are left
    alone.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    view = GraphView(model)
    graph = result.graph
    halves = {
        name
        for node in graph.node
        for name in node.output
        if view.dtype(name) == TensorProto.FLOAT16
    }
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            value = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value in graph.output:
        if value.name in halves:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    described = [value for value in graph.value_info if value.name not in halves]
    del graph.value_info[:]
    graph.value_info.extend(described)
    nodes = []
    for node in graph.node:
        rounded = [name for name in node.output if name in halves]
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for attribute in copy.attribute:
            if node.op_type == "Cast" and rounded and attribute.name == "to":
                attribute.i = TensorProto.FLOAT  # rounding follows
        copy.output[:] = [f"{name}/exact" if name in halves else name for name in node.output]
        nodes.append(copy)
        for name in rounded:
            nodes += [
                _cast(f"{name}/exact", f"{name}/rounded", TensorProto.FLOAT16),
                _cast(f"{name}/rounded", name, TensorProto.FLOAT),
            ]
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _cast(source: str, destination: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [destination], f"{destination}/rounding", to=dtype)
