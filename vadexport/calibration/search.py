"""Which layers stay in float: a search in the unit that matters, what INT8 does to scores.

No rule says which few layers of a network cost the scores: the first ones of one, the last of
another. Groups of layers go back to float until scores hold, in two orders: from the front, which
leaves one seam between float and INT8, not many, and the costliest first, which takes the fewest;
for that order each group is put into INT8 alone and judged by how far scores move. Which of the two
is faster is for a clock to say. In each order the fewest that hold are found by bisection: five
forms of 32 are judged, not up to 31, and the first order is done before the groups are judged.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx

from vadexport import __version__
from vadexport.calibration.judging import Bounds, Judged, Judging, scored
from vadexport.calibration.observing import run_graph
from vadexport.calibration.qdq import Form, Plan
from vadexport.calibration.repair import Corrector
from vadexport.contract import Call
from vadexport.errors import InputError
from vadexport.files import written_text

#: Layers are judged in no more groups than this, each of neighbours.
MOST_GROUPS: Final = 32
#: Of judging; another one makes what was kept void.
_WAY: Final = 5

Order = Literal["cost", "front"]
FloatType = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Group:
    """Neighbouring layers.

    Attributes:
        layers: names of their nodes.
        cost: what they do to scores when they alone are INT8; None where there was no time.
    """

    layers: tuple[str, ...]
    cost: Judged | None


@dataclass(frozen=True)
class Point:
    """A form of the network.

    Attributes:
        order: in which groups went back to float: `cost` or `front`.
        float_groups: how many did.
        float_layers: names of their nodes.
        judged: what it does to scores.
        holds: whether it is within the bounds.
        float_type: what all but INT8 layers of the network compute in.
        full_layers: those of them that are float32 though `float_type` is bfloat16.
    """

    order: Order
    float_groups: int
    float_layers: tuple[str, ...]
    judged: Judged
    holds: bool
    float_type: FloatType = "fp32"
    full_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frontier:
    """What a search found.

    Attributes:
        groups: the costliest first.
        points: all INT8, then of each order those judged, up to the fewest groups in float whose
            scores hold; then forms of other kinds.
        finished: whether there was time enough.
        images: normal ones, and ones with planted defects, that were judged.
    """

    groups: tuple[Group, ...]
    points: tuple[Point, ...]
    finished: bool
    images: tuple[int, int]

    @property
    def holding(self) -> tuple[int, ...]:
        """Numbers of the points that hold, of a search one in each order at most."""
        return tuple(number for number, point in enumerate(self.points) if point.holds)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def search(  # noqa: PLR0913, PLR0917 - a call into a child process, which takes plain values
    graph: Path,
    plan: Plan,
    network_nodes: frozenset[str],
    form: Form,
    calls: tuple[Sequence[Call], int, Sequence[Call]],
    bounds: Bounds,
    limits: tuple[float, Path],
    progress: Callable[[int, int], None],
) -> Frontier:
    """Find few layers that must stay in float. To be run in a child process.

    What was judged is kept in a file named after all that it hangs on, so that a search that was
    killed goes on where it was, and one that is repeated takes no time.

    Args:
        graph: ONNX file that the plan is for.
        plan: of its INT8 form.
        network_nodes: names of the network's nodes.
        form: that is judged, by ONNX Runtime.
        calls: on images that calibrated nothing; how many of them are of normal images, which come
            first, the others have planted defects; and some that calibrated, for corrections.
        bounds: of what is held.
        limits: seconds that the search may take, and the folder that keeps what was judged.
        progress: told how many groups were judged, of how many.
    """
    seconds, folder = limits
    ends = time.monotonic() + seconds
    model = onnx.load(graph)
    judge = _Judge(model, plan, network_nodes, form, calls, bounds)
    memory = _Memory(folder / f"{judge.digest(graph)}.json")
    groups = grouped([layer.node for layer in plan.layers])
    every = frozenset(chain.from_iterable(groups))

    def judged(float_nodes: frozenset[str]) -> Judged | None:
        """None where there is no time left."""
        key = hashlib.sha256("\n".join(sorted(float_nodes)).encode()).hexdigest()[:16]
        known = memory.get(key)
        if known is None and time.monotonic() < ends:
            known = judge.judge(float_nodes)
            memory.put(key, known)
        return known

    def points_of(order: Order, path: Sequence[Sequence[str]]) -> tuple[list[Point], bool]:
        """Points up to the fewest groups in float that hold, and whether there was time enough."""
        found: dict[int, Point] = {}
        fail, hold = 0, len(path)  # all in INT8 did not, and all in float need no search
        while hold - fail > 1:
            count = (fail + hold) // 2
            layers = tuple(chain.from_iterable(path[:count]))
            one = judged(frozenset(layers))
            if one is None:
                break
            found[count] = Point(order, count, layers, one, one.holds(bounds))
            fail, hold = (fail, count) if found[count].holds else (count, hold)
        return [found[count] for count in sorted(found) if count <= hold], hold - fail == 1

    whole = judged(frozenset())
    unjudged = tuple(Group(tuple(group), None) for group in groups)
    if whole is None:
        return Frontier(unjudged, (), finished=False, images=judge.images)
    first = Point("cost", 0, (), whole, whole.holds(bounds))
    if first.holds:
        return Frontier(unjudged, (first,), finished=True, images=judge.images)
    front, finished = points_of("front", groups)
    costs: list[Judged | None] = []
    for number, group in enumerate(groups):
        costs.append(judged(every - frozenset(group)))
        progress(number + 1, len(groups) + 1)
    order = sorted(range(len(groups)), key=lambda number: -_weight(costs[number]))
    ranked = tuple(Group(tuple(groups[number]), costs[number]) for number in order)
    known = None not in costs
    costliest, also = points_of("cost", [g.layers for g in ranked]) if known else ([], False)
    progress(len(groups) + 1, len(groups) + 1)
    return Frontier(
        ranked,
        (first, *costliest, *front),
        finished=finished and also,
        images=judge.images,
    )


def grouped(layers: Sequence[str]) -> list[list[str]]:
    """Neighbours together, as evenly as can be, in no more than `MOST_GROUPS` groups."""
    count = min(MOST_GROUPS, len(layers))
    edges = [round(number * len(layers) / count) for number in range(count + 1)]
    return [list(layers[low:high]) for low, high in pairwise(edges)]


class _Judge:
    """Runs forms of a graph, and holds them against the graph."""

    def __init__(
        self,
        model: onnx.ModelProto,
        plan: Plan,
        network_nodes: frozenset[str],
        form: Form,
        calls: tuple[Sequence[Call], int, Sequence[Call]],
        bounds: Bounds,
    ) -> None:
        self._plan, self._network = plan, network_nodes
        self._form, self._calls, self._bounds = form, calls[0], bounds
        self._correcting = calls[2]
        self._corrector = Corrector(model, plan, network_nodes, calls[2])
        # Against the graph that the plan is for: what equalising it moved is not INT8's.
        self._judging = Judging(calls[0], calls[1], scored(model, calls[0]))
        self.images = self._judging.images

    def digest(self, graph: Path) -> str:
        """Of all that figures hang on."""
        found = hashlib.sha256(graph.read_bytes())
        which = (__version__, _WAY, self._form, self._bounds, self.images, sorted(self._network))
        found.update(repr(which).encode())
        for name, reach in sorted(self._plan.reach.items()):
            found.update(f"{name} {reach!r}".encode())
        for name, weight in sorted(self._plan.weights.items()):
            found.update(name.encode() + weight.values.tobytes() + weight.scales.tobytes())
        for name, shift in sorted(self._plan.shifts.items()):
            found.update(name.encode() + shift.tobytes())
        for call in (*self._calls, *self._correcting):
            found.update(call.tobytes())
        return found.hexdigest()[:32]

    def judge(self, float_nodes: frozenset[str]) -> Judged:
        """Of the form whose other layers are INT8."""
        names = list(self._judging.expected)
        made = self._corrector.form(self._form, float_nodes)
        outputs = run_graph(made, self._calls, names)
        named = (dict(zip(names, values, strict=True)) for values in outputs)
        return self._judging.compared(named, self._bounds.threshold)


class _Memory:
    """What was judged, in a file that is whole at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            self._known = {key: asdict(_judged(value)) for key, value in stored.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass  # nothing was kept, or something else: it is judged again

    def get(self, key: str) -> Judged | None:
        found = self._known.get(key)
        return None if found is None else Judged(**found)

    def put(self, key: str, judged: Judged) -> None:
        self._known[key] = asdict(judged)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with written_text(self._path) as file:
                file.write(json.dumps(self._known))
        except (OSError, InputError):
            pass  # a full disk costs the memory, not the search


def _judged(stored: dict[str, Any]) -> Judged:
    """Raises KeyError, TypeError or ValueError where a value is missing or none."""
    drift, rms, spearman, maps = (float(stored[n]) for n in ("drift", "rms", "spearman", "maps"))
    return Judged(drift, rms, spearman, int(stored["flips"]), maps)


def _weight(cost: Judged | None) -> float:
    """What was not judged goes back to float first, and what is not finite."""
    if cost is None or not np.isfinite(cost.rms):
        return float("inf")
    return cost.rms
