"""The folder that `build` writes: model files and a manifest that accounts for each of them."""

from vadexport.artifact.folder import (
    BUILD_FILE,
    REPORT_FOLDER,
    Artifact,
    artifact_around,
    find_artifacts,
    open_artifact,
    read_manifest,
    write_manifest,
)
from vadexport.artifact.manifest import (
    MANIFEST_FILE,
    CalibrationEntry,
    FileEntry,
    Manifest,
    ProvenOn,
)
from vadexport.artifact.writing import Staging, check_room, file_digest, written_atomically

__all__ = [
    "BUILD_FILE",
    "MANIFEST_FILE",
    "REPORT_FOLDER",
    "Artifact",
    "CalibrationEntry",
    "FileEntry",
    "Manifest",
    "ProvenOn",
    "Staging",
    "artifact_around",
    "check_room",
    "file_digest",
    "find_artifacts",
    "open_artifact",
    "read_manifest",
    "write_manifest",
    "written_atomically",
]
