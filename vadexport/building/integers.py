"""INT8 in a build: one plan for all targets, its forms, and layers that a search keeps in float."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from vadexport.backends.child import Child
from vadexport.backends.registry import get_backend, opener
from vadexport.building.bank_search import FLOAT_HEAD, INT8_SEARCH, BankSearch
from vadexport.building.climbing import Climber, Graph
from vadexport.calibration import Plan, plan_int8
from vadexport.calibration.qdq import Form
from vadexport.calibration.repair import write_form
from vadexport.calibration.search import Bounds, Frontier, search
from vadexport.calibration.synthetic_defects import planted
from vadexport.contract import Call, ImageArray, ImageInput
from vadexport.images import ImageFile, load_images
from vadexport.listening import Listener
from vadexport.targets import AUTO, Target
from vadexport.thresholds import Thresholds
from vadexport.verification.contest import Contest
from vadexport.verification.ladder import Rung
from vadexport.verification.latency import speedup
from vadexport.verification.limits import Limits
from vadexport.verification.proxy import GRAPH_FILE
from vadexport.verification.statistics import Interval

#: Of the limits of `auto`, what a search may use up on the few images that it has.
_SHARE: Final = 0.5
#: Planted defects of each check image.
_PLANTED: Final = 2
#: Calibration images that biases are corrected by, at most.
_CORRECTING: Final = 16
#: INT8 that is not faster than this, by the lower end of the interval, is not worth its drift.
_LEAST_SPEEDUP: Final = 1.02
_ROUNDS: Final = 40
#: Points of the frontier that are timed between all INT8 and the first that holds.
_TIMED_BETWEEN: Final = 2
_TIMED_CALLS: Final = 4
_CHILD_TIMEOUT_S: Final = 1800
_FORMS: Final[dict[str, Form]] = {
    "openvino": Form(signed=False),
    "onnxruntime": Form(signed=False, sums=True),
}
_FLOAT: Final = "float32"


def form_of(target: Target) -> Form:
    """How a target's backend runs INT8 best; GPUs take what TensorRT does."""
    return Form() if target.on_gpu else _FORMS[target.backend]


@dataclass
class Integers:
    """INT8 graphs of one build.

    Attributes:
        base: the float graph.
        network_nodes: names of its nodes that may be quantised.
        calibration: images that set ranges.
        checks: normal images that judge, `[n, H, W, C]`.
        image_input: of the graph.
        thresholds: of the detector; None where it makes no decisions.
        climber: checks what comes of it.
        work: folder of the build's steps.
        listener: told of progress.
        notes: what else the user should know, added to.
        bank: the search of the detector's memory bank; None where it has no large one.
    """

    base: Graph
    network_nodes: frozenset[str]
    calibration: tuple[ImageFile, ...]
    checks: ImageArray
    image_input: ImageInput
    thresholds: Thresholds | None
    climber: Climber
    work: Path
    listener: Listener
    notes: list[str]
    bank: BankSearch | None = None

    @cached_property
    def _plan(self) -> Plan:
        """Ranges and integers, which all forms share."""
        with Child("INT8 calibration", timeout_s=_CHILD_TIMEOUT_S) as child:
            plan = child.run(
                plan_int8,
                self.bank.path if self.bank else self.base.path,
                self._planned,
                self.network_nodes,
                self.calibration,
                self.image_input,
                progress=lambda done, total: self.listener.step("calibrate", done, total),
            )
        rest = "" if self.bank else "; the score head stays float32"
        self.notes.append(f"INT8: {len(plan.layers)} layers of the network{rest}")
        if self.bank:
            onnx.save(self.bank.written(onnx.load(self._planned), int8=False), self._equalised)
        return plan

    @property
    def _planned(self) -> Path:
        """The graph that the plan is for, before the search of a bank is written."""
        return self._equalised.with_name("before-search.onnx") if self.bank else self._equalised

    @property
    def _equalised(self) -> Path:
        """The graph that the plan is for."""
        folder = self.work / "equalised"
        folder.mkdir(exist_ok=True)
        return folder / GRAPH_FILE

    @cached_property
    def _searching(self) -> Path:
        """The graph that the plan is for, with its memory bank searched in INT8."""
        path = self._equalised.with_name("searching.onnx")
        if self.bank:
            onnx.save(self.bank.written(onnx.load(self._planned), int8=True), path)
        return path

    def graph(self, target: Target) -> Graph:
        """All layers in INT8, in the form that the target's backend runs best.

        Raises:
            InputError: an image or the network cannot be calibrated with.
            UnfitError: there is nothing to quantise.
            BackendError: calibration failed.
        """
        form = form_of(target)
        for searched in self._searches(target):
            path = self._written(_folder("quantised", form), form, frozenset(), searched=searched)
            rung = self.climber.climb_graph("quantised", path.parent, "int8")
            if rung.held:
                break
        return self._int8(target, path, rung, "int8", searched=searched)

    def _searches(self, target: Target) -> tuple[bool, ...]:
        """Whether a memory bank is searched in INT8: what is tried until scores hold."""
        return self.bank.forms(target) if self.bank else (False,)

    def _int8(
        self, target: Target, path: Path, rung: Rung, network: str, *, searched: bool
    ) -> Graph:
        if self.bank and rung.held and searched != self._searches(target)[0]:
            self.bank.given_up(target)
        precision = {"network": network, "score head": INT8_SEARCH if searched else FLOAT_HEAD}
        return Graph(path, (*self.base.rungs, rung), precision)

    def mixed(self, target: Target, minutes: float) -> Graph:
        """Layers in INT8 as far as scores hold and it is faster; else the float graph."""
        found = self._searched(form_of(target), target, minutes)
        if not found.holding:
            reason = "no layer of its network can be INT8 within the limits"
            if not found.finished:
                reason = "the search found no INT8 layers in time (--search-minutes)"
            return self._in_float(target, reason, self._record(found, {}))
        for searched in self._searches(target):
            made = self._fastest(target, found, searched=searched)
            if made.rungs == self.base.rungs or made.rungs[-1].held:
                break
        return made

    def _fastest(self, target: Target, found: Frontier, *, searched: bool) -> Graph:
        """Of the points that hold the fastest, if it is faster than the float graph."""
        form = form_of(target)
        paths = {}
        for number in _timed_points(found):
            kept_float = frozenset(found.points[number].float_layers)
            name = f"{_folder('mixed', form)}-{number}"
            paths[number] = self._written(name, form, kept_float, searched=searched)
        gains, floor = self._timed(target, paths)
        record = self._record(found, gains)
        chosen = max(found.holding, key=lambda number: gains[number].value)
        gain = gains[chosen]
        if gain.low / floor < _LEAST_SPEEDUP:
            against = f", divided by the A/A floor {floor:.3f}" if floor > 1 else ""
            reason = (
                f"INT8 would be {gain.value:.2f} times as fast, 95% interval from {gain.low:.2f}"
                f"{against}, where {_LEAST_SPEEDUP} is the least"
            )
            return self._in_float(target, reason, record)
        layers, kept = len(self._plan.layers), len(found.points[chosen].float_layers)
        words = f"int8, {layers - kept} of {layers} layers" if kept else "int8"
        self.notes.append(
            f"{target}: INT8 but for {kept} of {layers} layers; {gain.value:.2f} times as fast as "
            f"{_FLOAT} ({gain.low:.2f}–{gain.high:.2f}), all INT8 would be {gains[0].value:.2f}"
        )
        rung = self.climber.climb_graph("quantised", paths[chosen].parent, AUTO)
        shipped = {**record, "shipped": "int8", "chosen": chosen}
        made = self._int8(target, paths[chosen], rung, words, searched=searched)
        return replace(made, search=shipped)

    def _in_float(self, target: Target, reason: str, record: dict[str, Any]) -> Graph:
        self.notes.append(f"{target}: {_FLOAT}, for {reason}")
        base = self.base
        return Graph(
            base.path, base.rungs, base.precision, {**record, "shipped": "fp32", "chosen": None}
        )

    def _searched(self, form: Form, target: Target, minutes: float) -> Frontier:
        plan = self._plan
        limits = Limits.of_precision(AUTO)
        bounds = Bounds(
            drift=_SHARE * (limits.max_drift or 0.0) * self.climber.unit.value,
            maps=_SHARE * (limits.max_map_drift or 0.0),
            spearman=1 - _SHARE * (1 - (limits.min_spearman or 0.0)),
            threshold=self.thresholds.image if self.thresholds else None,
        )
        with Child("search", timeout_s=_CHILD_TIMEOUT_S) as child:
            return child.run(
                search,
                self._equalised,
                plan,
                self.network_nodes,
                form,
                self._judged_calls(),
                bounds,
                (60 * minutes, _memory_folder()),
                progress=lambda done, total: self.listener.step(f"search {target}", done, total),
            )

    @cached_property
    def _correcting_calls(self) -> list[Call]:
        """On a few of the images that set ranges, evenly chosen."""
        files = self.calibration[:: -(-len(self.calibration) // _CORRECTING)]
        images = np.stack([image for _, image in load_images(files, self.image_input)])
        return [call for call, _ in self.image_input.batches(images)]

    def _judged_calls(self) -> tuple[list[Call], int, list[Call]]:
        """On check images, on those with defects planted, and those that correct biases."""
        normal = list(self.checks)
        spoiled = [
            image for seed in range(_PLANTED) for image in planted(normal, 1000 * (seed + 1))
        ]
        calls = [call for call, _ in self.image_input.batches(self.checks)]
        more = [call for call, _ in self.image_input.batches(np.stack(spoiled))]
        return [*calls, *more], len(calls), self._correcting_calls

    def _timed(
        self, target: Target, paths: Mapping[int, Path]
    ) -> tuple[dict[int, Interval], float]:
        """Speed-up of each form over the float graph, compiled for the target; the A/A floor."""
        named = {_FLOAT: self.base.path, **{_words(number): path for number, path in paths.items()}}
        backend = get_backend(target.backend)
        openers = {}
        for name, path in named.items():
            folder = self.work / f"timed-{target.folder}-{path.parent.name}"
            folder.mkdir(exist_ok=True)
            with Child(f"{target} ({name})", timeout_s=_CHILD_TIMEOUT_S) as child:
                child.run(backend.compile_graph, path, folder, target)
            openers[name] = opener(target, folder, self.climber.threads)
        calls = [call for call, _ in self.image_input.batches(self.checks)][:_TIMED_CALLS]
        with ExitStack() as stack:
            contest = Contest(stack, openers, calls)
            timed = contest.time(list(named), _ROUNDS, self.listener, twice=[_FLOAT])
        base = timed[_FLOAT]
        gains = {number: speedup(timed[_words(number)], base).ratio for number in paths}
        return gains, base.floor or 1.0

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
            "layers": len(self._plan.layers),
            "drift_unit": self.climber.unit.value,
            "limits": {"drift": limits.max_drift, "spearman": limits.min_spearman},
            "share": _SHARE,
        }

    def _written(
        self, name: str, form: Form, float_nodes: frozenset[str], *, searched: bool
    ) -> Path:
        """A form in a folder of its own, with its memory bank searched in INT8 or not."""
        path = self.work / f"{name}{'-bank' if searched else ''}" / GRAPH_FILE
        if path.exists():
            return path
        path.parent.mkdir(exist_ok=True)
        plan = self._plan
        with Child("INT8 calibration", timeout_s=_CHILD_TIMEOUT_S) as child:
            child.run(
                write_form,
                self._searching if searched else self._equalised,
                plan,
                self.network_nodes,
                self._correcting_calls,
                form,
                float_nodes,
                path,
            )
        return path


def _folder(name: str, form: Form) -> str:
    return f"{name}-{'int8' if form.signed else 'uint8'}{'-sums' if form.sums else ''}"


def _timed_points(found: Frontier) -> Sequence[int]:
    """Numbers of the points that are timed: all INT8, those that hold, and some on the way."""
    last = found.holding[0]
    between = {round(last * step / (_TIMED_BETWEEN + 1)) for step in range(1, _TIMED_BETWEEN + 1)}
    return sorted({0, *found.holding, *between})


def _words(number: int) -> str:
    return f"INT8, point {number}" if number else "INT8"


def _memory_folder() -> Path:
    """Where what was searched is kept: the user's folder for what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vadexport" / "search"
