"""Squared Euclidean distances to a constant bank, recognised in a graph however they are spelt.

`‖x‖² + ‖m‖² − 2 x·m` comes in many orders: from `torch.cdist`, from anomalib's `euclidean_dist`, by
`addmm`, or with `‖x‖²` left for later. So no list of patterns is compared. What a tensor is made of
is read backwards as a sum of three terms, and the sum is compared with the formula:

    x @ weights  +  norm · ‖x‖²  +  offset            weights [D, M], offset [M]
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport.passes.base import GraphView, attributes

Float64 = NDArray[np.float64]

#: A bank's norms in the graph are sums in float32: they may differ from ours by that rounding.
_ROUNDING: Final = 1e-5


@dataclass(frozen=True)
class Distances:
    """What `read_distances` found.

    Attributes:
        queries: name of a float32 tensor [..., N, D].
        bank: float64 [M, D].
        has_norm: whether `‖x‖²` is in the sum already.
        nodes: ids of all nodes that it is made of.
        inner: names of the tensors [..., N, M] on the way.
    """

    queries: str
    bank: Float64
    has_norm: bool
    nodes: frozenset[int]
    inner: frozenset[str]


@dataclass
class _Terms:
    """A sum of products, squared norms of rows, and constants along the last axis."""

    products: dict[str, Float64] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    offset: Float64 = field(default_factory=lambda: np.zeros(1))

    def times(self, factor: float) -> Self:
        return type(self)(
            {name: factor * weights for name, weights in self.products.items()},
            {name: factor * norm for name, norm in self.norms.items()},
            factor * self.offset,
        )

    def plus(self, other: Self) -> Self | None:
        widths = {each.shape[1] for each in (*self.products.values(), *other.products.values())}
        widths.update(each.size for each in (self.offset, other.offset) if each.size > 1)
        if len(widths) > 1:
            return None
        products, norms = dict(self.products), dict(self.norms)
        for name, weights in other.products.items():
            if name in products and products[name].shape != weights.shape:
                return None
            products[name] = products[name] + weights if name in products else weights
        for name, norm in other.norms.items():
            norms[name] = norms.get(name, 0.0) + norm
        return type(self)(products, norms, self.offset + other.offset)


def read_distances(name: str, view: GraphView) -> Distances | None:
    """Read a tensor as squared distances to a bank, with or without `‖x‖²`; None if it is not."""
    reader = _Reader(view)
    terms = reader.terms(name)
    if terms is None or len(terms.products) != 1:
        return None
    ((queries, weights),) = terms.products.items()
    bank = -weights.T / 2
    norms = np.square(bank).sum(axis=1)
    offset = np.broadcast_to(terms.offset, norms.shape)
    if np.abs(offset - norms).max() > _ROUNDING * norms.max():
        return None
    if terms.norms not in ({}, {queries: 1.0}) or view.dtype(queries) != onnx.TensorProto.FLOAT:
        return None
    return Distances(
        queries, bank, bool(terms.norms), frozenset(reader.nodes), frozenset(reader.inner)
    )


def squared_norm(name: str, view: GraphView) -> tuple[str, float, bool] | None:
    """Read a tensor as `factor · ‖x‖²` over the last axis: x, factor, and whether it kept the axis.

    None if it is anything else.
    """
    node = view.producer(name)
    if node is None:
        return None
    if node.op_type == "Unsqueeze":
        found, axes = squared_norm(node.input[0], view), view.axes(node)
        if found is None or found[2] or not _is_last(axes, view.rank(name)):
            return None
        return found[0], found[1], True
    kept = bool(attributes(node).get("keepdims", 1))
    if node.op_type == "ReduceSumSquare" and _reduces_last(node, view):
        base, factor = scaled(node.input[0], view)
        return base, factor**2, kept
    if node.op_type != "ReduceSum" or not _reduces_last(node, view):
        return None
    square = _square_of(node.input[0], view)
    return None if square is None else (*square, kept)


def scaled(name: str, view: GraphView) -> tuple[str, float]:
    """Read a tensor as `factor · x`, factor 1 where it is nothing else."""
    factor = 1.0
    while (node := view.producer(name)) is not None:
        found = _scalar_factor(node, view)
        if found is None:
            break
        name, factor = found[0], factor * found[1]
    return name, factor


def _scalar_factor(node: onnx.NodeProto, view: GraphView) -> tuple[str, float] | None:
    """What a node multiplies by one constant number: the other operand, and the number."""
    if node.op_type == "Neg":
        return node.input[0], -1.0
    if node.op_type == "Div":
        number = _number(node.input[1], view)
        return None if not number else (node.input[0], 1 / number)
    if node.op_type == "Mul":
        for one, other in (node.input, reversed(node.input)):
            number = _number(other, view)
            if number is not None and view.constant(one) is None:
                return one, number
    return None


def _square_of(name: str, view: GraphView) -> tuple[str, float] | None:
    """Read a tensor as `factor · x²`."""
    node = view.producer(name)
    if node is None:
        return None
    if node.op_type == "Pow" and _number(node.input[1], view) == 2:
        base, factor = scaled(node.input[0], view)
        return base, factor**2
    if node.op_type == "Mul":
        (one, first), (two, second) = (scaled(each, view) for each in node.input)
        return (one, first * second) if one == two else None
    return None


def _number(name: str, view: GraphView) -> float | None:
    """A constant that is one number, and adds no axis to what it is combined with."""
    value = view.constant(name)
    return float(value.reshape(())) if value is not None and value.shape in ((), (1,)) else None


def _is_last(axes: tuple[int, ...] | None, rank: int | None) -> bool:
    return axes == (-1,) or (rank is not None and axes == (rank - 1,))


def _reduces_last(node: onnx.NodeProto, view: GraphView) -> bool:
    return _is_last(view.axes(node), view.rank(node.input[0]))


class _Reader:
    """Reads tensors as sums of terms, and remembers what they are made of."""

    def __init__(self, view: GraphView) -> None:
        self.view = view
        self.nodes: set[int] = set()
        self.inner: set[str] = set()

    def terms(self, name: str) -> _Terms | None:
        """The terms of a tensor [..., N, M] or [..., N, 1]; None where it is no such sum."""
        value = self.view.constant(name)
        if value is not None:
            return _constant_terms(value)
        norm = squared_norm(name, self.view)
        if norm is not None:
            base, factor, kept = norm
            return _Terms(norms={base: factor}) if kept else None
        node = self.view.producer(name)
        found = self._computed(node) if node is not None else None
        if node is not None and found is not None:
            self.nodes.add(id(node))
            self.inner.add(name)
        return found

    def _computed(self, node: onnx.NodeProto) -> _Terms | None:
        if node.op_type in ("Add", "Sub"):
            one, two = (self.terms(name) for name in node.input)
            if one is None or two is None:
                return None
            return one.plus(two if node.op_type == "Add" else two.times(-1))
        if node.op_type == "MatMul":
            return self._product(node.input[0], self._weights(node.input))
        if node.op_type == "Gemm":
            return self._gemm(node)
        factor = _scalar_factor(node, self.view)
        if factor is None:
            return None
        terms = self.terms(factor[0])
        return terms.times(factor[1]) if terms is not None else None

    def _gemm(self, node: onnx.NodeProto) -> _Terms | None:
        options = attributes(node)
        weights = self._weights(node.input)
        if weights is None or options.get("transA", 0):
            return None
        weights = weights.T if options.get("transB", 0) else weights
        found = self._product(node.input[0], weights)
        if found is None or len(node.input) < 3:
            return found.times(options.get("alpha", 1.0)) if found else None
        added = self.terms(node.input[2])
        if added is None:
            return None
        return found.times(options.get("alpha", 1.0)).plus(added.times(options.get("beta", 1.0)))

    def _weights(self, inputs: Sequence[str]) -> Float64 | None:
        """Constant second factor [D, M]; one a batch element will do if they are all the same."""
        value, rank = self.view.constant(inputs[1]), self.view.rank(inputs[0])
        if value is None or value.ndim < 2 or rank is None or value.ndim > rank:
            return None
        flat = value.reshape(-1, *value.shape[-2:])
        return flat[0].astype(np.float64) if (flat == flat[:1]).all() else None

    def _product(self, factor: str, weights: Float64 | None) -> _Terms | None:
        if weights is None:
            return None
        node = self.view.producer(factor)
        if node is not None and node.op_type == "Concat":
            return self._joined(node, weights)
        base, scale = scaled(factor, self.view)
        return _Terms(products={base: scale * weights})

    def _joined(self, node: onnx.NodeProto, weights: Float64) -> _Terms | None:
        """`torch.cdist`: queries, their norms and ones side by side, in one product."""
        view = self.view
        if not _is_last((attributes(node)["axis"],), view.rank(node.output[0])):
            return None
        total: _Terms | None = _Terms()
        start = 0
        for name in node.input:
            shape = view.shape(name)
            if shape is None or shape[-1] is None or total is None:
                return None
            rows = weights[start : start + shape[-1]]
            start += shape[-1]
            part = self._joined_part(name, rows)
            total = total.plus(part) if part is not None else None
        return total if start == len(weights) else None

    def _joined_part(self, name: str, rows: Float64) -> _Terms | None:
        value, norm = self.view.constant(name), squared_norm(name, self.view)
        if value is None and len(rows) == 1:
            value = self.view.filled(name)
        if value is not None:
            same = value.size > 0 and len(rows) == 1 and (value == value.flat[0]).all()
            return _Terms(offset=float(value.flat[0]) * rows[0]) if same else None
        if norm is not None:
            base, factor, kept = norm
            uniform = kept and len(rows) == 1 and (rows == rows[0, 0]).all()
            return _Terms(norms={base: factor * float(rows[0, 0])}) if uniform else None
        base, factor = scaled(name, self.view)
        return _Terms(products={base: factor * rows})


def _constant_terms(value: NDArray[np.generic]) -> _Terms | None:
    """A constant that differs along the last axis alone."""
    along = value.shape[-1] if value.ndim else 1
    if value.size != along or value.dtype != np.float32:
        return None
    return _Terms(offset=value.astype(np.float64).reshape(-1))
