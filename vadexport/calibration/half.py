"""float16 with normal images: which layers their values fit, and which of them move scores."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vadexport.calibration.observing import run_graph
from vadexport.contract import ANOMALY_MAP, RAW_SCORE, Call
from vadexport.errors import UnfitError
from vadexport.passes.cutting import cut
from vadexport.passes.half_precision import (
    HalfPlan,
    half_candidates,
    layers_of,
    observed_tensors,
    plan_half,
    to_half,
)
from vadexport.passes.half_rounding import rounded_as_half

#: Layers are ranked in no more groups than this: each costs a graph of its own.
_MOST_GROUPS: Final = 40
#: Images that rank them. What is chosen is held against all.
_RANKING_IMAGES: Final = 4


def halve(
    model: Path,
    destination: Path,
    network_nodes: frozenset[str],
    calls: Sequence[Call],
    allowed: tuple[float, float],
    progress: Callable[[int, int], None],
) -> HalfPlan:
    """Write a form of the ONNX file `model` whose network computes in float16.

    The score head stays in float32, and so does every layer whose values on the given images leave
    too little room in float16. Where scores then move by more than `allowed`, the layers that move
    them most stay in float32 as well: each group of layers is put into float16 alone, on the images
    whose scores move furthest, and as few of the worst are taken back as will do on all images.
    What float16 does to scores is measured on the graph that rounds as float16 storage does
    (`rounded_as_half`). Anomaly maps are held alike.

    To be run in a child process.

    Args:
        model: ONNX file.
        destination: of the float16 ONNX file.
        network_nodes: names of the nodes that may compute in float16.
        calls: of the graph, on normal images.
        allowed: largest move of a raw score in its own units, and of an anomaly map as a fraction
            of the maps' mean range.
        progress: told how much is done, of how much.

    Returns:
        What computes in float16, and what does not although it could.

    Raises:
        UnfitError: no layer of the network can.
    """
    graph = onnx.load(model)
    candidates = half_candidates(graph, network_nodes)
    largest = largest_values(graph, observed_tensors(candidates), calls)
    plan = plan_half(graph, network_nodes, largest)
    if plan.layers == 0:
        raise UnfitError("no layer of this detector's network fits float16: build fp32 targets")
    judge = _Judge.of(graph, calls, allowed)
    moves = list(judge.moves(plan, range(len(calls))))
    if max(moves) <= 1:
        progress(1, 1)
    else:
        # Where it moves furthest is where layers show most, and where a plan fails first.
        order = sorted(range(len(calls)), key=lambda number: -moves[number])
        few = order[: -(-_RANKING_IMAGES // len(calls[0]))]
        groups = _grouped(layers_of(graph, plan))
        alone: list[float] = []
        for number, group in enumerate(groups):
            alone.append(max(judge.moves(HalfPlan(frozenset(group), 0, ()), few)))
            progress(number + 1, len(groups))
        worst = sorted(range(len(groups)), key=lambda number: -alone[number])

        def without(count: int) -> HalfPlan:
            """The plan without the `count` groups that move scores most."""
            reason = "scores would move too far"
            full = {name: reason for number in worst[:count] for name in groups[number]}
            return plan_half(graph, network_nodes, largest, full)

        low, high = 0, len(groups)  # with none taken back it moves too far, with all not at all
        while high - low > 1:
            middle = (low + high) // 2
            held = all(move <= 1 for move in judge.moves(without(middle), order))
            low, high = (low, middle) if held else (middle, high)
        plan = without(high)
        if plan.layers == 0:
            raise UnfitError(
                "no layer of this detector's network can be float16, for scores would move too "
                "far: build fp32 targets"
            )
    onnx.save(to_half(graph, plan), destination)
    return plan


def largest_values(
    model: onnx.ModelProto, names: Sequence[str], calls: Sequence[Call]
) -> dict[str, float]:
    """Largest magnitude of each tensor in any call, found by ONNX Runtime in float32.

    Names of constants are left out. NaN counts as infinity.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [name for name in names if name not in constants]
    watched = cut(model, names)
    graph = watched.graph
    del graph.output[:]
    for number, name in enumerate(names):
        # Reduced inside of the graph: whole tensors of all layers would fill the memory.
        graph.node.append(helper.make_node("Abs", [name], [f"{name}/magnitude"]))
        graph.node.append(
            helper.make_node("ReduceMax", [f"{name}/magnitude"], [f"largest_{number}"], keepdims=0)
        )
        graph.output.append(
            helper.make_tensor_value_info(f"largest_{number}", TensorProto.FLOAT, [])
        )
    found = np.zeros(len(names))
    if names:
        values = np.array(list(run_graph(watched, calls)), np.float64)
        found = np.where(np.isnan(values), np.inf, values).max(axis=0)
    return dict(zip(names, found.tolist(), strict=True))


@dataclass(frozen=True)
class _Judge:
    """Says how far float16 moves raw scores and anomaly maps.

    Attributes:
        graph: in float32.
        calls: of it.
        expected: scores, and maps where there are any, of each call.
        most: how far scores and maps may move.
    """

    graph: onnx.ModelProto
    calls: Sequence[Call]
    expected: Sequence[Sequence[NDArray[np.float64]]]
    most: tuple[float, ...]

    @classmethod
    def of(
        cls, graph: onnx.ModelProto, calls: Sequence[Call], allowed: tuple[float, float]
    ) -> Self:
        """Run the graph; see `halve` for what is allowed."""
        expected = list(_outputs(graph, calls))
        ranges = [np.ptp(maps, axis=(1, 2, 3)) for _, *rest in expected for maps in rest]
        scale = float(np.concatenate(ranges).mean()) if ranges else 0.0
        most = (allowed[0], allowed[1] * (scale or 1.0))
        return cls(graph, calls, expected, most[: len(expected[0])])

    def moves(self, plan: HalfPlan, numbers: Sequence[int]) -> Iterator[float]:
        """For each of the calls, as a share of what is allowed; each is run when it is asked for.

        What is no number counts as infinite.
        """
        rounded = rounded_as_half(to_half(self.graph, plan))
        runs = _outputs(rounded, [self.calls[number] for number in numbers])
        for number, found in zip(numbers, runs, strict=True):
            yield max(
                _share(float(np.abs(one - other).max()), limit)
                for one, other, limit in zip(found, self.expected[number], self.most, strict=True)
            )


def _share(move: float, limit: float) -> float:
    """Of what is allowed; where nothing is, any move is too much."""
    if np.isnan(move):
        return float("inf")
    if limit:
        return move / limit
    return float("inf") if move else 0.0


def _grouped(layers: list[list[str]]) -> list[list[str]]:
    """Neighbouring layers together, where there are too many to judge each."""
    size = -(-len(layers) // _MOST_GROUPS)
    starts = range(0, len(layers), size)
    return [list(chain.from_iterable(layers[start : start + size])) for start in starts]


def _outputs(model: onnx.ModelProto, calls: Sequence[Call]) -> Iterator[list[NDArray[np.float64]]]:
    """Raw scores of each call, and its maps where there are any, by ONNX Runtime."""
    there = {output.name for output in model.graph.output}
    names = [name for name in (RAW_SCORE, ANOMALY_MAP) if name in there]
    for found in run_graph(model, calls, names):
        yield [values.astype(np.float64) for values in found]
