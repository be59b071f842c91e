"""`vadexport inspect --json`: what a detector or an artifact is, as data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadexport.artifact import Manifest
from vadexport.targets import all_targets

if TYPE_CHECKING:
    from vadexport.detectors.base import Detector
    from vadexport.sources import Source


def detector_json(detector: "Detector") -> dict[str, Any]:
    """A fitted detector: numbers as they are, sizes and shapes as lists of whole numbers."""
    preprocessing = detector.preprocessing.config
    return {
        "family": detector.family,
        "config": detector.config(),
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "fitted": {
            name: list(value.shape) for name, value in detector.named_buffers(recurse=False)
        },
        "fitted_on": len(detector.fitted_on),
        "stages": [stage.to_json() for stage in detector.stages],
        "input": detector.image_input.to_json(),
        "network_input": {
            "size": list(preprocessing.size),
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        },
        "thresholds": detector.thresholds.to_json(),
    }


def source_json(source: "Source") -> dict[str, Any]:
    """A detector on disk."""
    return {
        "source": str(source.path),
        "kind": source.kind,
        "sha256": source.sha256,
        "size": source.path.stat().st_size,
        **detector_json(source.detector),
        "targets": [str(target) for target in all_targets()],
    }


def artifact_json(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """An artifact: all that its manifest holds."""
    return {"artifact": str(folder), **json.loads(manifest.to_json())}
