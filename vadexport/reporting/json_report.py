"""`parity.json` and `latency.json`: all that a verification found, for machines.

Strict JSON has no NaN and no infinity: they are written as the strings "NaN", "Infinity" and
"-Infinity".
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from vadexport.verification.identity import Identity
from vadexport.verification.latency import Speedup
from vadexport.verification.parts import Parts
from vadexport.verification.records import ImageRecord
from vadexport.verification.result import Verification
from vadexport.verification.searched import FoundSearch
from vadexport.verification.throughput import Throughput
from vadexport.verification.unjudged import unjudged

SCHEMA_VERSION: Final = 1


def parity_json(v: Verification) -> dict[str, Any]:
    """Verdict, figures, limits, checks and every image.

    Drifts are in drift units, `drift_unit` and all scores and map differences of an image in raw
    score units; `map_max` and `map_mean` of `figures` are fractions of the mean range of the maps.
    `seen_before` names the images that trained the detector and that calibrated the artifact.
    `unjudged` says of limits that are set and have no check why they have none, by their names.
    `sha256` says to the byte what the report is of, and `size_mb` counts 10^6 bytes.
    """
    return _strict_dict(
        {
            "schema_version": SCHEMA_VERSION,
            **_which(v),
            "held": v.held,
            "threshold": v.threshold,
            "drift_unit": v.drift_unit,
            "drift_unit_from": v.drift_unit_from,
            "figures": asdict(v.figures),
            "evidence": None if v.evidence is None else asdict(v.evidence),
            "planted": None if v.planted is None else asdict(v.planted),
            "limits": asdict(v.limits),
            "checks": [asdict(check) for check in v.checks],
            "unjudged": unjudged(v.limits, v.checks, v.figures, timed=v.latency is not None),
            "images": [_image(record, v.drift_unit) for record in v.records],
            "ladder": v.ladder,
            "diagnosis": None if v.diagnosis is None else asdict(v.diagnosis),
            "search": None if v.search is None else _search(v.search),
            "environment": v.environment,
            "warnings": v.warnings,
            "seen_before": dict(v.seen_before),
        }
    )


def latency_json(v: Verification) -> dict[str, Any] | None:
    """Latency of artifact and reference with every sample; None where it was not measured."""
    if v.latency is None:
        return None
    return _strict_dict(
        {
            "schema_version": SCHEMA_VERSION,
            **_which(v),
            "batch": v.latency.batch,
            "speedup": _speedup(v.latency.speedup),
            "speedup_over_compiled": _speedup(v.latency.over_compiled),
            "parts": None if v.latency.parts is None else _parts(v.latency.parts),
            "images_per_s": v.latency.artifact.images_per_s(v.latency.batch),
            "throughput": _throughput(v.latency.throughput),
            "reference_throughput": _throughput(v.latency.reference_throughput),
            "aa_floor": v.latency.artifact.floor,
            "artifact": asdict(v.latency.artifact),
            "reference": asdict(v.latency.reference),
            "compiled": None if v.latency.compiled is None else asdict(v.latency.compiled),
            "environment": v.environment,
        }
    )


def as_text(report: Mapping[str, Any]) -> str:
    """The text of a file."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _which(v: Verification) -> dict[str, Any]:
    return {
        "target": v.target,
        "artifact_name": v.artifact_name,
        "source_name": v.source_name,
        "proven_on": v.proven_on,
        "sha256": _digests(v.identity),
        "size_mb": v.identity.megabytes,
    }


def _digests(found: Identity) -> dict[str, Any]:
    return {
        "manifest": found.manifest,
        "files": found.files,
        "source": found.source,
        "reference": found.reference,
        "images": found.images,
    }


def _search(found: FoundSearch) -> dict[str, Any]:
    """What it chose, and the speed-up of that or of what was refused; `build.json` has the rest."""
    built, best = found.built, found.best
    gain = None if best is None else best.speedup
    return {
        "words": found.words,
        "shipped": found.shipped,
        "layers": found.layers,
        "float_layers": found.layers if built is None else len(built.float_layers),
        "float_type": "fp32" if built is None else built.float_type,
        "speedup": None if gain is None else asdict(gain),
        "finished": found.finished,
    }


def _throughput(found: Throughput | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _parts(found: Parts) -> dict[str, Any]:
    return {
        **asdict(found),
        "inference_ms": found.inference_ms,
        "together_ms": found.together_ms,
    }


def _speedup(found: Speedup | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "name": found.name,
        "baseline": found.baseline,
        "ratio": found.ratio.value,
        "low": found.ratio.low,
        "high": found.ratio.high,
        "confidence": 0.95,
    }


def _image(record: ImageRecord, drift_unit: float) -> dict[str, Any]:
    return {
        **asdict(record),
        "drift": abs(record.raw - record.reference_raw) / drift_unit,
        "flipped": record.flipped,
        "finite": record.finite,
    }


def _strict_dict(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): _strict(one) for key, one in value.items()}


def _strict(value: Any) -> Any:
    """The same in types that JSON has."""
    if isinstance(value, Mapping):
        return _strict_dict(value)
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    if isinstance(value, np.generic):
        return _strict(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)
