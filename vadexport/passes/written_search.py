"""Searches of a bank in the form that `NearestNeighbours` writes: one product and one addition."""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vadexport.passes.base import GraphView
from vadexport.passes.nearest_neighbours import Search, find_searches

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class WrittenSearch:
    """Squared distances less the queries' own norms, `queries @ weights + norms`.

    Attributes:
        search: all of it.
        product: of queries [..., N, D] and weights.
        added: adds the norms.
        weights: the rows of the bank, times −2, float32 [D, M].
        norms: their squared lengths, float32 [M].
    """

    search: Search
    product: onnx.NodeProto
    added: onnx.NodeProto
    weights: Float32
    norms: Float32

    @property
    def rows(self) -> Float64:
        """The bank, [M, D]."""
        return self.weights.T.astype(np.float64) / -2

    def constant(self, graph: onnx.GraphProto, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant of its own to the graph; its whole name."""
        whole = f"{self.search.scores}/{name}"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), whole))
        return whole


def written_searches(model: onnx.ModelProto, view: GraphView) -> list[WrittenSearch]:
    """All searches of that form."""
    found = (_written(search, view) for search in find_searches(model, view))
    return [each for each in found if each is not None]


def _written(search: Search, view: GraphView) -> WrittenSearch | None:
    added = view.producer(search.scores)
    product = view.producer(added.input[0]) if added is not None else None
    if added is None or product is None or (product.op_type, added.op_type) != ("MatMul", "Add"):
        return None
    weights, norms = view.constant(product.input[1]), view.constant(added.input[1])
    if weights is None or norms is None or search.distances.queries != product.input[0]:
        return None
    if weights.ndim != 2 or norms.shape != weights.shape[1:] or weights.dtype != np.float32:
        return None
    return WrittenSearch(
        search, product, added, weights.astype(np.float32), norms.astype(np.float32)
    )
