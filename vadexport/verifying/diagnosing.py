"""Where an artifact that fell short parts from its reference.

What an artifact was made by is done again, step by step, on the images that changed most: the
first step that falls short there is where to look.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from vadexport.artifact import Artifact
from vadexport.backends.base import available_threads
from vadexport.backends.child import Child
from vadexport.backends.registry import opener
from vadexport.building.graphs import Climber, Graphs
from vadexport.building.inputs import BuildImages
from vadexport.errors import VadexportError
from vadexport.images import decode
from vadexport.listening import Listener
from vadexport.machine import processor_name, tool_versions
from vadexport.sources import Source
from vadexport.verification.drift import DriftUnit
from vadexport.verification.ladder import Ladder, Rung
from vadexport.verification.locating import locate
from vadexport.verification.parity import ImageRecord
from vadexport.verification.proxy import GRAPH_FILE
from vadexport.verification.result import Diagnosis
from vadexport.verifying.arena import REFERENCE, Arena
from vadexport.verifying.options import VerifyOptions

#: Images that the steps are checked on.
_MOST_IMAGES: Final = 8
#: What the graph of an artifact is called as a step of its build.
_STEPS: Final = {"fp32": "graph", "fp16": "half", "int8": "quantised"}
#: Checks that a step of the build can have spoilt.
_PARITY: Final = frozenset(
    {"finite", "outputs", "drift", "flips", "spearman", "map", "auroc", "synthetic"}
)


@dataclass(frozen=True)
class Subject:
    """What is looked into.

    Attributes:
        artifact: that fell short.
        source: of its reference.
        records: of the verified images.
        unit: of drift.
    """

    artifact: Artifact
    source: Source
    records: Sequence[ImageRecord]
    unit: DriftUnit


def explains(fallen: Sequence[str]) -> bool:
    """Whether steps of the build can explain checks of these names."""
    return not _PARITY.isdisjoint(fallen)


def diagnose(
    subject: Subject, arena: Arena, options: VerifyOptions, listener: Listener
) -> Diagnosis | None:
    """Name the first step that falls short; None where that could not be found out."""
    short = next((rung for rung in subject.artifact.manifest.parity if not rung["held"]), None)
    built = "" if short is None else f"the build had already fallen short at: {short['rung']}"
    try:
        rungs, notes = _climbed(subject, arena, options, listener)
    except VadexportError:  # it explains a failure, and must not be another one
        return Diagnosis(short["rung"], (built,), ()) if short else None
    first = next((rung for rung in rungs if not rung.held), None)
    words = [built] if built else []
    if first is None:
        words.append(
            f"every step holds the limits of its precision on the {_count(subject)} that changed "
            "most: what fell short is stricter, or a sum over all images"
        )
    else:
        lines = "; ".join(check.line for check in first.checks if not check.held)
        words += [f"the first step that falls short is: {first.name} ({lines})", *notes]
    if first is not None and first.name == "compiled":
        words += _elsewhere(subject.artifact)
    name = short["rung"] if short else first.name if first else None
    return Diagnosis(name, tuple(words), tuple(rung.to_json() for rung in rungs))


def _count(subject: Subject) -> str:
    count = min(len(subject.records), _MOST_IMAGES)
    return "1 image" if count == 1 else f"{count} images"


def _climbed(
    subject: Subject, arena: Arena, options: VerifyOptions, listener: Listener
) -> tuple[list[Rung], list[str]]:
    """Every step that can be had, and what is known of where one begins to differ."""
    artifact = subject.artifact
    target = artifact.manifest.target
    name = str(target)
    contest = arena.contest
    images = _changed_most(subject, arena)
    ladder = Ladder(
        contest.inference(REFERENCE),
        images,
        arena.image_input,
        subject.source.detector.thresholds,
        contest.preparation(REFERENCE),
    )
    climber = Climber(ladder, subject.unit, options.threads or available_threads())
    with TemporaryDirectory(prefix="vadexport-") as work:
        chosen = BuildImages(None, images, "the images that changed most", real=True)
        graphs = Graphs(subject.source, arena.image_input, chosen, climber, Path(work), listener)
        graph = graphs.of("fp32")
        rungs = list(graph.rungs)
        if graphs.undone is not None:
            rungs.append(graphs.undone)
        notes = [note for note in graphs.notes if "fell short" in note]
        if (artifact.folder / GRAPH_FILE).exists():
            step = _STEPS[target.precision]
            rungs.append(climber.climb_graph(step, artifact.folder, target.precision))
            if not rungs[-1].held and not notes:
                call, _ = next(arena.image_input.batches(images[:1]))
                with Child("comparison of two steps") as child:
                    found = child.run(locate, graph.path, artifact.folder / GRAPH_FILE, call)
                notes += [str(found)] if found else []
    if name not in arena.proxied:
        opened = opener(target, artifact.folder, climber.threads)
        rungs.append(climber.climb("compiled", name, opened, target.precision))
    return rungs, notes


def _changed_most(subject: Subject, arena: Arena) -> np.ndarray:
    """Pixels of the images, `[n, H, W, C]`: those that are not finite, then by drift and by map."""

    def change(record: ImageRecord) -> tuple[bool, float]:
        drift = abs(record.raw - record.reference_raw) / subject.unit.value
        maps = (record.map_max or 0.0) / (record.map_range or 1.0)
        return (not record.finite or record.flipped, max(drift, maps) if record.finite else 0.0)

    chosen = sorted(subject.records, key=change, reverse=True)[:_MOST_IMAGES]
    channels = arena.image_input.channels
    return np.stack([decode(arena.files[record.name].path, channels) for record in chosen])


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
