"""Which row of a bank is nearest, asked only for the patches that somebody wants to know it of."""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vadexport.passes.base import Dimensions, GraphView, attributes

#: Of a patch's neighbours, at most one in so many must be asked for.
_FEW: Final = 8
_LAST_OPSET_WITHOUT_BATCHES: Final = 11


@dataclass(frozen=True)
class _Match:
    """The nodes of the rule; `patches` and `rows` are the last two sizes of the scores."""

    argmin: onnx.NodeProto
    gather: onnx.NodeProto
    patches: int
    rows: int
    flat: bool


class WorstNeighbour:
    """`GatherElements(ArgMin(S), i)` becomes `ArgMin` of the rows `S[n, i]` alone.

    PatchCore's re-weighting (its eq. 7) starts from the row of the bank that is nearest to an
    image's worst patch, so the index of the smallest of M numbers is needed once an image, and not
    for each of its N patches. Taking rows and finding the smallest along each of them do not
    depend on each other's order: `ArgMin(S)[n, i] = ArgMin(S[n, i])`, ties included.

    `S` is `[N, P, M]`, or `[N·P, M]` with a `Reshape` of the indices to `[N, P]`.

    Must not apply where anything else reads the indices, more than an eighth of them are read, the
    axes are others, or the sizes do not show that each image's indices are read at its own places.
    """

    name: ClassVar[str] = "worst-neighbour"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        view = GraphView(model)
        if view.opset <= _LAST_OPSET_WITHOUT_BATCHES:
            return 0
        gathers = [node for node in model.graph.node if node.op_type == "GatherElements"]
        matches = [match for node in gathers if (match := _match(node, view)) is not None]
        for match in matches:
            _rewrite(model.graph, match)
        return len(matches)


def _match(gather: onnx.NodeProto, view: GraphView) -> _Match | None:
    indices = gather.input[0]
    source = view.producer(indices)
    reshaped = source if source is not None and source.op_type == "Reshape" else None
    argmin = view.producer(reshaped.input[0]) if reshaped is not None else source
    if argmin is None or argmin.op_type != "ArgMin" or attributes(gather).get("axis", 0) != 1:
        return None
    tensors = [argmin.output[0], indices]
    if any(view.is_output(name) or len(view.consumers(name)) != 1 for name in tensors):
        return None
    rank = 3 if reshaped is None else 2
    scores = view.dimensions(argmin.input[0])
    patches = _patches(view.dimensions(indices), view.dimensions(gather.input[1]))
    if scores is None or len(scores) != rank or patches is None or not _last(argmin, rank):
        return None
    rows = scores[-1]
    return _Match(argmin, gather, patches, rows, rank == 2) if isinstance(rows, int) else None


def _patches(found: Dimensions | None, wanted: Dimensions | None) -> int | None:
    """P of indices [N, P] of which a few are wanted, [N, K]; None where that is not shown."""
    if found is None or wanted is None or len(found) != 2 or len(wanted) != 2:
        return None
    (images, patches), (asked, count) = found, wanted
    if images is None or images != asked:
        return None
    few = isinstance(patches, int) and isinstance(count, int) and count * _FEW <= patches
    return patches if few and isinstance(patches, int) else None


def _last(argmin: onnx.NodeProto, rank: int) -> bool:
    """Whether it searches the last axis, and takes it away."""
    options = attributes(argmin)
    return options.get("axis", 0) in (-1, rank - 1) and not options.get("keepdims", 1)


def _rewrite(graph: onnx.GraphProto, match: _Match) -> None:
    prefix = match.gather.output[0]
    place = list(graph.node).index(match.gather)
    scores = match.argmin.input[0]
    constants = {"last": np.array([2])}
    nodes = []
    if match.flat:
        constants["sizes"] = np.array([-1, match.patches, match.rows])
        sizes, grouped = f"{prefix}/sizes", f"{prefix}/scores"
        nodes.append(helper.make_node("Reshape", [scores, sizes], [grouped], f"{grouped}_node"))
        scores = grouped
    last = attributes(match.argmin).get("select_last_index", 0)
    at, row = f"{prefix}/at", f"{prefix}/rows"
    nodes += [
        helper.make_node(
            "Unsqueeze", [match.gather.input[1], f"{prefix}/last"], [at], f"{at}_node"
        ),
        helper.make_node("GatherND", [scores, at], [row], f"{row}_node", batch_dims=1),
        helper.make_node(
            "ArgMin", [row], [prefix], f"{prefix}/worst", axis=2, keepdims=0, select_last_index=last
        ),
    ]
    graph.initializer.extend(
        numpy_helper.from_array(value, f"{prefix}/{name}") for name, value in constants.items()
    )
    graph.node.remove(match.gather)
    for offset, node in enumerate(nodes):
        graph.node.insert(place + offset, node)
