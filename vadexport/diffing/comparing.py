"""Compare two artifacts or reports."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from vadexport.artifact import MANIFEST_FILE
from vadexport.diffing.changes import (
    build_changes,
    figure_changes,
    unlike_measurements,
    verified_changes,
)
from vadexport.diffing.result import ChangedImage, Diff, FolderDiff
from vadexport.diffing.sides import Side, is_number, read_side
from vadexport.errors import InputError
from vadexport.reporting.writing import PARITY_FILE
from vadexport.verification.records import ROUNDING

_MOST_IMAGES: Final = 20


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
        unverified=tuple(name for name, side in added.items() if not side.verified),
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
    built = tuple(build_changes(first.manifest, second.manifest))
    known = {change.name for change in built}
    images = sorted(_images(first, second), key=lambda one: (not one.decision, -abs(one.drift)))
    return Diff(
        build=built,
        verified=tuple(one for one in verified_changes(first, second) if one.name not in known),
        figures=tuple(figure_changes(first, second)),
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
        unverified=tuple(str(one.path) for one in (first, second) if not one.verified),
        notes=(*_foreign(first, second), *unlike_measurements(first, second)),
    )


def _foreign(*sides: Side) -> Iterator[str]:
    for one in sides:
        if one.foreign:
            yield f"the report in {one.path} is of another artifact, by its manifest's digest"


def _images(first: Side, second: Side) -> Iterator[ChangedImage]:
    old, new = _by_name(first), _by_name(second)
    unit = (first.parity or {}).get("drift_unit")
    scale = float(unit) if is_number(unit) and unit > 0 else 1.0
    for name in old.keys() & new.keys():
        before, after = old[name]["raw"], new[name]["raw"]
        if not (is_number(before) and is_number(after)):
            continue
        drift = (after - before) / scale
        changed = old[name].get("label") != new[name].get("label")
        changed = changed and (after == before or abs(drift) > ROUNDING)  # else a tie
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
        if is_number(old[name]["raw"]) and not is_number(new[name]["raw"])
    ]
    if lost:
        yield f"{len(lost)} images no longer have a finite score, such as {min(lost)}"


def _checks(side: Side) -> Iterator[tuple[str, bool, str]]:
    checks = (side.parity or {}).get("checks", [])
    for one in checks if isinstance(checks, list) else []:
        if isinstance(one, dict):
            yield str(one.get("name")), one.get("held") is True, str(one.get("line"))
