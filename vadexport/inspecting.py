"""`vadexport inspect --json`: what a detector or an artifact is, as data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadexport.artifact import Manifest
from vadexport.targets import all_targets

if TYPE_CHECKING:
    from vadexport.detectors.exportable import Exportable
    from vadexport.sources import Source


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


def artifact_json(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """An artifact: all that its manifest holds."""
    return {"artifact": str(folder), **json.loads(manifest.to_json())}
