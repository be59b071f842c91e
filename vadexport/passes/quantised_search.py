"""The search of a bank in INT8, whose finds are measured again in float32.

`QuantisedSearch` rewrites what `search_inputs` finds, by plans that `plan_search` makes from real
images' queries. It belongs to INT8 targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vadexport.passes.base import GraphView, attributes, sort_nodes
from vadexport.passes.nearest_neighbours import CentredBank, Search, find_searches
from vadexport.passes.search_plan import TILE, Float32, SearchPlan, looked_in_bank

#: Steps away from all queries that rows are which only fill a block.
_FAR: Final = 1e30


@dataclass(frozen=True)
class SearchInput:
    """What the plan of a search is made from.

    Attributes:
        queries: name of the tensor [..., N, D] to observe on images.
        bank: what they are compared with.
    """

    queries: str
    bank: CentredBank


def search_inputs(model: onnx.ModelProto) -> dict[str, SearchInput]:
    """The searches that may become INT8, by the names that plans are given under."""
    return {
        search.scores: SearchInput(search.distances.queries, CentredBank.of(search.distances.bank))
        for search in find_searches(model, GraphView(model))
        if _is_of_one_neighbour(search)
    }


class QuantisedSearch:
    """The nearest row of a bank, looked for in INT8, and its distance in float32.

    Queries and rows, both around the bank's mean, are rounded to int8: queries by one step for all,
    each row by its own. That leaves the order of distances nearly as it was, and so does looking in
    few directions, the bank's principal ones: what lies outside of them is in a row's squared
    length, and only its product with the query is left out (`search_plan`). So each block of rows
    names the one that seems nearest, and for the `shortlist` best of them distances are computed in
    float32 from differences: without cancellation, and never less than the true one but for
    rounding. What can be wrong is that the nearest row is not on the list; `plan_search` measures
    by how much distances grow for it.

    A block's smallest value and its place come from one `ReduceMin`. With `s` the INT8 distance in
    whole steps, the smallest of `block·s + place` tells both: it is a whole number below 2²⁴, exact
    in float32. An `ArgMin` over all pairs would take longer than the rest of the search.

    Must not apply where there is no plan, the rule of `NearestNeighbours` does not hold, or several
    neighbours are looked for (`TopK`). It comes in the place of `WorstNeighbour` and `SearchTiles`,
    behind which it finds nothing.
    """

    name: ClassVar[str] = "quantised-search"

    def __init__(self, plans: Mapping[str, SearchPlan]) -> None:
        """Take the plans by the names that `search_inputs` gives."""
        self._plans = plans

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        view = GraphView(model)
        count = 0
        for search in find_searches(model, view):
            plan, rank = self._plans.get(search.scores), view.rank(search.scores)
            if plan is not None and rank is not None and _is_of_one_neighbour(search):
                _Rewriting(model.graph, search, plan, rank=rank).apply()
                count += 1
        if count:
            sort_nodes(model.graph)
        return count


def _is_of_one_neighbour(search: Search) -> bool:
    kinds = [node.op_type for node in search.selectors]
    return "TopK" not in kinds and kinds.count("ReduceMin") == 1 and kinds.count("ArgMin") <= 1


class PrincipalSearch(QuantisedSearch):
    """The same in float32, in few of the bank's principal directions, where that takes less.

    For float32 targets: nothing is rounded that distances are measured from. What can be wrong is
    the same, that the nearest row is not on the list.
    """

    name: ClassVar[str] = "principal-search"


class _Rewriting:
    """Writes the nodes of one search."""

    def __init__(
        self, graph: onnx.GraphProto, search: Search, plan: SearchPlan, *, rank: int
    ) -> None:
        self.graph, self.search, self.plan, self.rank = graph, search, plan, rank
        self.prefix = f"{search.scores}/{'few' if plan.step is None else 'int8'}"
        self.bank = CentredBank.of(search.distances.bank)
        self.blocks = -(-len(self.bank.rows) // plan.block)
        self.made: set[str] = set()

    def apply(self) -> None:
        """Replace the search's selectors and what follows them."""
        mean = self.constant("mean", self.bank.mean)
        centred = self.node("Sub", [self.search.distances.queries, mean], "centred")
        rows = self.candidates(self.codes(centred))
        self.measure(centred, rows)

    def codes(self, centred: str) -> str:
        """`block·s + place` of the row that seems nearest, of each block: [..., N, blocks]."""
        queries = centred
        if self.plan.directions is not None:
            basis = self.constant("directions", self.plan.directions)
            queries = self.node("MatMul", [centred, basis], "projected")
        if self.plan.step is not None:
            step = self.constant("step", np.float32(self.plan.step))
            zero = self.constant("zero", np.int8(0))
            quantised = self.node("QuantizeLinear", [queries, step, zero], "quantised")
            queries = self.node("DequantizeLinear", [quantised, step, zero], "queries")
        count = self.blocks * self.plan.block
        rows, scales, norms = self.padded(count)
        sizes = np.array([0] * (self.rank - 1) + [-1, self.plan.block])
        smallest = []
        for number, start in enumerate(range(0, count, TILE)):
            tile, part = f"tile{number}", slice(start, min(start + TILE, count))
            width = part.stop - start
            weighted = self.weights(rows[part], scales[part], tile)
            product = self.node("MatMul", [queries, weighted], f"{tile}/product")
            offsets = self.constant(f"{tile}/norms", norms[part])
            summed = self.node("Add", [product, offsets], f"{tile}/sum")
            tens = self.tens(self.node("Floor", [summed], f"{tile}/steps"), f"{tile}/tens")
            places = np.arange(width, dtype=np.float32) % self.plan.block
            ones = self.constant(f"places{width}", places)
            code = self.node("Add", [tens, ones], f"{tile}/codes")
            blocks = self.node("Reshape", [code, self.constant("sizes", sizes)], f"{tile}/blocks")
            smallest.append(self.smallest(blocks, f"{tile}/smallest", keepdims=0))
        return self.node("Concat", smallest, "codes", axis=-1)

    def weights(self, rows: NDArray[np.int8] | Float32, scales: Float32, tile: str) -> str:
        """What queries are multiplied with: [D, rows]."""
        columns = np.ascontiguousarray(-rows.T)
        if self.plan.step is None:
            return self.constant(f"{tile}/rows", columns.astype(np.float32) * scales)
        width = len(rows)
        inputs = [
            self.constant(f"{tile}/rows", columns),
            self.constant(f"{tile}/scales", scales),
            self.constant(f"zeros{width}", np.zeros(width, np.int8)),
        ]
        return self.node("DequantizeLinear", inputs, f"{tile}/weights", axis=1)

    def padded(self, count: int) -> tuple[NDArray[np.int8] | Float32, Float32, Float32]:
        """Rows, scales of their products and norms, with rows that are never near up to `count`."""
        levels = self.plan.levels
        bank = looked_in_bank(self.bank, self.plan.directions, self.plan.row_steps)
        more = count - len(bank.rows)
        rows: NDArray[Any] = np.pad(bank.rows, ((0, more), (0, 0)))
        scales = np.pad(2 * levels * bank.steps.astype(np.float64), (0, more), constant_values=1)
        norms = np.pad(levels * bank.norms.astype(np.float64), (0, more), constant_values=_FAR)
        return rows, scales.astype(np.float32), norms.astype(np.float32)

    def candidates(self, codes: str) -> str:
        """Rows that the best blocks name, the best first: int64 [..., N, shortlist]."""
        count = min(self.plan.shortlist, self.blocks)
        if count == 1:
            best = self.smallest(codes, "best", keepdims=1)
            block = self.node("ArgMin", [codes], "block", axis=-1, keepdims=1)
        else:
            wanted = self.constant("count", np.array([count]))
            best, block = f"{self.prefix}/best", f"{self.prefix}/block"
            name = f"{self.prefix}/shortlist"
            self.graph.node.append(
                helper.make_node("TopK", [codes, wanted], [best, block], name, axis=-1, largest=0)
            )
        quotient = self.node("Div", [best, self.block], "quotient")
        tens = self.tens(self.node("Floor", [quotient], "whole"), "tens")
        place = self.node("Cast", [self.node("Sub", [best, tens], "place")], "number", to=7)
        width = self.constant("rows_of_blocks", np.int64(self.plan.block))
        row = self.node("Add", [self.node("Mul", [block, width], "start"), place], "unbounded")
        # A query much longer than all that were seen has codes that are not exact.
        last = self.constant("last", np.int64(len(self.bank.rows) - 1))
        return self.node("Min", [row, last], "candidates")

    def tens(self, steps: str, output: str) -> str:
        """Whole steps where a code has them."""
        return self.node("Mul", [steps, self.block], output)

    def measure(self, centred: str, rows: str) -> None:
        """Distances to the candidates, and of these the smallest, under the names they had."""
        found = self.node("Gather", [self.constant("bank", self.bank.rows), rows], "found", axis=0)
        before_last = self.constant("before_last", np.array([-2]))
        each = self.node("Unsqueeze", [centred, before_last], "each")
        difference = self.node("Sub", [each, found], "difference")
        squares = self.node("Mul", [difference, difference], "squares")
        squared = self.node("ReduceSum", [squares, self.axis], "squared", keepdims=0)
        for selector in self.search.selectors:
            keepdims = attributes(selector).get("keepdims", 1)
            name = selector.output[0]
            if selector.op_type == "ArgMin":
                best = self.node("ArgMin", [squared], "nearest", axis=-1, keepdims=1)
                row = self.node("GatherElements", [rows, best], "row", axis=-1)
                inputs = [row] if keepdims else [row, self.axis]
                self.add("Identity" if keepdims else "Squeeze", inputs, name)
            else:
                self.finish(self.smallest(squared, "smallest", keepdims=keepdims), name)
            self.graph.node.remove(selector)

    def finish(self, squared: str, name: str) -> None:
        """Give squared distances what the search did to them, and the name that it gave them."""
        for tail in self.search.tails:
            name = tail.output[0]
            self.graph.node.remove(tail)
        steps = list(self.search.wrappers)
        for number, step in enumerate(steps):
            inputs = [squared, *step.input[1:]]
            squared = f"{self.prefix}/step{number}" if step is not steps[-1] else name
            self.add(step.op_type, inputs, squared, **attributes(step))
        if not steps:
            self.add("Identity", [squared], name)

    @property
    def block(self) -> str:
        """Rows of a block, as a float."""
        return self.constant("rows_of_a_block", np.float32(self.plan.block))

    @property
    def axis(self) -> str:
        """The last axis."""
        return self.constant("axis", np.array([-1]))

    def smallest(self, name: str, output: str, keepdims: int) -> str:
        """Smallest along the last axis, whose number is an attribute of older opsets."""
        source = next(node for node in self.search.selectors if node.op_type == "ReduceMin")
        if len(source.input) > 1:
            return self.node("ReduceMin", [name, self.axis], output, keepdims=keepdims)
        return self.node("ReduceMin", [name], output, keepdims=keepdims, axes=[-1])

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """Name of a constant, which is made where it is not there yet."""
        full = f"{self.prefix}/{name}"
        if full not in self.made:
            self.made.add(full)
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), full))
        return full

    def node(self, op: str, inputs: list[str], output: str, **options: Any) -> str:
        """Add a node; name of its result."""
        return self.add(op, inputs, f"{self.prefix}/{output}", **options)

    def add(self, op: str, inputs: list[str], output: str, **options: Any) -> str:
        """Add a node whose result has just this name."""
        name = f"{output}/{op}"
        self.graph.node.append(helper.make_node(op, inputs, [output], name, **options))
        return output
