"""Read two artifacts or reports, and compare them."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from vadexport.artifact import MANIFEST_FILE, REPORT_FOLDER, Manifest, read_manifest
from vadexport.diffing.result import Change, ChangedImage, Diff, FolderDiff
from vadexport.errors import InputError
from vadexport.reporting.json_report import SCHEMA_VERSION
from vadexport.reporting.wording import FIGURES, shown
from vadexport.reporting.writing import LATENCY_FILE, PARITY_FILE

_LARGEST_REPORT: Final = 1 << 30
_FIGURES: Final = (
    ("auroc_reference", "image AUROC of the reference", ".4f"),
    ("auroc", "image AUROC", ".4f"),
    *FIGURES,
)
_MOST_IMAGES: Final = 20


@dataclass(frozen=True)
class Side:
    """What is known of one of the two.

    Attributes:
        path: as it was given.
        manifest: of an artifact; None for a report alone.
        parity: content of `parity.json`; None where it was not verified.
        latency: content of `latency.json`; None where it was not measured.
    """

    path: Path
    manifest: Manifest | None
    parity: dict[str, Any] | None
    latency: dict[str, Any] | None


def diff_folders(before: Path, after: Path) -> Diff | FolderDiff:
    """Compare what `diff` compares, or two folders that hold several of these.

    Raises:
        InputError: one folder holds several and the other one, or as `diff`.
    """
    first, second = _members(before), _members(after)
    if first is None and second is None:
        return diff(before, after)
    if first is None or second is None:
        several, names = (before, first) if second is None else (after, second)
        raise InputError(
            f"{several} holds several artifacts, the other one: compare it with one of "
            f"{', '.join(sorted(names or ()))}"
        )
    added = {name: read_side(second[name]) for name in sorted(second.keys() - first.keys())}
    return FolderDiff(
        pairs={name: diff(first[name], second[name]) for name in sorted(first.keys() & second)},
        removed=tuple(sorted(first.keys() - second.keys())),
        added=tuple(added),
        short=tuple(
            f"{name}: {line}"
            for name, side in added.items()
            for _, held, line in _checks(side)
            if not held
        ),
        unverified=tuple(name for name, side in added.items() if side.parity is None),
    )


def _members(path: Path) -> dict[str, Path] | None:
    """Folders of artifacts or reports in a folder that is neither; None where there are none."""
    if not path.is_dir() or any((path / name).exists() for name in (MANIFEST_FILE, PARITY_FILE)):
        return None
    found = {
        each.parent.name: each.parent
        for name in (MANIFEST_FILE, PARITY_FILE)
        for each in path.glob(f"*/{name}")
    }
    return found or None


def diff(before: Path, after: Path) -> Diff:
    """Compare two artifacts, report folders or `parity.json` files.

    Raises:
        InputError: one of them is neither, damaged, or of a newer vadexport.
    """
    first, second = read_side(before), read_side(after)
    old, new = _by_name(first), _by_name(second)
    images = sorted(_images(first, second), key=lambda one: (not one.decision, -abs(one.drift)))
    return Diff(
        build=tuple(_build_changes(first.manifest, second.manifest)),
        figures=tuple(_figure_changes(first, second)),
        images=tuple(
            one
            for number, one in enumerate(images)
            if one.decision or (one.drift and number < _MOST_IMAGES)
        ),
        shared=len(images),
        decisions=sum(one.decision for one in images),
        only_before=len(old.keys() - new.keys()),
        only_after=len(new.keys() - old.keys()),
        worse=tuple(_worse(first, second)),
        unverified=tuple(str(one.path) for one in (first, second) if one.parity is None),
    )


def read_side(path: Path) -> Side:
    """Read what is at `path`.

    Raises:
        InputError: nothing that can be compared, or it is damaged.
    """
    if path.is_file():
        return Side(path, None, _report(path), None)
    manifest = read_manifest(path) if (path / MANIFEST_FILE).exists() else None
    reports = path / REPORT_FOLDER if manifest is not None else path
    parity, latency = reports / PARITY_FILE, reports / LATENCY_FILE
    if manifest is None and not parity.exists():
        raise InputError(
            f"{path} is neither an artifact nor a report: it has no {MANIFEST_FILE} and no "
            f"{PARITY_FILE}"
            if path.exists()
            else f"{path} does not exist"
        )
    return Side(
        path,
        manifest,
        _report(parity) if parity.exists() else None,
        _report(latency) if latency.exists() else None,
    )


def _report(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_REPORT:
            raise InputError(f"{path} is larger than a report can be")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is no JSON") from None
    version = value.get("schema_version") if isinstance(value, dict) else None
    if type(version) is not int:
        raise InputError(f"{path} is no report of vadexport: it has no schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version}, this vadexport reads {SCHEMA_VERSION}: use the "
            "version that wrote it, or verify again"
        )
    found: dict[str, Any] = value
    return found


def _build_changes(before: Manifest | None, after: Manifest | None) -> Iterator[Change]:
    if before is None or after is None:
        return
    first, second = _facts(before), _facts(after)
    for name in dict.fromkeys((*first, *second)):
        old, new = first.get(name, "none"), second.get(name, "none")
        if old != new:
            yield Change(name, old, new)


def _facts(manifest: Manifest) -> dict[str, str]:
    """Everything of a manifest that a reader compares, in words."""
    image_input, thresholds, source = manifest.image_input, manifest.thresholds, manifest.source
    rung = manifest.parity[-1] if manifest.parity else {}
    return {
        "target": str(manifest.target),
        "source": f"{source.get('family')}, sha256 {source.get('sha256', '')[:16]}",
        "input": f"{image_input.dtype} {image_input.shape}",
        "map": str(manifest.map_size),
        "threshold": "none" if thresholds is None else f"{thresholds.image:.6g}",
        "drift unit": f"{manifest.drift_unit:.6g}",
        "calibration": "none" if manifest.calibration is None else manifest.calibration.sha256[:16],
        "drift when built": f"{rung.get('drift_max')}",
        "proven on": manifest.proven_on,
        "built on": manifest.processor,
        **{f"precision of {part}": kind for part, kind in manifest.precision.items()},
        **{f"version of {name}": version for name, version in manifest.tools.items()},
        **{
            f"file {name}": f"{entry.size:,} bytes, sha256 {entry.sha256[:16]}"
            for name, entry in manifest.files.items()
        },
    }


def _figure_changes(first: Side, second: Side) -> Iterator[Change]:
    old, new = _object(first, "figures"), _object(second, "figures")
    if old and new:
        for key, title, form in _FIGURES:
            change = Change(title, shown(old.get(key), form), shown(new.get(key), form))
            if change.before != change.after:
                yield change
    if first.latency and second.latency:
        pair = [_object_in(side.latency, "artifact") for side in (first, second)]
        medians = [shown(one.get("median_ms"), ".3g") for one in pair]
        if medians[0] != medians[1]:
            yield Change("median latency, ms", *medians)
        ratios = [_speedup(side.latency) for side in (first, second)]
        if ratios[0] != ratios[1]:
            yield Change("speed-up [95% interval]", *ratios)


def _speedup(latency: dict[str, Any] | None) -> str:
    found = _object_in(latency, "speedup")
    ratio, low, high = (shown(found.get(key), ".3g") for key in ("ratio", "low", "high"))
    return f"{ratio} [{low}–{high}]"


def _images(first: Side, second: Side) -> Iterator[ChangedImage]:
    old, new = _by_name(first), _by_name(second)
    unit = (first.parity or {}).get("drift_unit")
    scale = float(unit) if _is_number(unit) and unit > 0 else 1.0
    for name in old.keys() & new.keys():
        before, after = old[name]["raw"], new[name]["raw"]
        if not (_is_number(before) and _is_number(after)):
            continue
        drift = (after - before) / scale
        changed = old[name].get("label") != new[name].get("label")
        yield ChangedImage(name, before, after, drift, changed)


def _by_name(side: Side) -> dict[str, dict[str, Any]]:
    """Images, those without a finite score too."""
    images = (side.parity or {}).get("images", [])
    if not isinstance(images, list):
        raise InputError(f"{side.path}: {PARITY_FILE} is damaged: images is no list")
    return {
        one["name"]: one
        for one in images
        if isinstance(one, dict) and isinstance(one.get("name"), str) and "raw" in one
    }


def _worse(first: Side, second: Side) -> Iterator[str]:
    """Checks, and scores that are no longer finite; of a side without a report, all is new."""
    before = {name: (ok, line) for name, ok, line in _checks(first)}
    names = set()
    for name, ok, line in _checks(second):
        names.add(name)
        if not ok and before.get(name, (True, ""))[0]:  # a new check has nothing to excuse it
            yield line
    if second.parity is None:
        return
    for name, (_, line) in before.items():
        if name not in names:
            yield f"no longer checked: {name} (before: {line})"
    old, new = _by_name(first), _by_name(second)
    lost = [
        name
        for name in old.keys() & new.keys()
        if _is_number(old[name]["raw"]) and not _is_number(new[name]["raw"])
    ]
    if lost:
        yield f"{len(lost)} images no longer have a finite score, such as {min(lost)}"


def _checks(side: Side) -> Iterator[tuple[str, bool, str]]:
    checks = (side.parity or {}).get("checks", [])
    for one in checks if isinstance(checks, list) else []:
        if isinstance(one, dict):
            yield str(one.get("name")), one.get("held") is True, str(one.get("line"))


def _object(side: Side, key: str) -> dict[str, Any]:
    return _object_in(side.parity, key)


def _object_in(report: dict[str, Any] | None, key: str) -> dict[str, Any]:
    found = (report or {}).get(key)
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)
