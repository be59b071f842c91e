"""A graph taken apart at some of its tensors, each part fed on its own."""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

#: What a tensor is called that a part of the graph makes, its name being that of what is fed.
_MADE = "/made"


def made(name: str) -> str:
    """What a tensor that is fed in a graph's stead is called where the graph makes it."""
    return name + _MADE


def isolated(model: onnx.ModelProto, fed: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """A copy of a graph that reads some of its tensors from outside, and makes them none the less.

    So what a part of it makes depends on what it is fed, and not on what the parts before it make.
    Graphs inside of nodes read what is fed too, for they name it as before.

    Args:
        model: left as it is.
        fed: float32 tensors of the graph, by name: only their shapes are read.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        node.output[:] = [made(name) if name in fed else name for name in node.output]
    for value in result.graph.output:
        value.name = made(value.name) if value.name in fed else value.name
    described = [value for value in result.graph.value_info if value.name not in fed]
    del result.graph.value_info[:]
    result.graph.value_info.extend(described)
    result.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
        for name, value in fed.items()
    )
    return result
