"""A search cut into tiles of the bank, whose distances stay in the cache until searched."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vadexport.passes.base import GraphView, attributes, sort_nodes

#: Rows of a tile. Of 256, 512 and 1,024 the fastest in ONNX Runtime; OpenVINO does not mind
#: (docs/passes.md).
TILE: Final = 256
_LAST_OPSET_WITHOUT_AXES: Final = 12


class _Constants(NamedTuple):
    """Weights [D, M] and offsets [M]."""

    weights: NDArray[np.float32]
    offsets: NDArray[np.float32]


@dataclass(frozen=True)
class _Match:
    product: onnx.NodeProto
    added: onnx.NodeProto
    smallest: onnx.NodeProto
    constants: _Constants


class SearchTiles:
    """`min (y·W + c)` along the bank as the smallest of the minima of tiles of its rows.

    A matrix of N×M distances does not fit the cache: it is written to memory and read again to be
    searched. The columns of a product do not depend on each other, so it may be computed a tile of
    columns at a time, each searched at once; the minimum of minima is the minimum.

    Must not apply where anything else reads the product or the sum (what `WorstNeighbour` takes out
    of it would keep all tiles in memory: slower than one product), its second factor or what is
    added is no constant along the bank, or the bank has fewer than two tiles.
    """

    name: ClassVar[str] = "search-tiles"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        view = GraphView(model)
        if view.opset <= _LAST_OPSET_WITHOUT_AXES:
            return 0
        sums = [node for node in model.graph.node if node.op_type == "Add"]
        matches = [match for node in sums if (match := _match(node, view)) is not None]
        for match in matches:
            _rewrite(model.graph, match)
        if matches:
            sort_nodes(model.graph)
        return len(matches)


def _match(added: onnx.NodeProto, view: GraphView) -> _Match | None:
    product = view.producer(added.input[0])
    constants = _constants(product, added, view) if product is not None else None
    if product is None or constants is None:
        return None
    tensors = product.output[0], added.output[0]
    if any(map(view.is_output, tensors)) or len(view.consumers(tensors[0])) != 1:
        return None
    readers = view.consumers(tensors[1])
    if len(readers) != 1 or readers[0].op_type != "ReduceMin" or not _along_bank(readers[0], view):
        return None
    return _Match(product, added, readers[0], constants)


def _constants(
    product: onnx.NodeProto, added: onnx.NodeProto, view: GraphView
) -> _Constants | None:
    """Weights [D, M] and offsets [M] of a product that is large enough for tiles."""
    if product.op_type != "MatMul":
        return None
    weights, offsets = view.constant(product.input[1]), view.constant(added.input[1])
    if weights is None or offsets is None:
        return None
    fits = weights.ndim == 2 and offsets.shape == weights.shape[1:] and offsets.size >= 2 * TILE
    if not fits or weights.dtype != np.float32:
        return None
    return _Constants(weights.astype(np.float32), offsets.astype(np.float32))


def _along_bank(node: onnx.NodeProto, view: GraphView) -> bool:
    rank = view.rank(node.input[0])
    return rank is not None and view.axes(node) in ((-1,), (rank - 1,))


def _rewrite(graph: onnx.GraphProto, match: _Match) -> None:
    prefix = match.added.output[0]
    queries = match.product.input[0]
    minima: list[str] = []
    weights, offsets = match.constants
    for number, (start, end) in enumerate(pairwise(_edges(offsets.size))):
        tile = f"{prefix}/tile{number}"
        constants = {"weights": weights[:, start:end], "offsets": offsets[start:end]}
        graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(value), f"{tile}/{name}")
            for name, value in constants.items()
        )
        minima.append(f"{tile}/smallest")
        inputs = [tile, *match.smallest.input[1:]]
        options = {**attributes(match.smallest), "keepdims": 1}
        graph.node.extend(
            [
                _node("MatMul", [queries, f"{tile}/weights"], f"{tile}/product"),
                _node("Add", [f"{tile}/product", f"{tile}/offsets"], tile),
                _node("ReduceMin", inputs, minima[-1], **options),
            ]
        )
    match.smallest.input[0] = f"{prefix}/minima"
    graph.node.append(_node("Concat", minima, f"{prefix}/minima", axis=-1))
    for node in (match.product, match.added):
        graph.node.remove(node)


def _edges(rows: int) -> list[int]:
    """Where tiles begin and end: as equal as multiples of a vector's 16 numbers allow."""
    tiles = -(-rows // TILE)
    return [*(round(rows * number / tiles / 16) * 16 for number in range(tiles)), rows]


def _node(op: str, inputs: list[str], output: str, **options: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], f"{output}/node", **options)
