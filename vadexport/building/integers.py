"""INT8 in a build: one plan for all targets, and its forms."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from vadexport.backends.child import Child
from vadexport.backends.registry import opener
from vadexport.backends.tensorrt.settings import DEFAULT_SETTINGS
from vadexport.building.bank_search import FLOAT_HEAD, INT8_SEARCH, BankSearch
from vadexport.building.climbing import Climber, Graph
from vadexport.building.compiling import compile_graph
from vadexport.building.narrow_head import NARROW_HEAD, NarrowHead
from vadexport.calibration import Plan, plan_int8
from vadexport.calibration.judging import Bounds, Judged, Judging, judge_compiled, scored
from vadexport.calibration.qdq import Form
from vadexport.calibration.quantisation import Choices
from vadexport.calibration.repair import write_form
from vadexport.calibration.synthetic_defects import planted
from vadexport.contract import Call, ImageArray, ImageInput
from vadexport.images import ImageFile, load_images
from vadexport.listening import Listener
from vadexport.targets import AUTO, Target
from vadexport.thresholds import Thresholds
from vadexport.verification.applied import AppliedPass
from vadexport.verification.ladder import Rung
from vadexport.verification.limits import Limits
from vadexport.verification.proxy import GRAPH_FILE

#: Calibration images that biases are corrected by, at most.
_CORRECTING: Final = 16
#: Planted defects of each check image.
_PLANTED: Final = 2
#: Of the limits of `auto`, what a form may use up on the few images that judge it.
SHARE_OF_LIMITS: Final = 0.5
_CHILD_TIMEOUT_S: Final = 1800
_FORMS: Final[dict[str, Form]] = {
    "openvino": Form(signed=False),
    "onnxruntime": Form(signed=False, sums=True, offset=True),
}


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
        left_out: names of passes that are not applied.
        reduce_range: weights take 7 bits, for processors without VNNI.
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
    left_out: tuple[str, ...] = ()
    reduce_range: bool = False

    @cached_property
    def plan(self) -> Plan:
        """Ranges and integers, which all forms share."""
        with Child("INT8 calibration", timeout_s=_CHILD_TIMEOUT_S) as child:
            plan = child.run(
                plan_int8,
                self.bank.path if self.bank else self.base.path,
                self._planned,
                self.network_nodes,
                self.calibration,
                self.image_input,
                Choices(reduce_range=self.reduce_range),
                progress=lambda done, total: self.listener.step("calibrate", done, total),
            )
        count = f"{len(plan.layers)} layers of the network"
        if self.reduce_range:
            self.notes.append(
                f"INT8 of openvino: {count}; weights take 7 bits, for a processor without VNNI, on "
                "which OpenVINO adds products in int16: of 8 bits they would saturate"
            )
        else:
            self.notes.append(f"INT8: {count}")
        if self.bank:
            onnx.save(self.bank.written(onnx.load(self._planned), searched=False), self.equalised)
        return plan

    def _own(self, name: str) -> str:
        """Name of a folder of these weights alone."""
        return f"{name}-7-bit" if self.reduce_range else name

    @property
    def _planned(self) -> Path:
        """The graph that the plan is for, before the search of a bank is written."""
        return self.equalised.with_name("before-search.onnx") if self.bank else self.equalised

    @property
    def equalised(self) -> Path:
        """The graph that the plan is for."""
        folder = self.work / self._own("equalised")
        folder.mkdir(exist_ok=True)
        return folder / GRAPH_FILE

    @cached_property
    def _searching(self) -> Path:
        """The graph that the plan is for, with its memory bank searched in INT8."""
        path = self.equalised.with_name("searching.onnx")
        if self.bank:
            onnx.save(self.bank.written(onnx.load(self._planned), searched=True), path)
        return path

    def graph(self, target: Target) -> Graph:
        """All layers in INT8, in the form that the target's backend runs best.

        Raises:
            InputError: an image or the network cannot be calibrated with.
            UnfitError: there is nothing to quantise.
            BackendError: calibration failed.
        """
        form = form_of(target)
        for searched in self.searches(target):
            path = self.written(folder_of("quantised", form), form, frozenset(), searched=searched)
            rung = self.climber.climb_graph("quantised", path.parent, "int8")
            if rung.held:
                break
        precision = self.precision(target, "int8", rung, searched=searched)
        made = self.head.written(path, target)
        rungs, search_pass = (*self.base.rungs, rung), self.search_pass(searched=searched)
        return Graph(made, rungs, precision, proof=path, search_pass=search_pass)

    def searches(self, target: Target) -> tuple[bool, ...]:
        """Whether a memory bank is searched in INT8: what is tried until scores hold."""
        return self.bank.forms(target) if self.bank else (False,)

    def search_pass(self, *, searched: bool) -> AppliedPass | None:
        """The pass that wrote a search in INT8."""
        return self.bank.applied if self.bank and searched else None

    def precision(
        self, target: Target, network: str, rung: Rung | None, *, searched: bool
    ) -> dict[str, str]:
        """What the manifest says of each part; notes where the search of a bank was given up."""
        if self.bank and (rung is None or rung.held) and searched != self.searches(target)[0]:
            self.bank.given_up(target)
        head = NARROW_HEAD if self.head.products(target) else FLOAT_HEAD
        found = {"network": network, "score head": INT8_SEARCH if searched else head}
        if self.reduce_range and (searched or network.startswith("int8")):
            found["INT8 weights"] = "7 bits, for processors without VNNI"
        return found

    @cached_property
    def head(self) -> NarrowHead:
        """The detector's Mahalanobis distances, if it has any."""
        return NarrowHead(
            self.base.path,
            self.network_nodes,
            self.judged,
            self.bounds,
            self.climber.unit.value,
            self.notes,
        )

    def compiled(self, path: Path, target: Target) -> Path:
        """Folder of what the target's backend makes of an ONNX file."""
        folder = self.work / f"compiled-{target.folder}-{path.parent.name}"
        if not folder.exists():
            folder.mkdir()
            settings = DEFAULT_SETTINGS, self.left_out
            with Child(f"{target} ({path.parent.name})", timeout_s=_CHILD_TIMEOUT_S) as child:
                child.run(compile_graph, path, folder, target, *settings)
        return folder

    def judged(self, path: Path, target: Target) -> Judged:
        """What an ONNX file does to scores and maps, as the target's backend runs it."""
        open_runner = opener(target, self.compiled(path, target), self.climber.threads)
        with Child(f"{target} (judging)", timeout_s=_CHILD_TIMEOUT_S) as child:
            return child.run(judge_compiled, open_runner, self.judging, self.bounds.threshold)

    @property
    def bounds(self) -> Bounds:
        """Of forms of `auto`, on the few images that judge."""
        limits = Limits.of_precision(AUTO)
        return Bounds(
            drift=SHARE_OF_LIMITS * (limits.max_drift or 0.0) * self.climber.unit.value,
            maps=SHARE_OF_LIMITS * (limits.max_map_drift or 0.0),
            spearman=1 - SHARE_OF_LIMITS * (1 - (limits.min_spearman or 0.0)),
            threshold=self.thresholds.image if self.thresholds else None,
        )

    @cached_property
    def judging_calls(self) -> tuple[list[Call], int]:
        """Calls on check images, so many, and on those with defects planted."""
        normal = list(self.checks)
        spoiled = [
            image for seed in range(_PLANTED) for image in planted(normal, 1000 * (seed + 1))
        ]
        calls = self.calls(self.checks)
        return [*calls, *self.calls(np.stack(spoiled))], len(calls)

    @cached_property
    def judging(self) -> Judging:
        """What compiled forms are held against: the float graph is run once a build."""
        calls, normal = self.judging_calls
        with Child("float graph (judging)", timeout_s=_CHILD_TIMEOUT_S) as child:
            return Judging(calls, normal, child.run(scored, self.base.path, calls))

    def in_float(self, *, searched: bool) -> Path:
        """The float graph, with its memory bank searched in INT8 or not."""
        if not searched or self.bank is None:
            return self.base.path
        path = self.work / self._own("float-bank") / GRAPH_FILE
        if not path.exists():
            path.parent.mkdir()
            onnx.save(self.bank.written(onnx.load(self.bank.path), searched=True), path)
        return path

    @cached_property
    def correcting_calls(self) -> list[Call]:
        """On a few of the images that set ranges, evenly chosen."""
        files = self.calibration[:: -(-len(self.calibration) // _CORRECTING)]
        images = np.stack([image for _, image in load_images(files, self.image_input)])
        return self.calls(images)

    def calls(self, images: ImageArray) -> list[Call]:
        """Calls of the graph; where it takes any number, one at a time needs the least memory."""
        alone = replace(self.image_input, batch=self.image_input.batch or 1)
        return [call for call, _ in alone.batches(images)]

    def written(
        self, name: str, form: Form, float_nodes: frozenset[str], *, searched: bool
    ) -> Path:
        """A form in a folder of its own, with its memory bank searched in INT8 or not."""
        path = self.work / self._own(f"{name}{'-bank' if searched else ''}") / GRAPH_FILE
        if path.exists():
            return path
        path.parent.mkdir(exist_ok=True)
        plan = self.plan
        with Child("INT8 calibration", timeout_s=_CHILD_TIMEOUT_S) as child:
            child.run(
                write_form,
                self._searching if searched else self.equalised,
                plan,
                self.network_nodes,
                self.correcting_calls,
                form,
                float_nodes,
                path,
            )
        return path


def folder_of(name: str, form: Form) -> str:
    """Of graphs in a form."""
    return f"{name}-{'int8' if form.signed else 'uint8'}{'-sums' if form.sums else ''}"
