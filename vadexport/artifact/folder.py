"""Artifacts on disk: find them, and check every byte before it is used."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from vadexport.artifact.manifest import MANIFEST_FILE, FileEntry, Manifest
from vadexport.artifact.writing import file_digest
from vadexport.errors import InputError

#: Figures of the build and of later verifications; not part of what is deployed.
REPORT_FOLDER: Final = "report"
#: In it, what the build noted; reports of verifications lie beside it.
BUILD_FILE: Final = "build.json"
_MANIFEST_LIMIT = 16 * 2**20


@dataclass(frozen=True)
class Artifact:
    """An artifact whose files are those that its manifest names.

    Attributes:
        folder: where it is.
        manifest: what `manifest.json` holds.
        sha256: of that file, in hexadecimal.
    """

    folder: Path
    manifest: Manifest
    sha256: str


def open_artifact(folder: Path) -> Artifact:
    """Read the manifest in `folder` and check that the files are the ones it names.

    Raises:
        InputError: no artifact, or a file is missing, changed or extra; the line names it.
    """
    manifest = read_manifest(folder)
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir())
        and path.relative_to(folder).parts[0] != REPORT_FOLDER
    }
    for name in sorted(present - manifest.files.keys() - {MANIFEST_FILE}):
        raise InputError(f"{folder / name} is not in the manifest: remove it, or build again")
    for name, entry in sorted(manifest.files.items()):
        _check(folder / name, entry)
    return Artifact(folder, manifest, file_digest(folder / MANIFEST_FILE))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in `folder`, without a look at the other files."""
    path = folder / MANIFEST_FILE
    if not folder.exists():
        raise InputError(f"{folder} does not exist")
    try:
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise InputError(f"{path} is larger than a manifest can be")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{folder} is no vadexport artifact: it has no {MANIFEST_FILE}") from None
    except NotADirectoryError:
        raise InputError(f"{folder} is no folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    try:
        return Manifest.from_json(text)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of what lies in `folder`; its `files` are taken from there."""
    files = {
        path.relative_to(folder).as_posix(): FileEntry(file_digest(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != REPORT_FOLDER
    }
    files.pop(MANIFEST_FILE, None)
    text = replace(manifest, files=files).to_json()
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def artifact_around(folder: Path) -> Path | None:
    """The artifact that a file in `folder` would be one too many of; None where there is none.

    In an artifact's own folder of reports it would not.

    Args:
        folder: that need not exist.
    """
    place = Path(os.path.realpath(folder))  # which, unlike `resolve`, follows no link for ever
    for around in (place, *place.parents):
        inside = place.relative_to(around).parts
        if inside[:1] != (REPORT_FOLDER,) and _owned_files(around):
            return around
    return None


def foreign_file(folder: Path) -> Path | None:
    """A file at `folder` that no build put there; None where all belong to artifacts.

    Any version's manifest says which files are its artifact's.
    """
    for artifact in [folder] if (folder / MANIFEST_FILE).exists() else sorted(folder.iterdir()):
        if not artifact.is_dir() or artifact.is_symlink():
            return artifact
        owned = _owned_files(artifact)
        for path in sorted(artifact.rglob("*")):
            inside = path.relative_to(artifact)
            if path.is_dir() and not path.is_symlink():
                continue
            if inside.parts[0] != REPORT_FOLDER and inside.as_posix() not in owned:
                return path
    return None


def _owned_files(folder: Path) -> set[str]:
    """Files that the manifest in `folder` names; others call files `manifest.json` too."""
    path = folder / MANIFEST_FILE
    try:
        if path.stat().st_size > _MANIFEST_LIMIT:
            return set()
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(value, dict) or not value.keys() >= {"schema_version", "target", "graph"}:
        return set()
    return {MANIFEST_FILE, *value.get("files", ())}


def find_artifacts(folder: Path) -> list[Path]:
    """The artifact folders at `folder`: itself, or those right below it, by name.

    Raises:
        InputError: there is none.
    """
    if (folder / MANIFEST_FILE).is_file():
        return [folder]
    if folder.is_dir():
        found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_FILE}"))
        if found:
            return found
        raise InputError(
            f"{folder} is no vadexport artifact: it has no {MANIFEST_FILE}, nor has a folder in it"
        )
    raise InputError(f"{folder} {'is no folder' if folder.exists() else 'does not exist'}")


def _check(path: Path, entry: FileEntry) -> None:
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{path} is in the manifest, but missing: build again")
    if path.stat().st_size != entry.size or file_digest(path) != entry.sha256:
        raise InputError(
            f"{path} was changed after it was built: its SHA-256 is not the manifest's"
        )
