"""A search in the few directions that the bank varies most in: fewer products for each pair."""

from dataclasses import dataclass
from typing import ClassVar, Final, Self

import numpy as np
import onnx
from onnx import helper

from vadexport.passes.base import GraphView
from vadexport.passes.written_search import WrittenSearch, written_searches

#: Of the bank's directions, fewest first.
_SHARES: Final = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)
#: Products must become fewer at least by this factor; vectors of the processor hold 16 numbers.
_LEAST_GAIN: Final = 1.2
_STEP: Final = 8


@dataclass(frozen=True)
class BankProjection:
    """`y·b` becomes `Py·Pb`, `P` the `rank` principal directions of the bank (PCA).

    Only the products are taken in the subspace: both squared norms stay those of all directions. So

        ‖y‖² + ‖b‖² − 2 Py·Pb = ‖Py − Pb‖² + ‖y⊥‖² + ‖b⊥‖²,

    what lies outside of the subspace is in the distance exactly but for `−2 y⊥·b⊥`, and no square
    is below zero. `Pᵀ` is folded into the bank's constant, so a query takes `rank·D` products more,
    and a pair `rank` in place of `D`.

    Must not apply where the search is not written as `NearestNeighbours` does, or products do not
    become fewer.
    """

    rank: int
    name: ClassVar[str] = "bank-projection"

    @classmethod
    def candidates(cls, model: onnx.ModelProto) -> tuple[Self, ...]:
        """Settings for a graph, the lowest rank first; none where there is nothing to gain."""
        searches = written_searches(model, GraphView(model))
        sizes = [(max(1, round(share * len(one.weights) / _STEP)) * _STEP, one)
                 for one in searches for share in _SHARES]  # fmt: skip
        return tuple(map(cls, sorted({rank for rank, one in sizes if _gains(rank, one)})))

    def words(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
        """What it did to a graph, for a reader."""
        del after
        searches = written_searches(before, GraphView(before))
        widths = sorted({len(one.weights) for one in searches if _gains(self.rank, one)})
        return f"{self.rank} of {' and '.join(map(str, widths))} directions of the memory bank"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        searches = written_searches(model, GraphView(model))
        gaining = [one for one in searches if _gains(self.rank, one)]
        for written in gaining:
            _rewrite(model.graph, written, self.rank)
        return len(gaining)


def _gains(rank: int, written: WrittenSearch) -> bool:
    width, rows = len(written.weights), len(written.norms)
    return _LEAST_GAIN * rank * (width + rows) <= width * rows


def _rewrite(graph: onnx.GraphProto, written: WrittenSearch, rank: int) -> None:
    rows = written.rows
    _, directions = np.linalg.eigh(rows.T @ rows)
    basis = directions[:, ::-1][:, :rank]
    projection = written.constant(graph, "projected/directions", basis.astype(np.float32))
    weights = (basis.T @ written.weights).astype(np.float32)
    projected = f"{written.search.scores}/projected"
    place = list(graph.node).index(written.product)
    node = helper.make_node(
        "MatMul", [written.product.input[0], projection], [projected], f"{projected}/node"
    )
    graph.node.insert(place, node)
    written.product.input[0] = projected
    written.product.input[1] = written.constant(graph, "projected/weights", weights)
