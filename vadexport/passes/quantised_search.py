"""The search of a bank in INT8, whose finds are measured again in float32.

`QuantisedSearch` rewrites what `search_inputs` finds, by plans that `plan_search` makes from real
images' queries. It belongs to INT8 targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vadexport.passes.base import GraphView, attributes, sort_nodes
from vadexport.passes.nearest_neighbours import CentredBank, Search, find_searches
from vadexport.passes.search_plan import TILE, QuantisedBank, SearchPlan


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
    each row by its own. That leaves the order of distances nearly as it was. So each tile of `TILE`
    rows names the row that seems nearest, and for the `shortlist` best of them distances are
    computed in float32 from differences: without cancellation, and never less than the true one but
    for rounding. What can be wrong is that the nearest row is not on the list; `plan_search`
    measures by how much distances grow for it.

    A tile's smallest value and its place come from one `ReduceMin`. With `s` the INT8 distance in
    whole steps, the smallest of `TILE·s + place` tells both: it is a whole number below 2²⁴, exact
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
            plan = self._plans.get(search.scores)
            if plan is not None and _is_of_one_neighbour(search):
                _Rewriting(model.graph, search, plan).apply()
                count += 1
        if count:
            sort_nodes(model.graph)
        return count


def _is_of_one_neighbour(search: Search) -> bool:
    kinds = [node.op_type for node in search.selectors]
    return "TopK" not in kinds and kinds.count("ReduceMin") == 1 and kinds.count("ArgMin") <= 1


class _Rewriting:
    """Writes the nodes of one search."""

    def __init__(self, graph: onnx.GraphProto, search: Search, plan: SearchPlan) -> None:
        self.graph, self.search, self.plan = graph, search, plan
        self.prefix = f"{search.scores}/int8"
        self.bank = CentredBank.of(search.distances.bank)
        self.made: set[str] = set()

    def apply(self) -> None:
        """Replace the search's selectors and what follows them."""
        mean = self.constant("mean", self.bank.mean)
        centred = self.node("Sub", [self.search.distances.queries, mean], "centred")
        rows = self.candidates(self.codes(centred))
        self.measure(centred, rows)

    def codes(self, centred: str) -> str:
        """`TILE·s + place` of the row that seems nearest, of each tile: [..., N, tiles]."""
        bank, levels = QuantisedBank.of(self.bank), self.plan.levels
        step, zero = (
            self.constant("step", np.float32(self.plan.step)),
            self.constant("zero", np.int8(0)),
        )
        quantised = self.node("QuantizeLinear", [centred, step, zero], "quantised")
        queries = self.node("DequantizeLinear", [quantised, step, zero], "queries")
        scales = 2 * levels * bank.steps.astype(np.float64)
        norms = levels * bank.norms.astype(np.float64)
        smallest = []
        for number, start in enumerate(range(0, len(bank.rows), TILE)):
            end = min(start + TILE, len(bank.rows))
            named = f"tile{number}"
            weights = [
                self.constant(f"{named}/rows", np.ascontiguousarray(-bank.rows[start:end].T)),
                self.constant(f"{named}/scales", scales[start:end].astype(np.float32)),
                self.constant(f"zeros{end - start}", np.zeros(end - start, np.int8)),
            ]
            offsets = self.constant(f"{named}/norms", norms[start:end].astype(np.float32))
            places = np.arange(end - start, dtype=np.float32)
            weighted = self.node("DequantizeLinear", weights, f"{named}/weights", axis=1)
            product = self.node("MatMul", [queries, weighted], f"{named}/product")
            summed = self.node("Add", [product, offsets], f"{named}/sum")
            steps = self.node("Floor", [summed], f"{named}/steps")
            tens = self.node("Mul", [steps, self.tile], f"{named}/tens")
            ones = self.constant(f"places{end - start}", places)
            code = self.node("Add", [tens, ones], f"{named}/codes")
            smallest.append(self.smallest(code, f"{named}/smallest", keepdims=1))
        return self.node("Concat", smallest, "codes", axis=-1)

    def candidates(self, codes: str) -> str:
        """Rows that the best tiles name, the best first: int64 [..., N, shortlist]."""
        tiles = -(-len(self.bank.rows) // TILE)
        count = min(self.plan.shortlist, tiles)
        if count == 1:
            best = self.smallest(codes, "best", keepdims=1)
            tile = self.node("ArgMin", [codes], "tile", axis=-1, keepdims=1)
        else:
            wanted = self.constant("count", np.array([count]))
            best, tile = f"{self.prefix}/best", f"{self.prefix}/tile"
            name = f"{self.prefix}/shortlist"
            self.graph.node.append(
                helper.make_node("TopK", [codes, wanted], [best, tile], name, axis=-1, largest=0)
            )
        steps = self.node("Floor", [self.node("Div", [best, self.tile], "quotient")], "whole")
        tens = self.node("Mul", [steps, self.tile], "tens")
        place = self.node("Sub", [best, tens], "place")
        start = self.node("Mul", [tile, self.constant("width", np.int64(TILE))], "start")
        row = self.node("Add", [start, self.node("Cast", [place], "number", to=7)], "unbounded")
        # A query much longer than all that were seen has codes that are not exact.
        last = self.constant("last", np.int64(len(self.bank.rows) - 1))
        return self.node("Min", [row, last], "candidates")

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
    def tile(self) -> str:
        """`TILE` as a float."""
        return self.constant("rows_of_a_tile", np.float32(TILE))

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
