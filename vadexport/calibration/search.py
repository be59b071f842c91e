"""Which layers stay in float: a search in the unit that matters, what INT8 does to scores.

No rule says which few layers of a network cost the scores: the first ones of one, the last of
another. So each group of layers is put into INT8 alone and judged by how far scores move; then
groups go back to float, the costliest first, until scores hold.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport import __version__
from vadexport.calibration.observing import run_graph
from vadexport.calibration.qdq import Form, Plan, quantised
from vadexport.contract import ANOMALY_MAP, RAW_SCORE, Call
from vadexport.errors import InputError
from vadexport.files import written_text

#: Layers are judged in no more groups than this, each of neighbours.
MOST_GROUPS: Final = 32


@dataclass(frozen=True)
class Bounds:
    """What of the images judged must hold for the search to stop.

    Attributes:
        drift: largest drift of a normal image, in raw score units.
        maps: largest difference of a map, as a fraction of the maps' mean range.
        spearman: least rank correlation of all raw scores with those of the float graph.
        threshold: decisions that lie on its other side are flips, of which none may be; None where
            the detector makes none.
    """

    drift: float
    maps: float
    spearman: float
    threshold: float | None


@dataclass(frozen=True)
class Judged:
    """Scores of a form against those of the float graph.

    Attributes:
        drift: largest, of normal images, in raw score units.
        rms: of all images, likewise.
        spearman: rank correlation of all raw scores.
        flips: decisions that changed.
        maps: largest difference of a map, as a fraction of the maps' mean range.
    """

    drift: float
    rms: float
    spearman: float
    flips: int
    maps: float

    def holds(self, bounds: Bounds) -> bool:
        """Whether nothing is beyond its bound; NaN never holds."""
        return (
            self.drift <= bounds.drift
            and self.spearman >= bounds.spearman
            and self.maps <= bounds.maps
            and not self.flips
        )


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
    """A form on the frontier.

    Attributes:
        float_groups: how many of the costliest groups are in float.
        judged: what it does to scores.
    """

    float_groups: int
    judged: Judged


@dataclass(frozen=True)
class Frontier:
    """What a search found.

    Attributes:
        groups: the costliest first.
        points: from all INT8 on.
        chosen: groups in float with which scores hold; None where none was found but all.
        finished: whether there was time enough.
        images: normal ones, and ones with planted defects, that were judged.
    """

    groups: tuple[Group, ...]
    points: tuple[Point, ...]
    chosen: int | None
    finished: bool
    images: tuple[int, int]

    def float_nodes(self, groups: int) -> frozenset[str]:
        """Names of the layers that are in float at a point."""
        return frozenset(chain.from_iterable(group.layers for group in self.groups[:groups]))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def search(  # noqa: PLR0913, PLR0917 - a call into a child process, which takes plain values
    graph: Path,
    plan: Plan,
    network_nodes: frozenset[str],
    form: Form,
    calls: tuple[Sequence[Call], int],
    bounds: Bounds,
    limits: tuple[float, Path],
    progress: Callable[[int, int], None],
) -> Frontier:
    """Find the fewest layers that must stay in float. To be run in a child process.

    What was judged is kept in a file named after all that it hangs on, so that a search that was
    killed goes on where it was, and one that is repeated takes no time.

    Args:
        graph: ONNX file that the plan is for.
        plan: of its INT8 form.
        network_nodes: names of the network's nodes.
        form: that is judged, by ONNX Runtime.
        calls: on images that calibrated nothing, and how many of them are of normal images; they
            come first, the others have planted defects.
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
    finished = True

    def judged(float_nodes: frozenset[str]) -> Judged | None:
        """None where there is no time left."""
        key = hashlib.sha256("\n".join(sorted(float_nodes)).encode()).hexdigest()[:16]
        known = memory.get(key)
        if known is None and time.monotonic() < ends:
            known = judge.judge(float_nodes)
            memory.put(key, known)
        return known

    points: list[Point] = []
    whole = judged(frozenset())
    if whole is not None:
        points.append(Point(0, whole))
        if whole.holds(bounds):
            found = tuple(Group(tuple(group), None) for group in groups)
            return Frontier(found, tuple(points), 0, True, judge.images)  # noqa: FBT003
    costs: list[Judged | None] = []
    for number, group in enumerate(groups):
        costs.append(judged(every - frozenset(group)))
        progress(number + 1, 2 * len(groups))
    order = sorted(range(len(groups)), key=lambda number: -_weight(costs[number]))
    ranked = tuple(Group(tuple(groups[number]), costs[number]) for number in order)
    chosen = None
    for count in range(1, len(ranked)):
        nodes = frozenset(chain.from_iterable(group.layers for group in ranked[:count]))
        one = judged(nodes)
        progress(len(groups) + count, 2 * len(groups))
        if one is None:
            finished = False
            break
        points.append(Point(count, one))
        if one.holds(bounds):
            chosen = count
            break
    progress(2 * len(groups), 2 * len(groups))
    finished = finished and None not in costs
    return Frontier(ranked, tuple(points), chosen, finished, judge.images)


def grouped(layers: Sequence[str]) -> list[list[str]]:
    """Neighbours together, as evenly as can be, in no more than `MOST_GROUPS` groups."""
    count = min(MOST_GROUPS, len(layers))
    edges = [round(number * len(layers) / count) for number in range(count + 1)]
    return [list(layers[low:high]) for low, high in pairwise(edges)]


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's, 1 where either has no order."""
    from scipy.stats import rankdata

    ranks = [rankdata(each) for each in (one, other)]
    spread = [each - each.mean() for each in ranks]
    size = float(np.sqrt((spread[0] ** 2).sum() * (spread[1] ** 2).sum()))
    return float((spread[0] * spread[1]).sum()) / size if size else 1.0


class _Judge:
    """Runs forms of a graph, and holds them against the graph."""

    def __init__(
        self,
        model: onnx.ModelProto,
        plan: Plan,
        network_nodes: frozenset[str],
        form: Form,
        calls: tuple[Sequence[Call], int],
        bounds: Bounds,
    ) -> None:
        self._model, self._plan, self._network = model, plan, network_nodes
        self._form, self._calls, self._bounds = form, calls[0], bounds
        there = {output.name for output in model.graph.output}
        self._names = [name for name in (RAW_SCORE, ANOMALY_MAP) if name in there]
        self._expected = self._run(model)
        counts = [len(call) for call in self._calls]  # of another size where it is left open
        self.images = (sum(counts[: calls[1]]), sum(counts[calls[1] :]))

    def digest(self, graph: Path) -> str:
        """Of all that figures hang on."""
        found = hashlib.sha256(graph.read_bytes())
        which = (__version__, self._form, self._bounds, self.images, sorted(self._network))
        found.update(repr(which).encode())
        for name, reach in sorted(self._plan.reach.items()):
            found.update(f"{name} {reach!r}".encode())
        for name, weight in sorted(self._plan.weights.items()):
            found.update(name.encode() + weight.values.tobytes() + weight.scales.tobytes())
        for name, shift in sorted(self._plan.shifts.items()):
            found.update(name.encode() + shift.tobytes())
        for call in self._calls:
            found.update(call.tobytes())
        return found.hexdigest()[:32]

    def judge(self, float_nodes: frozenset[str]) -> Judged:
        """Of the form whose other layers are INT8."""
        made = quantised(self._model, self._plan, self._network, self._form, float_nodes)
        found = self._run(made)
        expected, scores = self._expected[RAW_SCORE], found[RAW_SCORE]
        normal = self.images[0]
        maps = 0.0
        if ANOMALY_MAP in found:
            usual = np.ptp(self._expected[ANOMALY_MAP], axis=(1, 2, 3)).mean() or 1.0
            apart = np.abs(found[ANOMALY_MAP] - self._expected[ANOMALY_MAP])
            maps = float(apart.max() / usual)
        threshold = self._bounds.threshold
        flips = 0
        if threshold is not None:
            flips = int(np.count_nonzero((scores > threshold) != (expected > threshold)))
        return Judged(
            drift=float(np.abs(scores - expected)[:normal].max()),
            rms=float(np.sqrt(np.square(scores - expected).mean())),
            spearman=rank_correlation(scores, expected),
            flips=flips,
            maps=maps,
        )

    def _run(self, model: onnx.ModelProto) -> dict[str, NDArray[np.float64]]:
        found = zip(*run_graph(model, self._calls, self._names), strict=True)
        return {
            name: np.concatenate(values).astype(np.float64)
            for name, values in zip(self._names, found, strict=True)
        }


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
