"""`vadexport inspect`."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vadexport.artifact import MANIFEST_FILE, Artifact, ProvenOn, find_artifacts, open_artifact
from vadexport.cli.console import Console, columns
from vadexport.cli.options import console_options, json_option
from vadexport.cli.source_options import is_artifact, source_options
from vadexport.config import SourceChoices
from vadexport.contract import ImageInput
from vadexport.inspecting import (
    Anatomy,
    artifact_anatomy,
    artifact_json,
    source_anatomy,
    source_json,
)
from vadexport.targets import all_targets
from vadexport.thresholds import Thresholds

if TYPE_CHECKING:
    from vadexport.sources import Source
    from vadexport.verification.applied import Passes

#: Rows of a table of operators.
_MOST_OPERATORS: Final = 12


@click.command("inspect")
@click.argument("location", metavar="SOURCE|ARTIFACT")
@click.option(
    "--graph",
    is_flag=True,
    help="Show the graph as well: parts, operators, precision of layers, passes. Of a SOURCE it is "
    "the float32 graph that `build` would make.",
)
@source_options
@json_option
@console_options
def command(
    console: Console, *, location: str, graph: bool, given: SourceChoices, as_json: bool
) -> None:
    """Say what a trained detector, or an artifact, is, takes and holds.

    SOURCE is a file, or `python:package.module:factory`, which runs that code.
    The files of an artifact are checked against its manifest.

    \b
    Example:
      vadexport inspect detector.safetensors
      vadexport inspect --graph artifact
    """
    described: list[dict[str, Any]]
    anatomies: list[Anatomy] = []
    if is_artifact(location, given):
        opened = [open_artifact(folder) for folder in find_artifacts(Path(location))]
        described = [
            artifact_json(one.folder, one.manifest) if as_json else _describe_artifact(one)
            for one in opened
        ]
        if graph:
            anatomies = [artifact_anatomy(one.folder) for one in opened]
    else:
        from vadexport.sources import open_source

        source = open_source(given.at(location).spec())
        described = [source_json(location, source) if as_json else describe_source(source)]
        if graph:
            anatomies = [source_anatomy(source)]
    if as_json:
        for facts, anatomy in zip(described, anatomies, strict=graph):
            facts.update(anatomy.to_json())
        console.result(json.dumps(described, indent=2))
    else:
        texts = [columns(list(facts.items())) for facts in described]
        if graph:
            pairs = zip(texts, map(_tables, anatomies), strict=True)
            texts = ["\n\n".join(pair) for pair in pairs]
        console.result("\n\n".join(texts))


def _tables(anatomy: Anatomy) -> str:
    """A graph's parts, its most frequent operators, and its passes."""
    parts = anatomy.parts
    rows: list[tuple[str, ...]] = [("part", "operators", "layers", "weights")]
    for part in parts:
        layers = ", ".join(f"{count} {precision}" for precision, count in part.layers.items())
        size = f"{part.weights / 1e6:.2f} MB"
        rows.append((part.name, str(sum(part.operators.values())), layers or "none", size))
    total = Counter({name: 0 for part in parts for name in part.operators})
    for part in parts:
        total.update(part.operators)
    shown = total.most_common(_MOST_OPERATORS)
    counts: list[tuple[str, ...]] = [("operator", *(part.name for part in parts))]
    counts += [(name, *(str(part.operators.get(name, "–")) for part in parts)) for name, _ in shown]
    if len(total) > len(shown):
        rest = [set(part.operators) - {name for name, _ in shown} for part in parts]
        sums = (
            sum(part.operators[name] for name in names)
            for part, names in zip(parts, rest, strict=True)
        )
        counts.append((f"{len(total) - len(shown)} others", *map(str, sums)))
    return "\n\n".join([columns(rows), columns(counts), _passes(anatomy.passes)])


def _passes(passes: "Passes | None") -> str:
    if passes is None:
        return "passes: no report of the build tells of them"
    lines = [("pass", "places", "brought")]
    lines += [(one.name, str(one.places), one.brought) for one in passes.applied]
    lines += [(name, "–", "left out") for name in passes.left_out]
    return columns(list(lines)) if len(lines) > 1 else "passes: none applied"


def describe_source(source: "Source") -> dict[str, str | int | float]:
    """All that is known of a source, in words."""
    detector = source.detector
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    return {
        "source": source.name,
        "kind": source.kind,
        "code": source.runs_code or "none has run",
        "family": detector.family,
        **detector.facts(),
        **({"parameters": f"{parameters:,}"} if parameters else {}),  # ONNX files have none
        "input": _input(detector.image_input),
        "preprocessing": ", ".join(map(str, detector.steps)) or "none",
        **_thresholds(detector.thresholds, has_map=detector.map_size is not None),
        "anomaly map": _map(detector.map_size),
        "sha256": source.sha256,
        "targets": ", ".join(map(str, all_targets())),
    }


def _thresholds(limits: Thresholds | None, *, has_map: bool) -> dict[str, str]:
    if limits is None:
        return {"threshold": "none: the detector makes no decisions"}
    found = {"threshold": f"raw score {limits.decides_above:.4f} ({limits.rule})"}
    if has_map:
        found["pixel threshold"] = f"{limits.pixel:.4f} of the map"
    return found


def _map(size: tuple[int, int] | None) -> str:
    return "none" if size is None else f"{size[0]}×{size[1]}"


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
        "anomaly map": _map(manifest.map_size),
        "threshold": _thresholds(manifest.thresholds, has_map=False)["threshold"],
        "calibration": f"{len(calibration.image_digests)} images" if calibration else "none",
        "drift unit": f"{manifest.drift_unit:.4f}, from {manifest.drift_unit_from}",
        "drift when built": _drift(drift, manifest.proven_on),
        "tools": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
        "built on": manifest.processor,
        "files": f"{MANIFEST_FILE} and "
        + ", ".join(f"{name} ({entry.size:,} bytes)" for name, entry in manifest.files.items()),
        "integrity": "every file is the one that was built",
    }


def _drift(largest: float | None, proven_on: ProvenOn) -> str:
    if largest is None:
        return "not measured"
    on = " (of its ONNX graph; itself it did not run)" if proven_on == "graph" else ""
    return f"{largest:.2e} at most{on}"


def _input(image_input: ImageInput) -> str:
    size = f"{image_input.height}×{image_input.width} pixels"
    return f"{image_input.dtype}, {size}, {'gray' if image_input.channels == 1 else 'RGB'}"
