"""Where in a graph a step of a build begins to differ from the step before it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto

from vadexport.contract import Call
from vadexport.passes.half_rounding import rounded_as_half
from vadexport.verification.tensors import largest_difference, tensor_values

#: Rounding alone leaves less, of a tensor's largest value.
_ROUNDING: Final = 1e-4


@dataclass(frozen=True)
class Difference:
    """Two tensors of one name that two graphs compute from one call.

    Attributes:
        node: name of the node that gives it in the later graph.
        operator: of that node.
        size: largest difference, as a fraction of the tensor's largest magnitude.
    """

    node: str
    operator: str
    size: float

    def __str__(self) -> str:
        if np.isnan(self.size):
            return f"{self.node} ({self.operator}, not a number)"
        return f"{self.node} ({self.operator}, {self.size:.1e} of its largest value)"


@dataclass(frozen=True)
class Divergence:
    """How two graphs part.

    Attributes:
        first: where they begin to differ by more than rounding.
        steepest: where the difference grows most, from one shared tensor to the next.
    """

    first: Difference
    steepest: Difference

    def __str__(self) -> str:
        if self.first.node == self.steepest.node:
            return f"the difference begins at {self.first}"
        return f"the difference begins at {self.first} and grows most at {self.steepest}"


def locate(before: Path, after: Path, call: Call) -> Divergence | None:
    """Compare all tensors that two ONNX files share, in order of computation.

    To be run in a child process: ONNX Runtime runs both, and keeps every tensor of both.

    Args:
        before: the earlier step.
        after: the later one.
        call: of the graphs, one image.

    Returns:
        Where they part; None where no shared tensor differs by more than rounding.
    """
    old, new = (rounded_as_half(onnx.load(path)) for path in (before, after))
    names = [name for name in _floats(new) if name in set(_floats(old))]
    expected, found = (tensor_values(model, names, call) for model in (old, new))
    producers = {output: node for node in new.graph.node for output in node.output}
    differences = [
        Difference(
            producers[name].name,
            producers[name].op_type,
            largest_difference(expected[name], found[name]),
        )
        for name in names
    ]
    beyond = [one for one in differences if not one.size <= _ROUNDING]
    if not beyond:
        return None
    with np.errstate(invalid="ignore"):  # from one that is infinite to the next
        growth = np.diff([0.0, *(one.size for one in differences)])
    steepest = differences[int(np.nanargmax(np.where(np.isnan(growth), np.inf, growth)))]
    return Divergence(beyond[0], steepest)


def _floats(model: onnx.ModelProto) -> Iterator[str]:
    """Names of float32 tensors that nodes give, in order of computation."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.value_info, *inferred.output)
    }
    for node in model.graph.node:
        yield from (name for name in node.output if types.get(name) == TensorProto.FLOAT)
