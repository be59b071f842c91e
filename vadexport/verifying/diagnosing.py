"""Where an artifact that fell short parts from its reference.

What an artifact was made by is done again, step by step, on the images that changed most: the
first step that falls short there is where to look.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from vadexport.artifact import BUILD_FILE, REPORT_FOLDER, Artifact
from vadexport.backends.base import available_threads
from vadexport.backends.registry import opener
from vadexport.building.climbing import Climber, Graph
from vadexport.building.explaining import located
from vadexport.building.graphs import Graphs
from vadexport.building.inputs import BuildImages
from vadexport.contract import ANOMALY_MAP, Call, ImageArray
from vadexport.errors import BackendError, CheckError, VadexportError
from vadexport.images import decode
from vadexport.listening import Listener
from vadexport.machine import processor_name, tool_versions
from vadexport.sources import Source
from vadexport.targets import AUTO, Target
from vadexport.verification.applied import read_passes
from vadexport.verification.causes import map_cause
from vadexport.verification.drift import DriftUnit
from vadexport.verification.further_checks import PLANTED
from vadexport.verification.ladder import Ladder, Rung
from vadexport.verification.limits import Limits
from vadexport.verification.locating import locate, locate_compiled
from vadexport.verification.proxy import GRAPH_FILE, graph_folder
from vadexport.verification.records import ROUNDING, ImageRecord
from vadexport.verification.result import Diagnosis
from vadexport.verifying.arena import REFERENCE, Arena
from vadexport.verifying.options import VerifyOptions
from vadexport.verifying.planting import planted_image

#: Images that the steps are checked on.
_MOST_IMAGES: Final = 8
#: What the graph of an artifact is called as a step of its build.
_STEPS: Final = {"fp32": "graph", "fp16": "half", "int8": "quantised", AUTO: "quantised"}
_FIRST: Final = "the image that changed most"
_NO_PART: Final = (
    "no part of it shows where, run alone and fed what the graph gives: the backend shows none, or "
    "the fault shows only as it runs the whole"
)
#: Checks that a step of the build can have spoilt.
_PARITY: Final = frozenset(
    {"finite", "outputs", "drift", "flips", "spearman", "map", "auroc", PLANTED, "repeat"}
)


@dataclass(frozen=True)
class Subject:
    """An artifact that fell short.

    Attributes:
        artifact: itself.
        records: of the verified images.
        unit: of drift.
        again: of it against itself, where it did not say the same again.
        planted: of images with a defect planted in each, where it fell short on those alone: see
            `with_defects`. Then they are looked into, and not the images as they are.
    """

    artifact: Artifact
    records: Sequence[ImageRecord]
    unit: DriftUnit
    again: Sequence[ImageRecord] = ()
    planted: Sequence[ImageRecord] = ()

    @property
    def step(self) -> str:
        """What its graph is called as a step of its build."""
        manifest = self.artifact.manifest
        if manifest.target.precision in (AUTO, "fp32"):  # what was searched may be quantised alone
            quantised = any(rung["rung"] == "quantised" for rung in manifest.parity)
            return _STEPS[AUTO if quantised else "fp32"]
        return _STEPS[manifest.target.precision]

    @property
    def blind(self) -> frozenset[str]:
        """Names of images of which the reference itself has no finite score."""
        looked_at = self.planted or self.records
        return frozenset(record.name for record in looked_at if not record.reference_finite)

    def changed_most(self) -> list[tuple[str, int | None]]:
        """Names of its images, those that changed most first, and the number of the planted defect.

        Where it did not say the same again, images in turn by that and by drift. No more than half
        of those to be looked at have no finite scores: they say nothing of how far a step is off.
        Those of which the reference has none are left out.
        """
        blind = self.blind
        orders = [
            sorted(
                (record for record in records if record.name not in blind),
                key=lambda record: record.change(self.unit.value),
                reverse=True,
            )
            for records in (self.again, self.planted or self.records)
        ]
        broken = [record.name for record in orders[-1] if not record.finite][: _MOST_IMAGES // 2]
        finite = [[record.name for record in order if record.finite] for order in orders]
        mixed = (name for pair in zip_longest(*finite) for name in pair if name is not None)
        numbers = {record.name: number for number, record in enumerate(self.planted)}
        return [(name, numbers.get(name)) for name in dict.fromkeys([*broken, *mixed])]


@dataclass(frozen=True)
class _Steps:
    """Steps that all artifacts of a source share, done again."""

    climber: Climber
    graph: Graph
    rungs: tuple[Rung, ...]
    notes: tuple[str, ...]
    call: Call
    images: int


def explains(fallen: Sequence[str]) -> bool:
    """Whether steps of the build can explain checks of these names."""
    return not _PARITY.isdisjoint(fallen)


def on_planted_alone(fallen: Sequence[str]) -> bool:
    """Whether, of the checks that steps can explain, only that on planted defects fell short."""
    return _PARITY.intersection(fallen) == {PLANTED}


def diagnose(
    subjects: Sequence[Subject],
    source: Source,
    arena: Arena,
    options: VerifyOptions,
    listener: Listener,
) -> list[Diagnosis]:
    """Name the first step that falls short, for each, or say why that could not be found out.

    All are looked into on the same images, so that what they share is done once.
    """
    with TemporaryDirectory(prefix="vadexport-") as work:
        try:
            steps = _shared(subjects, Path(work), source, arena, options, listener)
        except VadexportError as error:  # it explains a failure, and must not be another one
            return [_unexplained(subject, error) for subject in subjects]
        found: list[Diagnosis] = []
        for subject in subjects:
            listener.step("diagnosis", len(found), len(subjects))
            try:
                found.append(_diagnosed(subject, steps, arena))
            except VadexportError as error:
                found.append(_unexplained(subject, error))
        listener.step("diagnosis", len(found), len(subjects))
    return found


def _of_the_build(subject: Subject) -> Diagnosis | None:
    """What the build's own ladder says."""
    short = next((rung for rung in subject.artifact.manifest.parity if not rung["held"]), None)
    if short is None:
        return None
    name = short["rung"]
    return Diagnosis(name, (f"the build had already fallen short at: {name}",), ())


def _unexplained(subject: Subject, error: VadexportError) -> Diagnosis:
    """What the build's own ladder says, and why there is no more."""
    before = _of_the_build(subject)
    line = f"where it begins could not be found out: {error}"
    if before is None:
        return Diagnosis(None, (line,), ())
    return Diagnosis(before.rung, (*before.lines, line), ())


def _diagnosed(subject: Subject, steps: _Steps, arena: Arena) -> Diagnosis:
    before = _of_the_build(subject)
    rungs, notes = _climbed(subject, steps, arena)
    first = next((rung for rung in rungs if not rung.held), None)
    most = _most_of_it(rungs) if first is None else None
    untold = _untold(subject) if first is not None and first.name == "compiled" else None
    words = list(before.lines) if before else []
    if first is None:
        these = "the image" if steps.images == 1 else f"the {steps.images} images"
        planted = ", with planted defects" if subject.planted else ""
        words.append(
            f"every step holds its limits of drift and maps on {these} that changed most{planted}: "
            "what fell short is judged over all images"
        )
        if most is not None:
            words.append(
                f"most of the drift arises at: {most.name} (the largest is "
                f"{most.figures.drift_max:.3g} drift units behind it)"
            )
        if subject.again:
            words.append("run again, each step said the same of them: scores change rarely")
    else:
        lines = "; ".join(check.line for check in first.checks if not check.held)
        named = f"{untold}: its graph was not kept" if untold else first.name
        about = [note for note in notes if note.startswith(f"{first.name} fell short")]
        where = ", on images with planted defects" if subject.planted else ""
        words += [f"the first step that falls short is: {named} ({lines}{where})", *about]
    if first is not None and first.name == "compiled":
        words += _elsewhere(subject.artifact)
    if subject.blind:
        count = "1 image" if len(subject.blind) == 1 else f"{len(subject.blind)} images"
        words.append(f"no step explains {count}: the reference itself has no finite score there")
    likely = _map_cause(subject, steps, arena)
    words += [f"likely: {likely}"] if likely else []
    blamed = first or most
    name = before.rung if before else untold or (blamed.name if blamed else None)
    return Diagnosis(name, tuple(words), tuple(rung.to_json() for rung in rungs))


def _most_of_it(rungs: Sequence[Rung]) -> Rung | None:
    """The step that adds most of the drift; None where that is rounding."""
    drifts = [0.0, *(rung.figures.drift_max for rung in rungs)]
    added, most = max(
        ((after - before, number) for number, (before, after) in enumerate(pairwise(drifts))),
        default=(0.0, 0),
    )
    return rungs[most] if added > ROUNDING else None


def _map_cause(subject: Subject, steps: _Steps, arena: Arena) -> str | None:
    """What is likely to have changed the anomaly map of the image that changed most."""
    name = str(subject.artifact.manifest.target)
    try:
        both = [arena.contest.inference(one)(steps.call) for one in (REFERENCE, name)]
    except BackendError:
        return None  # the rest stays known
    if any(ANOMALY_MAP not in outputs for outputs in both):
        return None
    return map_cause(*(outputs[ANOMALY_MAP][0, 0] for outputs in both))


def _untold(subject: Subject) -> str | None:
    """Which two steps cannot be told apart, where the graph between them was not kept."""
    if graph_folder(subject.artifact) is not None:
        return None
    if subject.step == "quantised":
        return "quantised or compiled"
    return "approximated or compiled" if _approximated(subject.artifact) else None


def _approximated(artifact: Artifact) -> bool:
    return any(rung["rung"] == "approximated" for rung in artifact.manifest.parity)


def _shared(
    subjects: Sequence[Subject],
    work: Path,
    source: Source,
    arena: Arena,
    options: VerifyOptions,
    listener: Listener,
) -> _Steps:
    """Trace, simplify and rewrite anew, each step checked."""
    contest, images = arena.contest, _changed_most(subjects, arena)
    ladder = Ladder(
        contest.inference(REFERENCE),
        images,
        arena.image_input,
        source.detector.thresholds,
        contest.preparation(REFERENCE),
        tolerant=True,
    )
    # The user's limits are the artifacts': steps on the way to another precision keep the defaults.
    limits = {}
    for name in {subject.artifact.manifest.target.precision for subject in subjects}:
        own = options.limits_of(name)
        limits[name] = Limits(max_drift=own.max_drift, max_map_drift=own.max_map_drift)
    threads = options.threads or available_threads()
    repeated = any(subject.again for subject in subjects)
    climber = Climber(ladder, subjects[0].unit, threads, limits, repeated=repeated)
    chosen = BuildImages(None, images, "the images that changed most", real=True)
    told = (read_passes(_report(subject.artifact)) for subject in subjects)
    left_out = next((passes.left_out for passes in told if passes is not None), ())
    graphs = Graphs(source, arena.image_input, chosen, climber, work, listener, left_out=left_out)
    graph = graphs.of(Target("onnxruntime", "fp32"))
    notes = tuple(note for note in graphs.notes if "fell short" in note or "was undone" in note)
    call, _ = next(arena.image_input.batches(images[:1]))
    return _Steps(climber, graph, (*graph.rungs, *graphs.undone), notes, call, len(images))


def _report(artifact: Artifact) -> Path:
    """What the build noted beside the artifact."""
    return artifact.folder / REPORT_FOLDER / BUILD_FILE


def _climbed(subject: Subject, steps: _Steps, arena: Arena) -> tuple[list[Rung], list[str]]:
    """Every step of an artifact that can be had, and where one begins to differ."""
    artifact, climber = subject.artifact, steps.climber
    target = artifact.manifest.target
    rungs, told = list(steps.rungs), []
    folder = graph_folder(artifact)
    graph = steps.graph.path if folder is None else folder / GRAPH_FILE
    if folder is not None:
        rungs.append(climber.climb_graph(subject.step, folder, target.precision))
        if not rungs[-1].held:
            files = steps.graph.path, graph
            told.append(located(subject.step, _FIRST, locate, *files, steps.call))
    if str(target) not in arena.proxied:
        opened = opener(target, artifact.folder, climber.threads)
        rungs.append(climber.climb("compiled", str(target), opened, target.precision))
        if all(rung.held for rung in rungs[:-1]) and not rungs[-1].held:
            compiled = graph, (artifact.folder, target), climber.threads, steps.call
            told.append(located("compiled", _FIRST, locate_compiled, *compiled, otherwise=_NO_PART))
    return rungs, [*steps.notes, *(line for line in told if line is not None)]


def _changed_most(subjects: Sequence[Subject], arena: Arena) -> ImageArray:
    """Pixels `[n, H, W, C]` of the images that changed most, of each artifact in turn."""
    orders = [subject.changed_most() for subject in subjects]
    most = max(_MOST_IMAGES, 2 * len(subjects))
    images = list(dict.fromkeys(chain.from_iterable(zip_longest(*orders))))
    chosen = [image for image in images if image is not None][:most]
    if not chosen:
        raise CheckError("the reference has no finite score of any image")
    return np.stack([_pixels(arena, *image) for image in chosen])


def _pixels(arena: Arena, name: str, number: int | None) -> ImageArray:
    if number is None:
        return decode(arena.files[name].path, arena.image_input.channels)
    return planted_image(arena, name, number)


def _elsewhere(artifact: Artifact) -> Iterator[str]:
    """What is not as it was when the artifact was compiled."""
    manifest = artifact.manifest
    here = tool_versions()
    changed = [
        f"{tool} {version}, here {here[tool]}"
        for tool, version in manifest.tools.items()
        if tool in here and here[tool] != version
    ]
    processor = processor_name()
    if not manifest.processor.startswith(processor):
        changed.append(f"{manifest.processor}, here {processor}")
    if changed:
        yield f"built with other tools or on another machine: {'; '.join(changed)}"
