"""Reshapes of one transposed tensor follow each other, so that it is moved in memory only once."""

from typing import ClassVar

import onnx

from vadexport.passes.base import GraphView, attributes


class SharedReshape:
    """`reshape(t, s)` and `reshape(t, u)` become `r = reshape(t, s)` and `reshape(r, u)`.

    OpenVINO keeps features with their channels last. What transposes them to that order for the
    score head moves nothing then, if its one reader is a `Reshape`; with two readers it writes the
    tensor out, and brings it into plain order once for each of them: of a PatchCore's INT8 search a
    seventh of the time. Values are the same, bit for bit.

    Must not apply where a shape is no constant, or takes a size from the tensor (0), or where
    anything but a `Reshape` reads the tensor.
    """

    name: ClassVar[str] = "shared-reshape"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        view = GraphView(model)
        count = 0
        for node in model.graph.node:
            readers = view.consumers(node.output[0]) if node.op_type == "Transpose" else []
            if len(readers) < 2 or view.is_output(node.output[0]):
                continue
            if all(_independent(reader, view) for reader in readers):
                first, *others = readers  # in order of computation
                for each in others:
                    each.input[0] = first.output[0]
                count += 1
        return count


def _independent(node: onnx.NodeProto, view: GraphView) -> bool:
    """Whether it is a `Reshape` that asks only for how many values a tensor has."""
    if node.op_type != "Reshape":
        return False
    shape = view.constant(node.input[1])
    return shape is not None and (
        bool((shape != 0).all()) or bool(attributes(node).get("allowzero"))
    )
