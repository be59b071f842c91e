"""What a graph pass is, and the lookups that passes share."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, Protocol, Self

import numpy as np
import onnx
from numpy.typing import NDArray

#: Elements of the largest constant that a shape may depend on.
_MOST_INFERRED: Final = 1024

#: A shape, with the names of sizes that are dynamic; None where there is no name either.
Dimensions = tuple[int | str | None, ...]


class GraphPass(Protocol):
    """A rewrite of an ONNX graph that changes no output beyond rounding."""

    #: Name in reports.
    name: ClassVar[str]

    def apply(self, model: onnx.ModelProto) -> int:
        """Rewrite `model` in place where the rule holds; returns in how many places."""


class Approximation(GraphPass, Protocol):
    """A rewrite that changes outputs, the more the further it goes: one setting of it."""

    @classmethod
    def candidates(cls, model: onnx.ModelProto) -> Sequence[Self]:
        """Settings that might apply to a graph, the one that saves most first."""

    def words(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
        """What it did to a graph, for a reader."""


def apply_passes(
    model: onnx.ModelProto, passes: Sequence[GraphPass]
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Apply passes to a copy of `model`; also gives in how many places each applied."""
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    places = {}
    drop_unread(rewritten.graph)
    for each in passes:
        places[each.name] = each.apply(rewritten)
        drop_unread(rewritten.graph)  # what nobody reads now would seem to be used elsewhere
    return rewritten, places


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes and initializers that no output depends on any more."""
    read = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):  # a graph's nodes stand in order of computation
        if read.intersection(node.output):
            read.update(tensors_read(node))
        else:
            graph.node.remove(node)
    # One by one: to extend an emptied list would copy all weights, and a message frees nothing.
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put nodes into order of computation; where that leaves a choice, they stay as they are."""
    waiting = {name for node in graph.node for name in node.output if name}
    left = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    while left:
        held = []
        for node in left:
            if waiting.isdisjoint(tensors_read(node)):
                waiting.difference_update(node.output)
                graph.node.append(node)
            else:
                held.append(node)
        if len(held) == len(left):
            raise ValueError("the graph has a cycle")
        left = held


def tensors_read(node: onnx.NodeProto) -> Iterator[str]:
    """Its inputs, and whatever the graphs inside it (the body of a Loop, say) may read outside."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (output.name for output in graph.output)
            for inner in graph.node:
                yield from tensors_read(inner)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large constants are inputs, so that inferring shapes copies no weights."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.functions.extend(model.functions)
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _MOST_INFERRED:
            light.graph.initializer.append(tensor)
        elif tensor.name not in given:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


class GraphView:
    """Lookups in a graph: producers, single consumers, constants, static shapes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(_without_weights(model), data_prop=True).graph
        graph = model.graph
        #: Of the default domain, which has two names; 0 where a graph uses none of it.
        self.opset = max(
            (each.version for each in model.opset_import if each.domain in ("", "ai.onnx")),
            default=0,
        )
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        self._producers = {name: node for node in graph.node for name in node.output if name}
        for node in graph.node:
            for name in tensors_read(node):
                self._consumers.setdefault(name, []).append(node)
        replaceable = {value.name for value in graph.input}  # initializers that are defaults
        self._constants = {
            tensor.name: tensor for tensor in graph.initializer if tensor.name not in replaceable
        }
        self._outputs = {output.name for output in graph.output}
        self._types = {
            value.name: value.type.tensor_type
            for value in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        self._dtypes = {tensor.name: tensor.data_type for tensor in graph.initializer}

    def only_consumer(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """The node that alone reads the tensor, if it is an `op_type` and reads it first."""
        consumers = self._consumers.get(name, [])
        if name in self._outputs or len(consumers) != 1:
            return None
        node = consumers[0]
        reads_first = bool(node.input) and node.input[0] == name
        return node if node.op_type == op_type and reads_first else None

    def consumers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read the tensor; one that reads it twice stands here twice."""
        return self._consumers.get(name, [])

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that computes the tensor; None for inputs and constants."""
        return self._producers.get(name)

    def is_output(self, name: str) -> bool:
        """Whether the tensor is an output of the graph."""
        return name in self._outputs

    def filled(self, name: str) -> NDArray[np.generic] | None:
        """The one value that all elements of a tensor have, whatever its shape; None if unknown."""
        node = self.producer(name)
        if node is None:
            return None
        if node.op_type == "ConstantOfShape":
            value = attributes(node).get("value")
            return np.zeros(1, np.float32) if value is None else onnx.numpy_helper.to_array(value)
        value = self.constant(node.input[0]) if node.op_type == "Expand" else None
        return value if value is not None and value.size == 1 else None

    def axes(self, node: onnx.NodeProto) -> tuple[int, ...] | None:
        """A node's axes, which are an attribute or, in newer opsets, an input; None if unknown."""
        given = attributes(node).get("axes")
        if given is None and len(node.input) > 1:
            given = self.constant(node.input[1])
        return None if given is None else tuple(int(axis) for axis in given)

    def rank(self, name: str) -> int | None:
        """Number of a tensor's axes; None where unknown."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def constant(self, name: str) -> NDArray[np.generic] | None:
        """Value of an initializer that no caller can replace; None for anything else."""
        tensor = self._constants.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def dtype(self, name: str) -> int | None:
        """Type of a tensor's elements, as `onnx.TensorProto` numbers them; None where unknown."""
        known = self._types.get(name)
        return self._dtypes.get(name) if known is None else int(known.elem_type)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Shape of a tensor, None for each size that is not static; None where unknown."""
        found = self.dimensions(name)
        if found is None:
            return None
        return tuple(size if isinstance(size, int) else None for size in found)

    def dimensions(self, name: str) -> Dimensions | None:
        """Shape with the names of dynamic sizes: equal names are equal sizes."""
        known = self._types.get(name)
        if known is None and name in self._constants:
            return tuple(self._constants[name].dims)
        if known is None or not known.HasField("shape"):
            return None
        return tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in known.shape.dim
        )


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
