"""The steps of a build."""

import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import onnx

from vadexport.artifact import (
    MANIFEST_FILE,
    REPORT_FOLDER,
    Manifest,
    check_room,
    write_manifest,
    written_atomically,
)
from vadexport.backends.base import available_threads
from vadexport.backends.child import Child
from vadexport.backends.registry import get_backend, opener
from vadexport.building.inputs import BuildImages, build_images
from vadexport.building.options import BuildOptions, BuildResult, BuiltTarget
from vadexport.calibration import quantise, require_nncf
from vadexport.contract import ImageInput
from vadexport.errors import InputError, MissingPackageError, VadexportError
from vadexport.listening import Listener
from vadexport.machine import processor_name, tool_versions
from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.sources import Source, SourceSpec, open_source, reference_opener
from vadexport.targets import Target
from vadexport.tracing.graph import TracedGraph, simplify, trace
from vadexport.verification.drift import DriftUnit, NormalScores, fitted_scores
from vadexport.verification.ladder import Ladder, Rung, child_inference

_MODEL_FILE = "model.onnx"


def build(options: BuildOptions, listener: Listener) -> BuildResult:
    """Compile a trained detector for each target, and check every step on the way.

    A target whose backend fails does not stop the others. Nothing is written unless at least one
    target was built; what was at the destination stays until the new folder is whole.

    Raises:
        InputError: an option, the source or an image is wrong.
        MissingPackageError: no target's backend is installed here.
        BackendError: every target's backend failed.
    """
    if len(set(options.targets)) < len(options.targets) or not options.targets:
        raise InputError("name each target once, and at least one")
    _refuse_to_remove(options)
    spec = SourceSpec.of(options.source)
    source = open_source(spec)
    image_input = replace(source.detector.image_input, batch=options.batch, layout=options.layout)
    images = build_images(options, image_input, listener)
    available, built = _split_by_availability(options.targets, listener)
    threads = options.threads or available_threads()
    with written_atomically(options.destination) as staging:
        with Child("reference") as child:
            listener.step("reference", 0, 1)
            child.open(reference_opener(spec, threads))
            ladder = Ladder(
                child_inference(child), images.checks, image_input, source.detector.thresholds
            )
            listener.step("reference", 1, 1)
            builder = _Builder(source, image_input, images, ladder, staging.work, threads, listener)
            for target in available:
                folder = staging.result / (target.folder if len(options.targets) > 1 else "")
                built.append(builder.build(target, folder))
        built.sort(key=lambda one: options.targets.index(one.target))
        _tell_of_failures([one for one in built if one.target in available], listener)
        for one in built:
            if one.folder is None:
                _keep_old(one.target, options, staging.result, listener)
            else:
                write_manifest(one.folder, builder.manifest(one))
                _write_report(one, images.words)
    final = [
        replace(one, folder=options.destination / one.folder.relative_to(staging.result))
        if one.folder
        else one
        for one in built
    ]
    unit = f"{builder.unit.value:.4g}, the interquartile range of {builder.unit.words}"
    return BuildResult(tuple(final), images.words, unit, tuple(builder.notes))


class _UnfitError(InputError):
    """A target that this detector cannot have, while it may have others."""


@dataclass
class _Builder:
    """Graphs of one build, made when a target first needs them, and what they share."""

    source: Source
    image_input: ImageInput
    images: BuildImages
    ladder: Ladder
    work: Path
    threads: int
    listener: Listener
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = [fitted_scores(self.source.detector.normal_scores.numpy())]
        if self.images.real:
            known.append(NormalScores(self.ladder.reference_scores, self.images.words))
        self.unit = DriftUnit.of(*known)

    def build(self, target: Target, folder: Path) -> BuiltTarget:
        """Compile `target` into `folder` and check what came of it."""
        rungs: tuple[Rung, ...] = ()
        try:
            model, rungs = self._graph(target.precision)
            folder.mkdir(exist_ok=True)
            self.listener.step(f"compile {target}", 0, 2)
            with Child(str(target)) as child:
                child.run(get_backend(target.backend).compile_graph, model, folder)
            self.listener.step(f"compile {target}", 1, 2)
            compiled = self._climb("compiled", target, folder)
            self.listener.step(f"compile {target}", 2, 2)
        except VadexportError as error:
            if isinstance(error, InputError) and not isinstance(error, _UnfitError):
                raise
            check_room(self.work, self._room_needed())
            shutil.rmtree(folder, ignore_errors=True)
            return BuiltTarget(target, None, rungs, error)
        return BuiltTarget(target, folder, (*rungs, compiled))

    def _room_needed(self) -> int:
        """Bytes that a target's files may need, by the largest file so far."""
        return 2 * max((path.stat().st_size for path in self.work.rglob("*.*")), default=0)

    def manifest(self, built: BuiltTarget) -> Manifest:
        """The manifest of a target; its files are counted when it is written."""
        detector, calibration = self.source.detector, None
        if built.target.precision == "int8" and self.images.calibration:
            calibration = self.images.calibration.entry()
        return Manifest(
            target=built.target,
            image_input=self.image_input,
            outputs=tuple(output.name for output in self._float_graph[0].model.graph.output),
            map_size=detector.map_size,
            source=self.source.to_json(),
            options=self.source.options,
            thresholds=detector.thresholds,
            drift_unit=self.unit.value,
            drift_unit_from=self.unit.words,
            precision={"network": built.target.precision, "score head": "fp32"},
            calibration=calibration,
            parity=[rung.to_json() for rung in built.rungs],
            tools=tool_versions(),
            processor=processor_name(),
        )

    def _graph(self, precision: str) -> tuple[Path, tuple[Rung, ...]]:
        graph, rungs = self._float_graph
        if precision == "fp32":
            return self._save("float", graph.model), rungs
        return self._int8_graph

    @cached_property
    def _float_graph(self) -> tuple[TracedGraph, tuple[Rung, ...]]:
        """Trace, simplify and rewrite; rewrites that move scores are undone."""
        self.listener.step("trace", 0, 3)
        traced = trace(self.source.detector, self.image_input)
        rungs = [self._climb_onnx("traced", traced.model, "fp32")]
        self.listener.step("trace", 1, 3)
        graph = simplify(traced)
        rungs.append(self._climb_onnx("simplified", graph.model, "fp32"))
        self.listener.step("trace", 2, 3)
        model, places = apply_passes(graph.model, DEFAULT_PASSES)
        if any(places.values()):
            rewritten = self._climb_onnx("rewritten", model, "fp32")
            names = ", ".join(name for name, count in places.items() if count)
            if rewritten.held:
                rungs.append(rewritten)
                graph = replace(graph, model=model)
                self.notes.append(f"rewrites applied: {names}")
            else:
                self.notes.append(f"rewrites undone, for they move scores: {names}")
        self.listener.step("trace", 3, 3)
        return graph, tuple(rungs)

    @cached_property
    def _int8_graph(self) -> tuple[Path, tuple[Rung, ...]]:
        """Quantise the network."""
        graph, rungs = self._float_graph
        if self.images.calibration is None:
            raise AssertionError("INT8 without calibration images")
        if not graph.has_layers():
            raise _UnfitError(
                f"the network of {self.source.detector.family} has no convolution and no other "
                "layer that could be INT8: build targets of fp32"
            )
        quantised = self.work / "quantised" / _MODEL_FILE
        quantised.parent.mkdir(exist_ok=True)
        with Child("INT8 calibration", timeout_s=1800) as child:
            layers = child.run(
                quantise,
                self._save("float", graph.model),
                quantised,
                graph.network_nodes(),
                self.images.calibration.calibrate,
                self.image_input,
                progress=lambda done, total: self.listener.step("calibrate", done, total),
            )
        self.notes.append(f"INT8: {layers} layers of the network; the score head stays float32")
        rung = self._climb("quantised", Target("onnxruntime", "int8"), quantised.parent)
        return quantised, (*rungs, rung)

    def _climb_onnx(self, name: str, model: onnx.ModelProto, precision: str) -> Rung:
        """Check an ONNX graph, run by ONNX Runtime."""
        folder = self._save(name, model).parent
        return self._climb(name, Target("onnxruntime", precision), folder)

    def _climb(self, name: str, target: Target, folder: Path) -> Rung:
        open_runner = opener(target, folder, self.threads)
        what = f"{target} ({name})"
        return self.ladder.climb(name, what, open_runner, self.unit.value, target.precision)

    def _save(self, name: str, model: onnx.ModelProto) -> Path:
        path = self.work / name / _MODEL_FILE
        if not path.exists():
            path.parent.mkdir()
            onnx.save(model, path)
        return path


def _refuse_to_remove(options: BuildOptions) -> None:
    """Artifacts of other targets, in the folder that this build replaces, would be lost."""
    if (options.destination / MANIFEST_FILE).exists() or not options.destination.is_dir():
        return
    several = len(options.targets) > 1
    replaced = {target.folder for target in options.targets} if several else set()
    lost = sorted(
        path.parent.name
        for path in options.destination.glob(f"*/{MANIFEST_FILE}")
        if path.parent.name not in replaced
    )
    if lost:
        raise InputError(
            f"{options.destination} holds artifacts that this build would remove "
            f"({', '.join(lost)}): name a new folder, or build those targets as well"
        )


def _keep_old(target: Target, options: BuildOptions, result: Path, listener: Listener) -> None:
    """A target that could not be built keeps the artifact that it had, if any."""
    old = options.destination / target.folder
    if (old / MANIFEST_FILE).exists():
        shutil.copytree(old, result / target.folder, symlinks=True)
        listener.warn(f"{old} is still the one of an earlier build")


def _split_by_availability(
    targets: Sequence[Target], listener: Listener
) -> tuple[list[Target], list[BuiltTarget]]:
    """Targets whose package is here, and what became of the others."""
    available, missing = [], []
    for target in targets:
        try:
            get_backend(target.backend).version()
            if target.precision == "int8":
                require_nncf()
        except MissingPackageError as error:
            if len(targets) > 1:  # alone, it is the error that ends the command
                listener.warn(f"{target} is not built: {error}")
            missing.append(BuiltTarget(target, None, (), error))
        else:
            available.append(target)
    if not available:
        raise next(one.error for one in missing if one.error)
    return available, missing


def _tell_of_failures(built: Sequence[BuiltTarget], listener: Listener) -> None:
    """Warn of targets that were not built; raises the first's error where none was."""
    errors = {str(one.target): one.error for one in built if one.error}
    ends = next(iter(errors.values())) if len(errors) == len(built) else None
    for target, error in errors.items():
        if str(error) != str(ends):  # what ends the command is told there
            listener.warn(f"{target} was not built: {error}")
    if ends is not None:
        raise ends


def _write_report(built: BuiltTarget, check_images: str) -> None:
    """What may differ from build to build stays out of the manifest, and is noted here."""
    if built.folder is None:
        return
    report = {
        "schema_version": 1,
        "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "check_images": check_images,
        "ladder": [asdict(rung) for rung in built.rungs],
    }
    folder = built.folder / REPORT_FOLDER
    folder.mkdir()
    (folder / "build.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
