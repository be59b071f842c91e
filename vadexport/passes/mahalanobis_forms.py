"""Mahalanobis distances recognised in a graph: `δᵀ A δ`, or `‖δᵀ W‖²`, at every position."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vadexport.passes.base import GraphView

#: Fewer channels gain nothing: a vector of the processor holds 16.
_LEAST_CHANNELS: Final = 32
#: Positions that are computed in float64 at once.
AT_ONCE: Final = 256
_LAST_OPSET_WITHOUT_AXES: Final = 12
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class MahalanobisForm:
    """A sum of squares over the channels, [P, N] or [P, N, 1], of offsets [P, N, D].

    Attributes:
        product: of the offsets and `matrices`.
        squares: reads the product.
        total: the sum, reads the squares.
        matrices: float32 [P, D, D].
        kind: `inverse` where the sum is `δᵀ A δ`; else the triangle that `W` of `‖δᵀ W‖²` fills.
    """

    product: onnx.NodeProto
    squares: onnx.NodeProto
    total: onnx.NodeProto
    matrices: Float32
    kind: Literal["inverse", "lower", "upper"]

    @property
    def offsets(self) -> str:
        """Name of `δ`."""
        return str(self.product.input[0])

    def inverses(self, positions: slice | NDArray[np.int64]) -> Float64:
        """The symmetric `A` at some positions, in float64."""
        part = self.matrices[positions].astype(np.float64)
        transposed = part.transpose(0, 2, 1)
        found: Float64 = (part + transposed) / 2 if self.kind == "inverse" else part @ transposed
        return found

    def drop(self, graph: onnx.GraphProto) -> None:
        """Take its nodes out of the graph."""
        for node in (self.product, self.squares, self.total):
            graph.node.remove(node)


def find_forms(model: onnx.ModelProto, view: GraphView) -> list[MahalanobisForm]:
    """All Mahalanobis distances by constant matrices of 32 channels and more."""
    if view.opset <= _LAST_OPSET_WITHOUT_AXES:
        return []
    totals = [node for node in model.graph.node if node.op_type == "ReduceSum"]
    return [form for node in totals if (form := _form(node, view)) is not None]


def _form(total: onnx.NodeProto, view: GraphView) -> MahalanobisForm | None:
    squares = view.producer(total.input[0])
    product = _product(squares, view) if squares is not None else None
    if squares is None or product is None or view.rank(product.input[0]) != 3:
        return None
    for name, reader in ((product.output[0], squares), (squares.output[0], total)):
        others = [node for node in view.consumers(name) if id(node) != id(reader)]
        if others or view.is_output(name):
            return None
    matrices = view.constant(product.input[1])
    if view.axes(total) not in ((2,), (-1,)) or matrices is None or not _are_square(matrices):
        return None
    values = matrices.astype(np.float32, copy=False)
    if set(squares.input) != {product.output[0]} and squares.op_type == "Mul":
        return MahalanobisForm(product, squares, total, values, "inverse")
    kind = _triangle(values)
    return None if kind is None else MahalanobisForm(product, squares, total, values, kind)


def _product(squares: onnx.NodeProto, view: GraphView) -> onnx.NodeProto | None:
    """The product `δ A` that a node multiplies by `δ`, or by itself."""
    if squares.op_type == "Pow":
        power = view.constant(squares.input[1])
        source = view.producer(squares.input[0])
        is_square = power is not None and power.size == 1 and float(power.reshape(())) == 2
        return source if is_square and source is not None and source.op_type == "MatMul" else None
    if squares.op_type != "Mul":
        return None
    for one, other in (squares.input, reversed(squares.input)):
        source = view.producer(one)
        if source is not None and source.op_type == "MatMul" and other in (one, source.input[0]):
            return source
    return None


def _are_square(matrices: NDArray[np.generic]) -> bool:
    shape = matrices.shape
    square = len(shape) == 3 and shape[1] == shape[2] >= _LEAST_CHANNELS
    return square and matrices.dtype == np.float32


def _triangle(matrices: Float32) -> Literal["lower", "upper"] | None:
    """The triangle outside of which all matrices are zero; None if there is none."""
    parts = [matrices[start : start + AT_ONCE] for start in range(0, len(matrices), AT_ONCE)]
    if not any(np.triu(part, 1).any() for part in parts):
        return "lower"
    return None if any(np.tril(part, -1).any() for part in parts) else "upper"


def make_node(op: str, inputs: list[str], output: str, **options: Any) -> onnx.NodeProto:
    """A node named after its result."""
    return helper.make_node(op, inputs, [output], f"{output}/node", **options)
