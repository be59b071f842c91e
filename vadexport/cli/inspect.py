"""`vadexport inspect`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vadexport.artifact import MANIFEST_FILE, Artifact, find_artifacts, open_artifact
from vadexport.cli.console import Console, columns
from vadexport.cli.options import PATH, console_options, json_option
from vadexport.contract import ImageInput
from vadexport.inspecting import artifact_json, source_json
from vadexport.targets import all_targets

if TYPE_CHECKING:
    from vadexport.sources import Source


@click.command("inspect")
@click.argument("path", type=PATH, metavar="SOURCE|ARTIFACT")
@json_option
@console_options
def command(console: Console, *, path: Path, as_json: bool) -> None:
    """Say what a trained detector, or an artifact, is, takes and holds.

    The files of an artifact are checked against its manifest.

    \b
    Example:
      vadexport inspect detector.safetensors
      vadexport inspect artifact
    """
    described: list[dict[str, Any]]
    if path.is_dir():
        opened = [open_artifact(folder) for folder in find_artifacts(path)]
        described = [
            artifact_json(one.folder, one.manifest) if as_json else _describe_artifact(one)
            for one in opened
        ]
    else:
        from vadexport.sources import open_source

        source = open_source(path)
        described = [source_json(source) if as_json else _describe_source(source)]
    if as_json:
        console.result(json.dumps(described, indent=2))
    else:
        texts = [columns(list(facts.items())) for facts in described]
        console.result("\n\n".join(texts))


def _describe_source(source: "Source") -> dict[str, str | int | float]:
    detector = source.detector
    image_input, preprocessing = detector.image_input, detector.preprocessing.config
    limits = detector.thresholds
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    return {
        "source": str(source.path),
        "kind": f"{source.kind}, holds no code",
        "family": detector.family,
        **detector.describe(),
        **(
            {"training": "; ".join(stage.words for stage in detector.stages)}
            if detector.stages
            else {}
        ),
        "parameters": f"{parameters:,}",
        "input": _input(image_input),
        "network input": f"{preprocessing.size[0]}×{preprocessing.size[1]}, "
        f"mean {_numbers(preprocessing.mean)}, std {_numbers(preprocessing.std)}",
        "threshold": f"{limits.image:.4f} ({limits.rule})",
        "pixel threshold": f"{limits.pixel:.4f}",
        "sha256": source.sha256,
        "targets": ", ".join(map(str, all_targets())),
    }


def _describe_artifact(artifact: Artifact) -> dict[str, str]:
    manifest = artifact.manifest
    image_input, calibration = manifest.image_input, manifest.calibration
    batch = "any batch" if image_input.batch is None else f"batch {image_input.batch}"
    drift = manifest.parity[-1].get("drift_max") if manifest.parity else None
    return {
        "artifact": str(artifact.folder),
        "target": str(manifest.target),
        "precision": ", ".join(f"{part} {kind}" for part, kind in manifest.precision.items()),
        "built from": f"{manifest.source.get('family')} ({manifest.source.get('kind')}), "
        f"sha256 {manifest.source.get('sha256')}",
        "input": f"{_input(image_input)}, {batch}",
        "anomaly map": f"{manifest.map_size[0]}×{manifest.map_size[1]}",
        "threshold": f"{manifest.thresholds.image:.4f} ({manifest.thresholds.rule})",
        "calibration": f"{len(calibration.image_digests)} images" if calibration else "none",
        "drift unit": f"{manifest.drift_unit:.4f}, from {manifest.drift_unit_from}",
        "drift when built": f"{drift:.2e} at most" if drift is not None else "not measured",
        "tools": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
        "built on": manifest.processor,
        "files": f"{MANIFEST_FILE} and "
        + ", ".join(f"{name} ({entry.size:,} bytes)" for name, entry in manifest.files.items()),
        "integrity": "every file is the one that was built",
    }


def _input(image_input: ImageInput) -> str:
    size = f"{image_input.height}×{image_input.width} pixels"
    return f"{image_input.dtype}, {size}, {'gray' if image_input.channels == 1 else 'RGB'}"


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.3f}" for value in values)
