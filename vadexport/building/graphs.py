"""The ONNX graphs of a build, each made when a target first needs it, and checked."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport.backends.child import Child
from vadexport.backends.openvino.saturation import adds_exactly
from vadexport.building.approximating import Approximating, Rewrites
from vadexport.building.climbing import Climber, Graph
from vadexport.building.explaining import located
from vadexport.building.inputs import BuildImages
from vadexport.building.integers import Integers
from vadexport.building.known import without_weights
from vadexport.building.mixing import Mixing
from vadexport.building.rewriting import Check, Checked, Rewriting, rewrite, time_passes
from vadexport.building.searching import Searches
from vadexport.calibration import halve
from vadexport.contract import Call, ImageInput
from vadexport.errors import BackendError, UnfitError, VadexportError
from vadexport.images import load_images
from vadexport.listening import Listener
from vadexport.passes import DEFAULT_PASSES, FLOAT_SEARCH
from vadexport.sources import Source
from vadexport.targets import AVX2, Target
from vadexport.tracing.graph import TracedGraph, simplify, trace, values_in_pytorch
from vadexport.verification.applied import Passes
from vadexport.verification.ladder import Rung, child_inference
from vadexport.verification.limits import Limits
from vadexport.verification.locating import Before, locate
from vadexport.verification.proxy import GRAPH_FILE, proxy_opener

#: Of the drift that a float16 artifact may have. The rest is for images that were not seen: the
#: largest of a thousand normally distributed drifts is twice to three times that of a dozen.
_HALF_SHARE: Final = 1 / 3
#: Images that choose the layers which float16 suits.
_MOST_HALF_IMAGES: Final = 16
_CHILD_TIMEOUT_S: Final = 1800
_REFERENCE_DIFFERS: Final = (
    "the graph gives what its parts give in PyTorch: the reference, untouched, gives something else"
)


@dataclass(frozen=True)
class _Exported:
    """The graph as it is traced.

    Attributes:
        path: of its ONNX file.
        seams: names of the tensors between its parts.
        values: what the parts give in PyTorch for the first check image.
    """

    path: Path
    seams: tuple[str, ...]
    values: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class _Traced:
    """The float graph, without the weights in memory.

    Attributes:
        path: of its ONNX file.
        rungs: of the steps that led to it.
        outputs: their names.
        network: names of the network's nodes; none where it has no layer.
    """

    path: Path
    rungs: tuple[Rung, ...]
    outputs: tuple[str, ...]
    network: frozenset[str]


@dataclass
class Graphs:
    """What targets of a precision share.

    Attributes:
        source: the trained detector.
        image_input: of the graphs.
        images: that calibrate and check.
        climber: checks steps.
        work: folder of the steps.
        listener: told of progress.
        left_out: names of passes that are not applied.
        timed_on: target whose backend times what passes bring; None for none.
        approximating: what may be approximated; None for nothing.
        notes: what else the user should know.
        undone: rungs of the passes that moved scores, and were undone.
        rewrites: that are applied.
    """

    source: Source
    image_input: ImageInput
    images: BuildImages
    climber: Climber
    work: Path
    listener: Listener
    left_out: tuple[str, ...] = ()
    timed_on: Target | None = None
    approximating: Approximating | None = None
    notes: list[str] = field(default_factory=list)
    undone: list[Rung] = field(default_factory=list)
    rewrites: Rewrites = field(default_factory=Rewrites)
    _passes: Passes = field(default_factory=Passes)
    _made_integers: dict[bool, Integers] = field(default_factory=dict)
    _failures: dict[tuple[str, bool], VadexportError] = field(default_factory=dict)

    def of(self, target: Target) -> Graph:
        """The graph of a target's precision, in the form that its backend runs best.

        Raises:
            InputError: the detector cannot be traced.
            UnfitError: its network has no layer that could have the precision.
            BackendError: quantising failed.
        """
        alike = (target.precision, target.backend == "openvino")
        if alike in self._failures:
            raise self._failures[alike]
        try:
            made = self._made(target)
        except VadexportError as error:  # another target of the kind would fail alike
            self._failures[alike] = error
            raise
        return made

    def _made(self, target: Target) -> Graph:
        if target.precision == "fp16":
            return self._half
        return self._int8(target) if target.precision == "int8" else self._searches.graph(target)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graphs' outputs."""
        return self._traced.outputs

    @cached_property
    def _exported(self) -> _Exported:
        """The graph as it is traced; the detector is let go of."""
        detector = self.source.detector
        graph = trace(detector, self.image_input)
        path = self._save("traced", graph.model)
        try:
            values = values_in_pytorch(detector, self.image_input, self._first_call)
        except Exception:  # noqa: BLE001 - a user's code; it explains failures, and must not be one
            values = {}
        self.source = without_weights(self.source)
        return _Exported(path, graph.seams, values)

    @cached_property
    def _traced(self) -> _Traced:
        """Trace, simplify and rewrite; passes that move scores are undone."""
        self.listener.step("trace", 0, 3)
        exported = self._exported
        rungs = [self.climber.climb_graph("traced", exported.path.parent, "fp32")]
        if exported.values:
            self._explain(rungs[-1], exported.values, exported.path)
        self.listener.step("trace", 1, 3)
        graph = simplify(TracedGraph(onnx.load(exported.path), exported.seams))
        rungs.append(self._climb("simplified", graph.model))
        self._explain(rungs[-1], exported.path)
        self.listener.step("trace", 2, 3)
        wanted = [each for each in DEFAULT_PASSES if each.name not in self.left_out]
        check = self._check_of_passes(rungs[-1])
        save = None if self.timed_on is None else self._save
        made = rewrite(graph.model, self._simplified, wanted, check, save)
        graph = replace(graph, model=made.model)
        if made.rung is not None:
            rungs.append(made.rung)
        for one in made.undone:
            self.undone.append(one.rung)
            self.notes.append(f"the pass {one.name} was undone, for it moves scores")
            self._explain(one.rung, one.before, one.after)
        self._passes = Passes(made.applied, self.left_out)
        if self.timed_on is not None and made.rung is not None:
            self._time_passes(made, self.timed_on)
        self.listener.step("trace", 3, 3)
        left_out = (*self.left_out, *(one.name for one in made.undone))
        self.rewrites = self.rewrites.without(left_out)
        if self.approximating is not None:
            graph = self._approximated(self.approximating, graph, rungs)
        return _Traced(
            path=self._save("float", graph.model),
            rungs=tuple(rungs),
            outputs=tuple(output.name for output in graph.model.graph.output),
            network=graph.network_nodes() if graph.has_layers() else frozenset(),
        )

    def _check_of_passes(self, before: Rung) -> Check:
        """Checks what passes make of the simplified graph, whose rung is `before`."""
        added = None if before.held else self._against(self._simplified.parent)

        def check(name: str, model: onnx.ModelProto) -> Checked:
            path = self._save(name, model)
            rung = verdict = self.climber.climb_graph("rewritten", path.parent, "fp32")
            if added is not None and not rung.held:
                verdict = added.climb_graph("rewritten", path.parent, "fp32")
            return Checked(path, rung, verdict)

        return check

    def _against(self, folder: Path) -> Climber | None:
        """Checks steps against the ONNX graph in a folder in place of the reference.

        None where that graph gives no image a finite score.
        """
        with Child("simplified graph") as child:
            child.open(proxy_opener(folder, "fp32", self.climber.threads))
            ladder = self.climber.ladder.against(child_inference(child))
        return replace(self.climber, ladder=ladder, repeated=False) if ladder else None

    def passes(self, graph: Graph) -> Passes:
        """Passes of a graph, and what each brought; they are of its float graph but for the search.

        Args:
            graph: that was made here.
        """
        if graph.search_pass is None:
            return self._passes
        instead = {each.name for each in FLOAT_SEARCH}
        stays = [one for one in self._passes.applied if one.name not in instead]
        return replace(self._passes, applied=(*stays, graph.search_pass))

    def _time_passes(self, made: Rewriting, target: Target) -> None:
        """Time what each pass that stays brings, on a target's backend."""
        target, threads = Target(target.backend, "fp32"), self.climber.threads
        try:
            applied = time_passes(made, self._simplified, (target, threads), self._first_call)
        except BackendError as error:
            self.notes.append(f"what passes bring was not timed: {error}")
            return
        words = f"{target}, {threads} threads"
        self._passes = replace(self._passes, applied=applied, timed_on=words)

    def _approximated(
        self, approximating: Approximating, graph: TracedGraph, rungs: list[Rung]
    ) -> TracedGraph:
        """Approximate as far as scores allow; what moves them further is undone."""
        if self.undone:
            self.notes.append("nothing is approximated, for the exact rewrites were undone")
            return graph
        simplified = onnx.load(self._simplified)
        images = self.images, self.image_input
        unit, rest = self.climber.unit.value, (self.listener, self.notes)
        rewrites = approximating.chosen(simplified, self.work, images, unit, rest)
        if rewrites is None:
            return graph
        rewrites = rewrites.without(self.left_out)
        model = rewrites.applied(simplified)
        climber = replace(self.climber, limits={"fp32": approximating.limits})
        folder = self._save("approximated", model).parent
        rung = climber.climb_graph("approximated", folder, "fp32")
        if not rung.held:
            lines = "; ".join(check.line for check in rung.checks if not check.held)
            self.notes.append(f"approximations undone: {lines}")
            return graph
        rungs.append(rung)
        self.rewrites = rewrites
        self.climber = approximating.behind(self.climber)
        return replace(graph, model=model)

    @cached_property
    def _float(self) -> Graph:
        precision = {"network": "fp32", "score head": "fp32"}
        return Graph(self._traced.path, self._traced.rungs, precision)

    @cached_property
    def _searches(self) -> Searches:
        calibration = self.images.calibration
        return Searches(
            simplified=self._simplified,
            base=self._float,
            images=calibration.calibrate if calibration else (),
            image_input=self.image_input,
            rewrites=self.rewrites,
            left_out=self.left_out,
            climber=self.climber,
            work=self.work,
            listener=self.listener,
            notes=self.notes,
        )

    @cached_property
    def _half(self) -> Graph:
        """Cast what scores allow to float16."""
        network = self._layers("float16")
        path = self._new("half")
        limits = Limits.of_rung("fp16")
        drift, maps = limits.max_drift or 0.0, limits.max_map_drift or 0.0
        with Child("float16 conversion", timeout_s=_CHILD_TIMEOUT_S) as child:
            plan = child.run(
                halve,
                self._float.path,
                path,
                network,
                self._half_calls(),
                (_HALF_SHARE * drift * self.climber.unit.value, _HALF_SHARE * maps),
                progress=lambda done, total: self.listener.step("float16", done, total),
            )
        kept = plan.kept_layers
        whole = f"{plan.layers} of {plan.layers + sum(kept.values())} layers"
        stays = "".join(f", and {count}: {reason}" for reason, count in kept.items())
        self.notes.append(f"FP16: {whole} of the network; the score head stays float32{stays}")
        rung = self.climber.climb_graph("half", path.parent, "fp16")
        self._explain(rung, self._float.path)
        precision = {"network": f"fp16, {whole}", "score head": "fp32"}
        return Graph(path, (*self._float.rungs, rung), precision)

    def _half_calls(self) -> list[np.ndarray]:
        """Calls of the graph on the images that choose layers."""
        images = self.images.checks
        if self.images.calibration is not None and self.images.calibration.calibrate:
            files = self.images.calibration.calibrate[:_MOST_HALF_IMAGES]
            images = np.stack([image for _, image in load_images(files, self.image_input)])
        batch = self.image_input.batch or 1  # any will do: one by one where it is left open
        return [call for call, _ in replace(self.image_input, batch=batch).batches(images)]

    def _integers(self, target: Target) -> Integers:
        """Those of a target's processor."""
        if self.images.calibration is None:
            raise UnfitError("INT8 needs normal images to set its ranges: --calibration IMAGES")
        network, calibration = self._layers("INT8"), self.images.calibration.calibrate
        reduce_range = self._reduces_range(target)
        if reduce_range not in self._made_integers:
            self._made_integers[reduce_range] = Integers(
                base=self._float,
                network_nodes=network,
                calibration=calibration,
                checks=self.images.checks,
                image_input=self.image_input,
                thresholds=self.source.detector.thresholds,
                climber=self.climber,
                work=self.work,
                listener=self.listener,
                notes=self.notes,
                bank=self._searches.int8(reduce_range=reduce_range),
                left_out=self.left_out,
                reduce_range=reduce_range,
            )
        return self._made_integers[reduce_range]

    def _reduces_range(self, target: Target) -> bool:
        """Whether a target's INT8 weights take 7 bits."""
        if target.backend != "openvino":
            return False  # ONNX Runtime can add exactly everywhere, and GPUs do
        return target.device == AVX2 or not self._adds_exactly

    @cached_property
    def _adds_exactly(self) -> bool:
        with Child("OpenVINO's INT8 products", timeout_s=_CHILD_TIMEOUT_S) as child:
            return child.run(adds_exactly)

    def _int8(self, target: Target) -> Graph:
        graph = self._integers(target).graph(target)
        self._explain(graph.rungs[-1], self._float.path, graph.provable)
        return graph

    def mixed(self, target: Target, minutes: float) -> Graph:
        """The fastest graph for a target whose scores hold, found by a search.

        The float graph, where the network has no layer that INT8 suits.

        Raises:
            InputError: as `of` does.
            BackendError: as `of` does.
        """
        try:
            made = Mixing(self._integers(target), target).graph(minutes)
        except UnfitError as error:
            self.notes.append(f"{target}: float32, for {error}")
            return self._searches.graph(target)
        if made.path == self._float.path:
            return replace(self._searches.graph(target), search=made.search)
        return made

    def _explain(self, rung: Rung, before: Before, after: Path | None = None) -> None:
        """Note where in the graph a rung that fell short parts from the step before it."""
        if rung.held:
            return
        after = after or self.work / rung.name / GRAPH_FILE
        told = located(
            rung.name,
            f"the first of {self.images.words}",
            *(locate, before, after, self._first_call),
            otherwise=_REFERENCE_DIFFERS if rung.name == "traced" else None,
        )
        self.notes += [] if told is None else [told]

    @property
    def _first_call(self) -> Call:
        """Of the first check image."""
        call, _ = next(self.image_input.batches(self.images.checks[:1]))
        return call

    def _layers(self, wanted: str) -> frozenset[str]:
        """Names of the network's nodes; raises UnfitError where none of them is a layer."""
        if not self._traced.network:
            raise UnfitError(
                f"the network of {self.source.detector.family} has no convolution and no other "
                f"layer that could be {wanted}: build targets of fp32"
            )
        return self._traced.network

    @property
    def _simplified(self) -> Path:
        """The graph before all passes."""
        return self.work / "simplified" / GRAPH_FILE

    def _climb(self, name: str, model: onnx.ModelProto) -> Rung:
        return self.climber.climb_graph(name, self._save(name, model).parent, "fp32")

    def _save(self, name: str, model: onnx.ModelProto) -> Path:
        path = self._new(name)
        onnx.save(model, path)
        return path

    def _new(self, name: str) -> Path:
        path = self.work / name / GRAPH_FILE
        path.parent.mkdir(exist_ok=True)  # from a try that failed, perhaps
        return path
