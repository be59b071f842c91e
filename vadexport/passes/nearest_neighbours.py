"""Nearest neighbours in a constant bank: one product and one addition a pair, then the smallest."""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vadexport.passes.base import GraphView, attributes
from vadexport.passes.distances import Distances, read_distances, squared_norm

#: `ReduceSum` takes its axes as an input from here on.
OLDEST_OPSET: Final = 13
_SELECTORS: Final = ("ReduceMin", "ArgMin", "TopK")
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Search:
    """A search of a constant bank, as `find_searches` finds it.

    Attributes:
        distances: what the searched tensor is made of.
        scores: name of the searched tensor, [..., N, M].
        selectors: nodes that search it along its last axis: `ReduceMin`, `ArgMin`, `TopK`.
        wrappers: nodes between the squares and `scores` that keep their order, first one first.
        tails: of each selector that gives values, the `Add` that brings `‖x‖²` to them; empty where
            `scores` has it already.
    """

    distances: Distances
    scores: str
    selectors: tuple[onnx.NodeProto, ...]
    wrappers: tuple[onnx.NodeProto, ...]
    tails: tuple[onnx.NodeProto, ...]


class CentredBank(NamedTuple):
    """A bank around its mean, in float32.

    Attributes:
        mean: [D].
        rows: [M, D], the bank's less `mean`.
        norms: squared lengths of `rows`, [M].
    """

    mean: Float32
    rows: Float32
    norms: Float32

    @classmethod
    def of(cls, bank: NDArray[np.float64]) -> "CentredBank":
        """Centre a bank [M, D]."""
        mean = bank.mean(axis=0).astype(np.float32)
        rows = (bank - mean).astype(np.float32)
        norms = np.square(rows.astype(np.float64)).sum(axis=1).astype(np.float32)
        return cls(mean, rows, norms)


class NearestNeighbours:
    """Distances to the nearest rows of a constant bank, with as little as can be done N×M times.

    With the bank's mean `c`, queries `y = x − c` and rows `b = m − c`,

        min ‖x − m‖ = min ‖y − b‖ = √( ‖y‖² + min (‖b‖² − 2 y·b) ),

    for neither the root nor a bound from below nor adding what does not depend on `m` changes an
    order. `‖b‖²` is a constant, so a pair takes a product and an addition. Centring changes no
    distance, but takes from `‖y‖²` and `‖b‖²` what they have in common, and so from what their
    difference loses to rounding. The same holds for the k nearest (`TopK`) and indices (`ArgMin`).

    Of rows that are equally near others may be taken than before, as on any other machine.

    Must not apply where the tensor is no squared Euclidean distance (another norm, axis or factor),
    the bank is no constant or a caller may replace it, an intermediate result is used elsewhere,
    something other than the smallest along the bank is looked for, or the number of axes is not
    known.
    """

    name: ClassVar[str] = "nearest-neighbours"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        view = GraphView(model)
        searches = find_searches(model, view)
        for search in searches:
            _rewrite(model.graph, search)
        return len(searches)


def find_searches(model: onnx.ModelProto, view: GraphView) -> list[Search]:
    """All searches that the rule of `NearestNeighbours` holds for."""
    if view.opset < OLDEST_OPSET:
        return []
    searched: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type in _SELECTORS:
            searched.setdefault(node.input[0], []).append(node)
    found = (_search(name, tuple(nodes), view) for name, nodes in searched.items())
    return [search for search in found if search is not None]


def _search(name: str, selectors: tuple[onnx.NodeProto, ...], view: GraphView) -> Search | None:
    if not all(_selects_last(node, view) for node in selectors):
        return None
    wrappers = _wrappers(name, view)
    distances = read_distances(wrappers[0].input[0] if wrappers else name, view)
    if distances is None or view.rank(name) != view.rank(distances.queries):
        return None
    readers = distances.nodes | {id(node) for node in (*wrappers, *selectors)}
    for tensor in (*distances.inner, *(node.output[0] for node in wrappers)):
        if view.is_output(tensor) or not readers.issuperset(map(id, view.consumers(tensor))):
            return None
    tails: list[onnx.NodeProto] = []
    if not distances.has_norm:
        for node in selectors:
            tail = _tail(node, distances.queries, view)
            if wrappers or (tail is None and node.op_type != "ArgMin"):
                return None
            tails += [tail] if tail is not None else []
    return Search(distances, name, selectors, wrappers, tuple(tails))


def _selects_last(node: onnx.NodeProto, view: GraphView) -> bool:
    """Whether a node looks for the smallest along the last axis."""
    options = attributes(node)
    if node.op_type == "ReduceMin":
        axes = view.axes(node)
    else:
        axes = (options.get("axis", -1 if node.op_type == "TopK" else 0),)
    if node.op_type == "TopK" and options.get("largest", 1):
        return False
    rank = view.rank(node.input[0])
    return rank is not None and axes in ((-1,), (rank - 1,))


def _wrappers(name: str, view: GraphView) -> tuple[onnx.NodeProto, ...]:
    """Nodes that `name` went through and that keep an order, first one first."""
    found: list[onnx.NodeProto] = []
    while (node := view.producer(name)) is not None and _keeps_order(node, view):
        found.insert(0, node)
        name = node.input[0]
    return tuple(found)


def _keeps_order(node: onnx.NodeProto, view: GraphView) -> bool:
    """Roots, and bounds from below by a constant number."""
    bounds = [view.constant(each) for each in node.input[1:] if each]
    if node.op_type in ("Sqrt", "Relu"):
        return True
    only_below = node.op_type == "Max" or (node.op_type == "Clip" and not any(node.input[2:]))
    return only_below and len(bounds) == 1 and bounds[0] is not None and bounds[0].size == 1


def _tail(selector: onnx.NodeProto, queries: str, view: GraphView) -> onnx.NodeProto | None:
    """The `Add` of `‖x‖²` that alone reads a selector's values."""
    readers = view.consumers(selector.output[0])
    if len(readers) != 1 or readers[0].op_type != "Add" or view.is_output(selector.output[0]):
        return None
    others = [name for name in readers[0].input if name != selector.output[0]]
    norm = squared_norm(others[0], view) if len(others) == 1 else None
    return readers[0] if norm == (queries, 1.0, _keeps_axis(selector)) else None


def _keeps_axis(selector: onnx.NodeProto) -> bool:
    return selector.op_type == "TopK" or bool(attributes(selector).get("keepdims", 1))


def _rewrite(graph: onnx.GraphProto, search: Search) -> None:
    bank = CentredBank.of(search.distances.bank)
    place = min(list(graph.node).index(node) for node in search.selectors)
    prefix = search.scores
    names = {part: f"{prefix}/{part}" for part in ("mean", "weights", "norms", "axis", "zero")}
    values = (bank.mean, np.ascontiguousarray(-2 * bank.rows.T), bank.norms)
    constants = (*values, np.array([-1], np.int64), np.float32(0))
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in zip(names.values(), constants, strict=True)
    )
    centred, product, partial = (f"{prefix}/{part}" for part in ("centred", "product", "partial"))
    nodes = [
        _node("Sub", [search.distances.queries, names["mean"]], centred),
        _node("MatMul", [centred, names["weights"]], product),
        _node("Add", [product, names["norms"]], partial),
        _node("Mul", [centred, centred], f"{prefix}/squares"),
    ]
    made: set[str] = set()

    def norm(*, kept: bool) -> str:
        """Name of the queries' squared norms, which are made where they are not there yet."""
        name = f"{prefix}/{'column' if kept else 'row'}"
        if name not in made:
            made.add(name)
            inputs = [f"{prefix}/squares", names["axis"]]
            nodes.append(_node("ReduceSum", inputs, name, keepdims=int(kept)))
        return name

    behind: list[tuple[onnx.NodeProto, list[onnx.NodeProto]]] = []
    for selector in search.selectors:
        selector.input[0] = partial
        if selector.op_type == "ArgMin":
            continue
        value = selector.output[0]
        kept = norm(kept=_keeps_axis(selector))
        tail = next((each for each in search.tails if value in each.input), None)
        # It gives another value now, and a name that stays is compared with the graph as it was.
        selector.output[0] = f"{value}/partial"
        if tail is not None:
            tail.input[:] = [f"{value}/partial", kept]
            continue
        steps = _wrapped(search.wrappers, names["zero"])
        tensors = [f"{value}/partial", *(f"{value}/step{n}" for n in range(len(steps))), value]
        added = [_node("Add", [tensors[0], kept], tensors[1])]
        for step, source, result in zip(steps, tensors[1:-1], tensors[2:], strict=True):
            options = attributes(step)
            added.append(_node(step.op_type, [source, *step.input[1:]], result, **options))
        behind.append((selector, added))
    for offset, node in enumerate(nodes):
        graph.node.insert(place + offset, node)
    for selector, added in behind:
        after = list(graph.node).index(selector) + 1
        for offset, node in enumerate(added):
            graph.node.insert(after + offset, node)


def _wrapped(wrappers: tuple[onnx.NodeProto, ...], zero: str) -> list[onnx.NodeProto]:
    """The wrappers, and a bound before a root that has none: rounding must not make it NaN."""
    if wrappers and wrappers[0].op_type == "Sqrt":
        return [_node("Clip", ["", zero], ""), *wrappers]
    return list(wrappers)


def _node(op: str, inputs: list[str], output: str, **options: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], f"{output}/nearest", **options)
