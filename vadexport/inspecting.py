"""`vadexport inspect`: what a detector or an artifact is, as data."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadexport.artifact import BUILD_FILE, REPORT_FOLDER, Manifest
from vadexport.targets import all_targets

if TYPE_CHECKING:
    from vadexport.detectors.exportable import Exportable
    from vadexport.sources import Source
    from vadexport.tracing.anatomy import Part
    from vadexport.verification.applied import Passes


def detector_json(detector: "Exportable") -> dict[str, Any]:
    """A trained detector: numbers as they are, sizes and shapes as lists of whole numbers."""
    from vadexport.detectors.steps import step_json

    return {
        "family": detector.family,
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "fitted": {
            name: list(value.shape) for name, value in detector.named_buffers(recurse=False)
        },
        "fitted_on": len(detector.fitted_on),
        "input": detector.image_input.to_json(),
        "preprocessing": [step_json(step) for step in detector.steps],
        "map_size": None if detector.map_size is None else list(detector.map_size),
        "thresholds": None if detector.thresholds is None else detector.thresholds.to_json(),
        "facts": detector.facts(),
        **detector.details(),
    }


def source_json(location: str, source: "Source") -> dict[str, Any]:
    """A trained detector, of whatever source, and where it lies."""
    return {
        "source": location,
        "kind": source.kind,
        "sha256": source.sha256,
        "size": source.size,
        "options": source.options,
        "runs_code": source.runs_code,
        **detector_json(source.detector),
        "targets": [str(target) for target in all_targets()],
    }


@dataclass(frozen=True)
class Anatomy:
    """A graph's parts, and the passes that it went through; None where nothing tells of them."""

    parts: "tuple[Part, ...]"
    passes: "Passes | None"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "parts": [part.to_json() for part in self.parts],
            "passes": None if self.passes is None else self.passes.to_json(),
        }


def artifact_anatomy(folder: Path) -> Anatomy:
    """Of an artifact's graph; the passes are those that its build's report tells of.

    Raises:
        MissingPackageError: it takes OpenVINO, which is not installed.
    """
    from vadexport.tracing.anatomy import anatomy_in
    from vadexport.verification.applied import read_passes

    return Anatomy(anatomy_in(folder), read_passes(folder / REPORT_FOLDER / BUILD_FILE))


def source_anatomy(source: "Source") -> Anatomy:
    """Of the float32 graph that a build would make of a source, before it is checked.

    Raises:
        InputError: it cannot be traced.
    """
    from vadexport.passes import DEFAULT_PASSES, apply_passes
    from vadexport.tracing.anatomy import anatomy_of
    from vadexport.tracing.graph import simplify, trace
    from vadexport.verification.applied import AppliedPass, Passes

    image_input = replace(source.detector.image_input, batch=1)
    simplified = simplify(trace(source.detector, image_input)).model
    model, places = apply_passes(simplified, DEFAULT_PASSES)
    applied = tuple(AppliedPass(name, count) for name, count in places.items() if count)
    return Anatomy(anatomy_of(model), Passes(applied))


def artifact_json(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """An artifact: all that its manifest holds."""
    return {"artifact": str(folder), **json.loads(manifest.to_json())}
