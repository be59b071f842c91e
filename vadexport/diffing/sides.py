"""Read what is compared: artifacts, report folders, `parity.json` files."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from vadexport.artifact import (
    MANIFEST_FILE,
    REPORT_FOLDER,
    Manifest,
    file_digest,
    read_manifest,
)
from vadexport.errors import InputError
from vadexport.reporting.json_report import SCHEMA_VERSION
from vadexport.reporting.writing import LATENCY_FILE, PARITY_FILE

_LARGEST_REPORT: Final = 1 << 30


@dataclass(frozen=True)
class Side:
    """What is known of one of the two.

    Attributes:
        path: as it was given.
        manifest: of an artifact; None for a report alone.
        parity: content of `parity.json`; None where it was not verified.
        latency: content of `latency.json`; None where it was not measured.
        foreign: whether there is a report in the artifact, but of another one, by its manifest's
            digest: it is taken for none.
    """

    path: Path
    manifest: Manifest | None
    parity: dict[str, Any] | None
    latency: dict[str, Any] | None
    foreign: bool = False

    @property
    def verified(self) -> bool:
        """Whether a report says how it did."""
        return self.parity is not None


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
    report = _report(parity) if parity.exists() else None
    of = value_at(report, "sha256", "manifest")
    foreign = manifest is not None and of is not None and of != file_digest(path / MANIFEST_FILE)
    if foreign:
        return Side(path, manifest, None, None, foreign=True)
    return Side(path, manifest, report, _report(latency) if latency.exists() else None)


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


def value_at(report: Any, *keys: str) -> Any:
    """What a report holds below these keys, one in the other; None where it does not."""
    for key in keys:
        report = report.get(key) if isinstance(report, dict) else None
    return report


def object_at(report: Any, *keys: str) -> dict[str, Any]:
    """As `value_at`; empty where it is no object."""
    found = value_at(report, *keys)
    return found if isinstance(found, dict) else {}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a report is a number, and finite."""
    return type(value) in (int, float) and math.isfinite(value)
