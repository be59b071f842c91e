"""`auto` on processors: of the forms of a network whose scores hold, the fastest."""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Final

from vadexport.backends.base import RunnerOpener
from vadexport.backends.child import Child
from vadexport.backends.registry import opener
from vadexport.building.climbing import Graph
from vadexport.building.clocking import speedups
from vadexport.building.integers import SHARE_OF_LIMITS, Integers, folder_of, form_of
from vadexport.building.narrow_head import fast_bfloat16
from vadexport.calibration.bfloat16 import write_bfloat16
from vadexport.calibration.search import FloatType, Frontier, Order, Point, grouped, search
from vadexport.targets import AUTO, Target
from vadexport.verification.limits import Limits
from vadexport.verification.proxy import GRAPH_FILE
from vadexport.verification.statistics import Interval

#: A form that is not faster than this, by the lower end of the interval, is not worth its drift.
_LEAST_SPEEDUP: Final = 1.02
#: Points of the frontier that are timed between all INT8 and the first that holds.
_TIMED_BETWEEN: Final = 2
_TIMED_CALLS: Final = 4
#: Of them, those that are tried of each form whose other layers are INT8.
_MOST_FRONTS: Final = 2
#: Groups from the front that are float32 where the others are bfloat16: what is tried in turn. What
#: rounding adds to the first tensors goes through all layers behind them.
_FULL_GROUPS: Final = (0, 2, 4, 8)
_CHILD_TIMEOUT_S: Final = 1800
_FLOAT: Final = "float32"


@dataclass(frozen=True)
class _Candidate:
    """A form of the network.

    Attributes:
        point: what it is, and does to scores.
        path: ONNX file that is compiled; None where it is not timed.
        proof: the same as far as ONNX Runtime can run it.
    """

    point: Point
    path: Path | None = None
    proof: Path | None = None


@dataclass
class Mixing:
    """The forms of a network for one target.

    Attributes:
        integers: of the build.
        target: of `auto`, on a processor.
    """

    integers: Integers
    target: Target
    _ends: float = field(default=math.inf, init=False)

    def graph(self, minutes: float) -> Graph:
        """The fastest form whose scores hold; the float graph, where none is faster.

        Args:
            minutes: that the search may take: for INT8 layers, then for forms in bfloat16.
        """
        self._ends = time.monotonic() + 60 * minutes
        found = self._searched(minutes)
        record = self._record(found, {})
        reason = "no layer of its network can be INT8 within the limits"
        if not found.finished:
            reason = "the search found no INT8 layers in time (--search-minutes)"
        for searched in self.integers.searches(self.target):
            candidates = self._candidates(found, searched=searched)
            numbers = [n for n, one in enumerate(candidates) if one.path and one.point.holds]
            if not numbers:
                continue
            gains, floor = self._timed(candidates)
            points = tuple(one.point for one in candidates)
            record = {**self._record(replace(found, points=points), gains), "floor": floor}
            # By what each is certain of, not by what it seems to be.
            order = sorted(numbers, key=lambda number: -gains[number].low)
            worth = [number for number in order if gains[number].low / floor >= _LEAST_SPEEDUP]
            if not worth:
                best = gains[order[0]]
                against = f", divided by the A/A floor {floor:.3f}" if floor > 1 else ""
                reason = (
                    f"{self._words(points[order[0]])} would be {best.value:.2f} times as fast, 95% "
                    f"interval from {best.low:.2f}{against}, where {_LEAST_SPEEDUP} is the least"
                )
                break
            for chosen in worth:
                made = self._made(candidates[chosen], searched=searched)
                if made.rungs[-1].held:
                    whole = f", all INT8 would be {gains[0].value:.2f}" if found.points else ""
                    self._note(points[chosen], gains[chosen], whole)
                    shipped = _shipped(points[chosen], len(self.integers.plan.layers))
                    return replace(made, search={**record, "shipped": shipped, "chosen": chosen})
                reason = f"{self._words(points[chosen])} does not hold the limits"
        self.integers.notes.append(f"{self.target}: {_FLOAT}, for {reason}")
        base = self.integers.base
        return replace(base, search={**record, "shipped": "fp32", "chosen": None})

    def _note(self, point: Point, gain: Interval, whole: str) -> None:
        """Note what is shipped, and what it gains; `whole` says what all INT8 would."""
        self.integers.notes.append(
            f"{self.target}: {self._words(point)}; {gain.value:.2f} times as fast as {_FLOAT} "
            f"({gain.low:.2f}–{gain.high:.2f}){whole}"
        )

    def _made(self, candidate: _Candidate, *, searched: bool) -> Graph:
        integers = self.integers
        if candidate.path is None:
            raise ValueError("what was not timed is not built")
        rungs, rung = integers.base.rungs, None
        if candidate.proof not in (None, integers.base.path):
            rung = integers.climber.climb_graph("quantised", candidate.proof.parent, AUTO)
            rungs = (*rungs, rung)
        network = _network(candidate.point, len(integers.plan.layers))
        precision = integers.precision(self.target, network, rung, searched=searched)
        search_pass = integers.search_pass(searched=searched)
        return Graph(
            candidate.path, rungs, precision, proof=candidate.proof, search_pass=search_pass
        )

    # ------------------------------------------------------------------ forms
    def _candidates(self, found: Frontier, *, searched: bool) -> list[_Candidate]:
        """The points of the search, and forms that it does not know."""
        timed = _timed_points(found)
        known = []
        for number, point in enumerate(found.points):
            path = self._int8(point, searched=searched) if number in timed else None
            made = path and self.integers.head.written(path, self.target)
            known.append(_Candidate(point, made, path))
        return [*known, *self._float_forms(found, searched=searched)]

    def _float_forms(self, found: Frontier, *, searched: bool) -> Iterator[_Candidate]:
        """The network in float, and what goes back to float in bfloat16, as they are judged."""
        base = self.integers.in_float(searched=searched)
        if searched or self.integers.head.products(self.target):
            yield self._judged("front", len(found.groups), self._layers, base, "fp32")
        if self._bfloat16:
            yield from self._narrow_forms(found, base, searched=searched)

    @property
    def _layers(self) -> tuple[str, ...]:
        return tuple(layer.node for layer in self.integers.plan.layers)

    def _narrow_forms(self, found: Frontier, base: Path, *, searched: bool) -> Iterator[_Candidate]:
        """The network in bfloat16, then what goes back to float in it, while time lasts."""
        layers = self._layers
        groups = grouped(layers)
        fronts = [
            tuple(chain.from_iterable(groups[:count]))
            for count in _FULL_GROUPS
            if count < len(groups)
        ]
        while fronts:
            if not self._in_time():
                return
            whole = self._judged("front", len(groups), layers, base, "bf16", fronts[0])
            yield whole
            if whole.point.holds:
                break
            del fronts[0]
        for point in [found.points[number] for number in found.holding]:
            path = self._int8(point, searched=searched)
            for front in fronts[:_MOST_FRONTS]:
                kept = point.float_layers
                full = tuple(name for name in kept if name in front)
                if len(full) == len(kept):
                    break  # nothing is left for bfloat16
                if not self._in_time():
                    return
                mixed = self._judged(point.order, point.float_groups, kept, path, "bf16", full)
                yield mixed
                if mixed.point.holds:
                    break

    def _int8(self, point: Point, *, searched: bool) -> Path:
        """ONNX file of a form with some layers in INT8, the others in float32."""
        form = form_of(self.target)
        name = f"{folder_of('mixed', form)}-{point.order}-{point.float_groups}"
        return self.integers.written(name, form, frozenset(point.float_layers), searched=searched)

    def _judged(
        self,
        order: Order,
        count: int,
        kept: tuple[str, ...],
        proof: Path,
        float_type: FloatType,
        full: tuple[str, ...] = (),
    ) -> _Candidate:
        """A form, judged as the backend runs it; it is only timed if it holds."""
        integers, head = self.integers, self.integers.head
        path = head.written(proof, self.target) if float_type == "fp32" else proof
        if float_type == "bf16":
            name = f"{proof.parent.name}-bf16-{len(full)}"
            path = proof.parent.with_name(name) / GRAPH_FILE
            if not path.exists():
                path.parent.mkdir()
                narrow = head.products(self.target)
                nodes = integers.network_nodes.difference(full).union(narrow)
                correcting = integers.correcting_calls
                with Child("weights in bfloat16", timeout_s=_CHILD_TIMEOUT_S) as child:
                    child.run(write_bfloat16, proof, nodes, correcting, path)
        judged = integers.judged(path, self.target)
        holds = judged.holds(integers.bounds)
        point = Point(order, count, kept, judged, holds, float_type, full)
        return _Candidate(point, path if holds else None, proof)

    def _in_time(self) -> bool:
        """Whether there is time left for a form in bfloat16; a note says once that there is not."""
        if time.monotonic() < self._ends:
            return True
        note = f"{self.target}: not all forms in bfloat16 were tried in time (--search-minutes)"
        if note not in self.integers.notes:
            self.integers.notes.append(note)
        return False

    @cached_property
    def _bfloat16(self) -> bool:
        """Whether bfloat16 is worth a try: with OpenVINO, on a processor that is fast at it."""
        return self.target.backend == "openvino" and fast_bfloat16()

    # ------------------------------------------------------------------ search
    def _searched(self, minutes: float) -> Frontier:
        integers = self.integers
        plan = integers.plan
        with Child("search", timeout_s=_CHILD_TIMEOUT_S) as child:
            return child.run(
                search,
                integers.equalised,
                plan,
                integers.network_nodes,
                form_of(self.target),
                (*integers.judging_calls, integers.correcting_calls),
                integers.bounds,
                (60 * minutes, _memory_folder()),
                progress=lambda done, total: integers.listener.step(
                    f"search {self.target}", done, total
                ),
            )

    # ------------------------------------------------------------------ timing
    def _timed(self, candidates: Sequence[_Candidate]) -> tuple[dict[int, Interval], float]:
        """Speed-up of each that has a file over the float graph, by its number; the A/A floor."""
        integers, target = self.integers, self.target

        def opened(path: Path) -> RunnerOpener:
            return opener(target, integers.compiled(path, target), integers.climber.threads)

        return speedups(
            opened(integers.base.path),
            {n: opened(one.path) for n, one in enumerate(candidates) if one.path is not None},
            integers.calls(integers.checks)[:_TIMED_CALLS],
            _LEAST_SPEEDUP,
            lambda done, total: integers.listener.step(f"time {target}", done, total),
        )

    # ------------------------------------------------------------------ words
    def _record(self, found: Frontier, gains: Mapping[int, Interval]) -> dict[str, Any]:
        """What the report holds of a search."""
        points = [
            {
                **point,
                "speedup": {"value": gain.value, "low": gain.low, "high": gain.high}
                if (gain := gains.get(number))
                else None,
            }
            for number, point in enumerate(found.to_json()["points"])
        ]
        limits = Limits.of_precision(AUTO)
        return {
            **found.to_json(),
            "points": points,
            "layers": len(self.integers.plan.layers),
            "drift_unit": self.integers.climber.unit.value,
            "limits": {
                "drift": limits.max_drift,
                "maps": limits.max_map_drift,
                "spearman": limits.min_spearman,
            },
            "share": SHARE_OF_LIMITS,
        }

    def _words(self, point: Point) -> str:
        """A form, for a note."""
        layers, kept = len(self.integers.plan.layers), len(point.float_layers)
        narrow, full = point.float_type == "bf16", len(point.full_layers)
        if kept == layers:
            rest = f" but for {full} of {layers} layers" if full else ""
            return f"the network in bfloat16{rest}" if narrow else "the score head alone"
        rest = f" but for {kept} of {layers} layers" if kept else ""
        also = f", {full} of them in float32" if full else ""
        return f"INT8{rest}{' in bfloat16' if narrow else ''}{also}"


def _timed_points(found: Frontier) -> set[int]:
    """Numbers of the points that are timed: all INT8, those that hold, and some on the way."""
    if not found.points:
        return set()
    last = found.holding[0] if found.holding else 0
    between = {round(last * step / (_TIMED_BETWEEN + 1)) for step in range(1, _TIMED_BETWEEN + 1)}
    return {0, *found.holding, *between}


def _shipped(point: Point, layers: int) -> str:
    """The lowest precision of the network's layers."""
    return point.float_type if len(point.float_layers) == layers else "int8"


def _network(point: Point, layers: int) -> str:
    """Precision of the network, for the manifest."""
    kept, full = len(point.float_layers), len(point.full_layers)
    if point.float_type == "fp32":
        full = kept
    counts = {"int8": layers - kept, "bf16": kept - full, "fp32": full}
    (first, count), *rest = [(name, count) for name, count in counts.items() if count]
    if not rest:
        return first
    others = "".join(f", {count} {name}" for name, count in rest)
    return f"{first}, {count} of {layers} layers{others}"


def _memory_folder() -> Path:
    """Where what was searched is kept: the user's folder for what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vadexport" / "search"
