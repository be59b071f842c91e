"""A bank without the rows that have another close by: fewer distances, none of which grows much."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vadexport.passes.base import GraphView
from vadexport.passes.written_search import Float64, WrittenSearch, written_searches

#: Of the typical distance to the nearest other row, most first; 0 leaves out copies alone.
_FRACTIONS: Final = (2.0, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25, 0.1, 0.0)
#: Nodes that only put indices elsewhere, or leave some out.
_MOVING: Final = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "GatherElements", "Identity")
#: Rows of one product.
_AT_ONCE: Final = 512
#: Rows that tell the typical distance.
_MOST_ASKED: Final = 2048
#: Of the largest squared norm, what is no distance but rounding.
_ROUNDING: Final = 1e-12
_SEED: Final = 0


@dataclass(frozen=True)
class BankPruning:
    """The bank's rows are gone through in a random order; those near one that stays are left out.

    With `r` the radius, every row is no further than `r` from one that stays, so by the triangle
    inequality the distance of a query to its nearest row grows by at most `r`, and never shrinks.
    An index of the nearest row is translated back into one of the whole bank.

    `fraction` is the radius, as a fraction of the median distance of a row to the nearest one that
    is no copy of it, taken over 2,048 rows of a larger bank.

    Must not apply where the search is not written as `NearestNeighbours` does, several neighbours
    are looked for (`TopK`: the k-th of copies of a row is no other row), or no row has another
    within the radius.
    """

    fraction: float
    name: ClassVar[str] = "bank-pruning"

    @classmethod
    def candidates(cls, model: onnx.ModelProto) -> tuple[Self, ...]:
        """Settings for a graph, those that leave out most first; none where there is no bank."""
        found = [one for one in written_searches(model, GraphView(model)) if _is_nearest(one)]
        return tuple(map(cls, _FRACTIONS)) if found else ()

    def words(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
        """What it did to a graph, for a reader."""
        rows, kept = (
            sum(len(one.norms) for one in written_searches(each, GraphView(each)))
            for each in (before, after)
        )
        return f"{kept} of {rows} rows of the memory bank"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        view = GraphView(model)
        count = 0
        for written in written_searches(model, view):
            kept = kept_rows(written.rows, self.fraction) if _is_nearest(written) else None
            if kept is not None and len(kept) < len(written.norms):
                _rewrite(model.graph, written, kept, view)
                count += 1
        return count


def _is_nearest(written: WrittenSearch) -> bool:
    return all(node.op_type != "TopK" for node in written.search.selectors)


def kept_rows(rows: Float64, fraction: float) -> NDArray[np.int64]:
    """Numbers of rows, ascending, such that every row [M, D] is within the radius of one of them.

    The same rows are kept every time.
    """
    rows = rows - rows.mean(axis=0)
    norms = np.square(rows).sum(axis=1)
    random = np.random.Generator(np.random.PCG64(_SEED))
    order = random.permutation(len(rows))
    least = _ROUNDING * norms.max(initial=0.0)
    nearest = np.concatenate(list(_nearest_others(rows, norms, order[:_MOST_ASKED], least)))
    apart = np.sqrt(nearest[np.isfinite(nearest)])
    limit = max((fraction * float(np.median(apart))) ** 2 if len(apart) else 0.0, least)
    kept = np.zeros(0, np.int64)
    for start in range(0, len(order), _AT_ONCE):
        block = order[start : start + _AT_ONCE]
        if len(kept):
            block = block[_squared(rows, norms, block, kept).min(axis=1) > limit]
        apart_from = _squared(rows, norms, block, block) > limit
        alive = np.ones(len(block), bool)
        for number in range(len(block)):
            if alive[number]:
                alive[number + 1 :] &= apart_from[number, number + 1 :]
        kept = np.append(kept, block[alive])
    return np.sort(kept)


def _nearest_others(
    rows: Float64, norms: Float64, asked: NDArray[np.int64], least: float
) -> Iterator[Float64]:
    """Squared distance of each row to the nearest one that is no copy of it; infinite of none."""
    every = np.arange(len(rows))
    for start in range(0, len(asked), _AT_ONCE):
        part = asked[start : start + _AT_ONCE]
        found = _squared(rows, norms, part, every)
        yield np.where(found > least, found, np.inf).min(axis=1)


def _squared(
    rows: Float64, norms: Float64, one: NDArray[np.int64], other: NDArray[np.int64]
) -> Float64:
    found: Float64 = norms[one, None] + norms[other] - 2 * (rows[one] @ rows[other].T)
    return found


def _rewrite(
    graph: onnx.GraphProto, written: WrittenSearch, kept: NDArray[np.int64], view: GraphView
) -> None:
    weights, norms = written.weights[:, kept], written.norms[kept]
    written.product.input[1] = written.constant(graph, "pruned/weights", weights)
    written.added.input[1] = written.constant(graph, "pruned/norms", norms)
    for number, selector in enumerate(written.search.selectors):
        if selector.op_type == "ArgMin":
            node = _last_moving(selector, view)
            numbers = written.constant(graph, f"pruned/kept{number}", kept)
            result, place = node.output[0], list(graph.node).index(node)
            node.output[0] = f"{result}/pruned"
            back = helper.make_node(
                "Gather", [numbers, node.output[0]], [result], f"{result}/back", axis=0
            )
            graph.node.insert(place + 1, back)


def _last_moving(node: onnx.NodeProto, view: GraphView) -> onnx.NodeProto:
    """The last node behind an index that leaves its values as they are.

    Translated there, it stays a pattern that other passes know, and often only one of many.
    """
    while not view.is_output(node.output[0]):
        readers = view.consumers(node.output[0])
        if len(readers) != 1 or readers[0].op_type not in _MOVING:
            break
        if readers[0].input[0] != node.output[0]:
            break
        node = readers[0]
    return node
