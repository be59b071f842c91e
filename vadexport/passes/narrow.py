"""Nodes that compute in a narrower float, by casts in the graph: nothing is left to a backend."""

from collections.abc import Collection, Iterator
from typing import Final

import onnx
from onnx import TensorProto, helper, numpy_helper

from vadexport.passes.base import tensors_read

#: Layers worth computing in a narrower float.
LAYERS: Final = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
#: Operators that take what such a layer gives, each with its inputs that are data (None: all of
#: them); others are shapes, scales and indices. Norms, divisions, powers, exponentials and
#: reductions are not among them.
FOLLOWERS: Final[dict[str, tuple[int, ...] | None]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Min", "Concat", "Identity", "Neg", "Abs"), None),
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Elu", "Clip", "Sigmoid", "HardSigmoid"), None),
    **dict.fromkeys(("HardSwish", "Tanh", "Gelu", "MaxPool", "AveragePool", "Transpose"), None),
    **dict.fromkeys(("Resize", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice"), (0,)),
    **dict.fromkeys(("Split", "Gather", "Expand"), (0,)),
    "Pad": (0, 2),
    "Where": (1, 2),
}
#: Ends of the names of narrow tensors.
_ENDS: Final[dict[int, str]] = {TensorProto.FLOAT16: "half", TensorProto.BFLOAT16: "bfloat16"}


def name_before(name: str) -> str:
    """What a tensor was called before it became narrow; others are called as they were."""
    return next(
        (name.removesuffix(f"/{end}") for end in _ENDS.values() if name.endswith(f"/{end}")), name
    )


def data_inputs(node: onnx.NodeProto) -> list[str]:
    """Inputs of a layer or follower that are data."""
    return [node.input[index] for index in data_indices(node)]


def data_indices(node: onnx.NodeProto) -> list[int]:
    """Numbers of the inputs of a layer or follower that are data."""
    wanted = FOLLOWERS.get(node.op_type)
    return [
        index
        for index, name in enumerate(node.input)
        if name and (wanted is None or index in wanted)
    ]


def data_tensors(node: onnx.NodeProto) -> Iterator[str]:
    """Inputs of a layer or follower that are data, and its outputs."""
    yield from data_inputs(node)
    yield from (name for name in node.output if name)


def narrowed(model: onnx.ModelProto, nodes: Collection[str], dtype: int) -> onnx.ModelProto:
    """A copy of `model` some of whose nodes compute in a narrower float; all others as before.

    Weights are rounded, and casts stand wherever a tensor passes from one to the other.

    Args:
        model: float32 graph.
        nodes: names of layers and followers.
        dtype: `TensorProto.FLOAT16` or `TensorProto.BFLOAT16`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    read_in_full = {output.name for output in graph.output}
    for node in graph.node:
        if node.name in nodes:
            data = data_indices(node)
            read_in_full.update(name for index, name in enumerate(node.input) if index not in data)
        else:
            read_in_full.update(tensors_read(node))
    rewritten: list[onnx.NodeProto] = []
    narrow: set[str] = set()

    def narrow_name(name: str) -> str:
        return f"{name}/{_ENDS[dtype]}"

    def narrow_form(name: str) -> str:
        """Name of a tensor's narrow form, which is made where there is none yet."""
        if name not in narrow:
            narrow.add(name)
            if name in constants:
                value = numpy_helper.to_array(constants[name])
                rounded = value.astype(helper.tensor_dtype_to_np_dtype(dtype))
                graph.initializer.append(numpy_helper.from_array(rounded, narrow_name(name)))
            else:
                rewritten.append(_cast(name, narrow_name(name), dtype))
        return narrow_name(name)

    for node in graph.node:
        if node.name not in nodes:
            rewritten.append(node)
            continue
        for index in data_indices(node):
            node.input[index] = narrow_form(node.input[index])
        outputs = list(node.output)
        narrow.update(outputs)
        node.output[:] = [narrow_name(name) for name in outputs]
        rewritten.append(node)
        rewritten += [
            _cast(narrow_name(name), name, TensorProto.FLOAT)
            for name in outputs
            if name in read_in_full
        ]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rewritten]
    del graph.node[:]
    graph.node.extend(kept)
    _drop(result, narrow - read_in_full)
    return result


def _drop(model: onnx.ModelProto, names: set[str]) -> None:
    """Remove descriptions and weights of tensors that are now only there in the narrow float."""
    graph = model.graph
    described = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(described)
    for index in reversed(range(len(graph.initializer))):  # see `drop_unread`
        if graph.initializer[index].name in names:
            del graph.initializer[index]


def _cast(source: str, destination: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [destination], f"{destination}/cast", to=dtype)
