"""The steps of a build."""

import json
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from vadexport.artifact import (
    BUILD_FILE,
    MANIFEST_FILE,
    REPORT_FOLDER,
    Manifest,
    ProvenOn,
    check_room,
    write_manifest,
    written_atomically,
)
from vadexport.backends.base import available_threads
from vadexport.backends.child import Child
from vadexport.backends.registry import get_backend, opener
from vadexport.backends.tensorrt.library import check_settings
from vadexport.building.approximating import Approximating
from vadexport.building.climbing import Climber, Graph
from vadexport.building.compiling import PASSES, compile_graph
from vadexport.building.graphs import Graphs
from vadexport.building.inputs import BuildImages, build_images, sets_ranges
from vadexport.building.options import BuildOptions, BuildResult, BuiltTarget
from vadexport.building.rewriting import check_names
from vadexport.building.suspects import warn_of_defects
from vadexport.errors import (
    BackendError,
    InputError,
    MissingDeviceError,
    MissingPackageError,
    UnfitError,
    VadexportError,
)
from vadexport.listening import Listener
from vadexport.machine import processor_name, tool_versions
from vadexport.passes.quantised_search import PrincipalSearch, QuantisedSearch
from vadexport.sources import Source, SourceSpec, open_source, reference_opener
from vadexport.targets import AUTO, Target
from vadexport.verification.drift import DriftUnit, NormalScores, fitted_scores
from vadexport.verification.ladder import Ladder, Rung, child_inference, child_preparation
from vadexport.verification.proxy import keep_graph

#: Of precisions that `auto` tries before fp32: the fastest first.
_AUTO_ORDER: Final = ("int8", "fp16")
_COMPILE_TIMEOUT_S: Final = 600
#: Passes that are planned by calibration images.
_SEARCHES: Final = (QuantisedSearch.name, PrincipalSearch.name)


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
    _refuse_ambiguous(options.targets)
    check_names(options.no_pass)
    check_settings({target.backend for target in options.targets}, options.tensorrt)
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
                child_inference(child),
                images.checks,
                image_input,
                source.detector.thresholds,
                child_preparation(child),
            )
            listener.step("reference", 1, 1)
            if images.calibration and source.detector.thresholds and sets_ranges(options):
                warn_of_defects(
                    images.calibration,
                    ladder.reference_scores.tolist(),
                    child_inference(child),
                    image_input,
                    source.detector.thresholds,
                    listener,
                )
        # The reference is gone: the ladder knows its answers, and it would hold its weights.
        climber = Climber(ladder, _drift_unit(source, images, ladder), threads)
        graphs = Graphs(
            *(source, image_input, images, climber, staging.work, listener),
            left_out=options.no_pass,
            timed_on=next((each for each in available if not each.on_gpu), None),
            approximating=_approximating(options),
        )
        del source  # once it is traced, nothing holds its weights
        builder = _Builder(graphs, options)
        for target in available:
            folder = staging.result / (target.folder if len(options.targets) > 1 else "")
            built.append(builder.build(target, folder))
        built.sort(key=lambda one: options.targets.index(one.target))
        _tell_of_failures([one for one in built if one.target in available], listener)
        listener.step("write", 0, 1)
        for one in built:
            if one.folder is None:
                _keep_old(one.target, options, staging.result, listener)
            else:
                write_manifest(one.folder, builder.manifest(one))
                _write_report(one, images.words)
        listener.step("write", 1, 1)
    final = [
        replace(one, folder=options.destination / one.folder.relative_to(staging.result))
        if one.folder
        else one
        for one in built
    ]
    unit = f"{climber.unit.value:.4g}, the interquartile range of {climber.unit.words}"
    return BuildResult(tuple(final), images.words, unit, tuple(builder.notes()))


def _built_on(built: BuiltTarget) -> str:
    """The processor, and the GPU if it was built on one."""
    gpu = built.facts.get("for") if not get_backend(built.target.backend).AHEAD_OF_TIME else None
    return f"{processor_name()}; {gpu}" if gpu else processor_name()


def _approximating(options: BuildOptions) -> Approximating | None:
    given = options.approximate
    if given is False:
        return None
    return Approximating.of(options.targets, None if given is True else given)


def _drift_unit(source: Source, images: BuildImages, ladder: Ladder) -> DriftUnit:
    known = [fitted_scores(source.detector.normal_scores.numpy())]
    if images.real:
        known.append(NormalScores(ladder.reference_scores, images.words))
    return DriftUnit.of(*known)


@dataclass
class _Builder:
    """Compiles the graphs of one build for its targets."""

    graphs: Graphs
    options: BuildOptions
    #: Targets whose device is not here, by the reason.
    not_run: dict[str, list[str]] = field(default_factory=dict)

    def notes(self) -> Iterator[str]:
        """What else the user should know."""
        yield from self.graphs.notes
        for reason, targets in self.not_run.items():
            yield (
                f"not run here: {', '.join(targets)} ({reason}). Parity was proven on the ONNX "
                "graphs behind them, run by ONNX Runtime on the processor, and no speed measured"
            )

    def build(self, target: Target, folder: Path) -> BuiltTarget:
        """Compile `target` into `folder` and check what came of it."""
        rungs: tuple[Rung, ...] = ()
        try:
            resolved = self._resolved(target)
            graph = self._graph(resolved)
            rungs = graph.rungs
            folder.mkdir(exist_ok=True)
            facts = self._compiled(graph.path, folder, resolved)
            passes = self.graphs.passes(graph).with_more(facts.pop(PASSES, {}))
            if graph.rungs[-1].name == "quantised":
                keep_graph(graph.provable, folder)
            if graph.search is not None:
                facts["search"] = graph.search
            checked, proven_on = self._checked(folder, resolved)
        except VadexportError as error:
            if isinstance(error, InputError) and not isinstance(error, UnfitError):
                raise
            check_room(self.graphs.work, self._room_needed())
            shutil.rmtree(folder, ignore_errors=True)
            return BuiltTarget(target, None, rungs, error)
        return BuiltTarget(
            target,
            folder,
            (*rungs, *checked),
            resolved=resolved,
            precision=graph.precision,
            proven_on=proven_on,
            facts=facts,
            passes=passes,
        )

    def manifest(self, built: BuiltTarget) -> Manifest:
        """The manifest of a target; its files are counted when it is written."""
        graphs = self.graphs
        target = built.resolved or built.target
        detector, unit, calibration = graphs.source.detector, graphs.climber.unit, None
        searched = any(each.name in _SEARCHES for each in built.passes.applied)
        used = target.precision != "fp32" or graphs.approximating is not None or searched
        if used and graphs.images.calibration and graphs.images.calibration.calibrate:
            calibration = graphs.images.calibration.entry()
        approximated = graphs.rewrites.to_json(searched=searched)
        return Manifest(
            target=target,
            image_input=graphs.image_input,
            outputs=graphs.outputs,
            map_size=detector.map_size,
            source=graphs.source.to_json(),
            options=graphs.source.options,
            thresholds=detector.thresholds,
            drift_unit=unit.value,
            drift_unit_from=unit.words,
            precision={**built.precision, **approximated},
            calibration=calibration,
            parity=[rung.to_json() for rung in built.rungs],
            proven_on=built.proven_on,
            tools={**tool_versions(), target.backend: get_backend(target.backend).version()},
            processor=_built_on(built),
        )

    def _graph(self, target: Target) -> Graph:
        if target.mixed:
            return self.graphs.mixed(target, self.options.search_minutes)
        return self.graphs.of(target)

    def _resolved(self, target: Target) -> Target:
        """The target itself; of `auto` on GPUs, the one with the lowest precision that holds."""
        if target.precision != AUTO or target.mixed:
            return target
        for precision in _AUTO_ORDER:
            try:
                last = self.graphs.of(replace(target, precision=precision)).rungs[-1]
            except (BackendError, MissingPackageError, UnfitError) as error:
                reason = str(error)
            else:
                reason = "; ".join(check.line for check in last.checks if not check.held)
            if not reason:
                break
            self.graphs.notes.append(f"{target}: not {precision}: {reason}")
        else:
            precision = "fp32"
            self.graphs.of(
                replace(target, precision=precision)
            )  # whose failure, if it is one, is the target's
        self.graphs.notes.append(f"{target}: {precision}")
        return replace(target, precision=precision)

    def _compiled(self, model: Path, folder: Path, target: Target) -> dict[str, Any]:
        step = f"compile {target}"
        self.graphs.listener.step(step, 0, 1)
        limit, longer = _COMPILE_TIMEOUT_S, ""
        if target.backend.startswith("tensorrt"):
            limit, longer = self.options.tensorrt.time_limit_s, "--tensorrt time_limit_s=…"
        with Child(str(target), timeout_s=limit, longer=longer) as child:
            facts = child.run(
                compile_graph, model, folder, target, self.options.tensorrt, self.options.no_pass
            )
        self.graphs.listener.step(step, 1, 1)
        return facts

    def _checked(self, folder: Path, target: Target) -> tuple[tuple[Rung, ...], ProvenOn]:
        """Rungs of what was compiled, as far as it can run here."""
        climber = self.graphs.climber
        rungs: tuple[Rung, ...] = ()
        if target.on_gpu:  # its graph is in the folder, as the backend reads it
            rungs = (climber.climb_graph("prepared", folder, target.precision),)
            try:
                with Child(str(target)) as child:
                    child.run(get_backend(target.backend).check_device, target)
            except (MissingDeviceError, MissingPackageError) as error:
                self.not_run.setdefault(str(error), []).append(str(target))
                return rungs, "graph"
        open_runner = opener(target, folder, climber.threads)
        compiled = climber.climb("compiled", str(target), open_runner, target.precision)
        return (*rungs, compiled), "artifact"

    def _room_needed(self) -> int:
        """Bytes that a target's files may need, by the largest file so far."""
        files = self.graphs.work.rglob("*.*")
        return 2 * max((path.stat().st_size for path in files), default=0)


def _refuse_ambiguous(targets: Sequence[Target]) -> None:
    """`auto` may come to a target that is built anyway."""
    for auto in (each for each in targets if each.precision == AUTO and not each.mixed):
        for other in targets:
            if other != auto and (other.backend, other.device) == (auto.backend, auto.device):
                raise InputError(
                    f"{auto} may come to {other}, which this build makes anyway: leave one out"
                )


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
            backend = get_backend(target.backend)
            backend.version()
            if not backend.AHEAD_OF_TIME:
                backend.check_device(target)
        except (MissingPackageError, MissingDeviceError) as error:
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
        "proven_on": built.proven_on,
        "compiled": built.facts,
        "passes": built.passes.to_json(),
        "ladder": [asdict(rung) for rung in built.rungs],
    }
    folder = built.folder / REPORT_FOLDER
    folder.mkdir(exist_ok=True)
    (folder / BUILD_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
