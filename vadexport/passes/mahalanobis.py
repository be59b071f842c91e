"""Mahalanobis distances by triangular factors, whose zeros are not read."""

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vadexport.passes.base import GraphView, attributes, sort_nodes

#: Fewer channels gain nothing: a vector of the processor holds 16.
_LEAST_CHANNELS: Final = 32
#: Positions that are factored in float64 at once.
_AT_ONCE: Final = 256
_LAST_OPSET_WITHOUT_AXES: Final = 12
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class _Match:
    """`squares` and `total` are the product's followers; `factor` [P, D, D] is triangular."""

    product: onnx.NodeProto
    squares: onnx.NodeProto
    total: onnx.NodeProto
    factor: Float32
    lower: bool


class Mahalanobis:
    """`δᵀ A δ` at every position becomes `‖Lᵀ δ‖²`, in two blocks of columns without L's zeros.

    `A` is positive definite, so its symmetric part, all that the form depends on, is `L·Lᵀ` with
    `L` lower triangular (Cholesky): `δᵀ A δ = (Lᵀδ)ᵀ(Lᵀδ)`, never negative whatever is rounded. A
    product by a triangular matrix that is in the graph already is left as it is in numbers.

    At batch 1 each matrix is read for one vector, so the time is that of reading it. Of `L`, the
    right half's upper rows are zeros: with `δ = (a, b)` and `L = [[L₁, 0], [L₂, L₃]]`,

        Lᵀδ = (L₁ᵀa + L₂ᵀb, L₃ᵀb),

    which reads three quarters. More blocks read less, 62% with four, in smaller products.

    Must not apply where the matrices are no constant, not positive definite or, in the second form,
    not triangular, δ stands for two different tensors, the sum is over another axis, an
    intermediate result is used elsewhere, or there are fewer than 32 channels.
    """

    name: ClassVar[str] = "mahalanobis"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        view = GraphView(model)
        if view.opset <= _LAST_OPSET_WITHOUT_AXES:
            return 0
        totals = [node for node in model.graph.node if node.op_type == "ReduceSum"]
        matches = [match for node in totals if (match := _match(node, view)) is not None]
        for match in matches:
            _rewrite(model.graph, match)
        if matches:
            sort_nodes(model.graph)
        return len(matches)


def _match(total: onnx.NodeProto, view: GraphView) -> _Match | None:
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
        factor = cholesky_factors(values)
        return None if factor is None else _Match(product, squares, total, factor, lower=True)
    for lower in (True, False):
        if _are_triangular(values, lower=lower):
            return _Match(product, squares, total, values, lower)
    return None


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


def _are_triangular(matrices: Float32, *, lower: bool) -> bool:
    parts = (matrices[start : start + _AT_ONCE] for start in range(0, len(matrices), _AT_ONCE))
    zeros = ((np.triu(part, 1) if lower else np.tril(part, -1)) for part in parts)
    return not any(part.any() for part in zeros)


def cholesky_factors(matrices: Float32) -> Float32 | None:
    """Lower triangular `L`, `L·Lᵀ` the symmetric part of each of [P, D, D]; None if one has none.

    Computed in float64, a few positions at once.
    """
    found = np.empty_like(matrices)
    for start in range(0, len(matrices), _AT_ONCE):
        part = matrices[start : start + _AT_ONCE].astype(np.float64)
        try:
            found[start : start + _AT_ONCE] = np.linalg.cholesky(
                (part + part.transpose(0, 2, 1)) / 2
            )
        except np.linalg.LinAlgError:  # not positive definite
            return None
    return found


def _rewrite(graph: onnx.GraphProto, match: _Match) -> None:
    prefix, centred = match.total.output[0], match.product.input[0]
    width = match.factor.shape[1]
    half = round(width / 32) * 16  # a multiple of a vector's numbers
    left, right = match.factor[:, :, :half], match.factor[:, :, half:]
    blocks = (left, right[:, half:]) if match.lower else (left[:, :half], right)
    edges = ((0, width), (half, width)) if match.lower else ((0, half), (0, width))
    options = attributes(match.total)
    sums = []
    for number, (block, (start, end)) in enumerate(zip(blocks, edges, strict=True)):
        name = f"{prefix}/block{number}"
        constants = {
            "weights": np.ascontiguousarray(block),
            **{part: np.array([place]) for part, place in (("start", start), ("end", end))},
            "axis": np.array([2]),
        }
        graph.initializer.extend(
            numpy_helper.from_array(value, f"{name}/{part}") for part, value in constants.items()
        )
        source = centred
        if (start, end) != (0, width):
            source = f"{name}/part"
            inputs = [centred, *(f"{name}/{part}" for part in ("start", "end", "axis"))]
            graph.node.append(_node("Slice", inputs, source))
        graph.node.extend(
            [
                _node("MatMul", [source, f"{name}/weights"], f"{name}/product"),
                _node("Mul", [f"{name}/product", f"{name}/product"], f"{name}/squares"),
                _node("ReduceSum", [f"{name}/squares", f"{name}/axis"], f"{name}/sum", **options),
            ]
        )
        sums.append(f"{name}/sum")
    for node in (match.product, match.squares, match.total):
        graph.node.remove(node)
    graph.node.append(_node("Add", sums, prefix))


def _node(op: str, inputs: list[str], output: str, **options: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], f"{output}/node", **options)
