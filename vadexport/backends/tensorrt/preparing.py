"""Bring an ONNX graph into the form that TensorRT reads."""

from typing import Final

import onnx
from onnx import TensorProto, helper

from vadexport.contract import INPUT_NAME
from vadexport.errors import BackendError
from vadexport.passes.base import tensors_read

#: TensorRT has no uint16: images of deep cameras are handed to it as int32.
_INPUT_TYPES: Final = {TensorProto.UINT16: TensorProto.INT32}
_MOVERS: Final = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Identity"})
#: They read no value.
_MEASURES: Final = frozenset({"Shape", "Size"})


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose image is cast to floats before anything else.

    TensorRT takes uint8 as an input and does nothing with it but to cast it; uint16 it does not
    know, such an input becomes int32. What moved the values about then moves floats: no value
    changes.

    Raises:
        BackendError: there is no image, or something else than moving and casting is done to it.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    images = [value.type.tensor_type for value in graph.input if value.name == INPUT_NAME]
    if not images:
        raise BackendError(f"TensorRT cannot read the graph: it has no input {INPUT_NAME}")
    image = images[0]
    if image.elem_type == TensorProto.FLOAT:
        return result
    casts, moved = _reached(graph)
    dtypes = {next(each.i for each in cast.attribute if each.name == "to") for cast in casts}
    if len(dtypes) != 1:
        raise BackendError("TensorRT casts an image to one type, and this graph to several or none")
    image.elem_type = _INPUT_TYPES.get(image.elem_type, image.elem_type)
    first = f"{INPUT_NAME}/float"
    for node in graph.node:
        node.input[:] = [first if name == INPUT_NAME else name for name in node.input]
    for cast in casts:
        cast.op_type = "Identity"
        del cast.attribute[:]
    described = [value for value in graph.value_info if value.name not in moved]
    del graph.value_info[:]
    graph.value_info.extend(described)
    cast = helper.make_node("Cast", [INPUT_NAME], [first], "image/cast", to=dtypes.pop())
    graph.node.insert(0, cast)
    return result


def _reached(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], set[str]]:
    """Casts of the image, and the tensors between it and them.

    Raises:
        BackendError: a node between them computes something.
    """
    casts, moved = [], {INPUT_NAME}
    for node in graph.node:  # in order of computation
        if node.op_type in _MEASURES:
            continue
        if not node.input or node.input[0] not in moved:
            if moved.intersection(tensors_read(node)):
                raise BackendError(_integers(node))
            continue
        if node.op_type == "Cast":
            casts.append(node)
        elif node.op_type in _MOVERS:
            moved.update(node.output)
        else:
            raise BackendError(_integers(node))
    return casts, moved


def _integers(node: onnx.NodeProto) -> str:
    return (
        f"node {node.name} ({node.op_type}) computes with the camera's integers, which TensorRT "
        "only casts: let the model take floats"
    )
