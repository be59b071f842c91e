"""`manifest.json`: what an artifact is, and what must be in its folder.

It holds no clock, path or host name, so that the same build gives the same bytes.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final, Self

from vadexport.contract import OUTPUT_NAMES, ImageInput
from vadexport.errors import InputError
from vadexport.targets import Target

MANIFEST_FILE: Final = "manifest.json"
SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class FileEntry:
    """A file of the artifact: SHA-256 in hexadecimal, size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        target: what it was compiled for.
        image_input: the graph's input.
        map_size: height and width of `anomaly_map`.
        source: kind, family, file name and SHA-256 of what it was built from.
        thresholds: image and pixel threshold and the normalisation's range, raw score units.
        drift_unit: interquartile range of the reference's raw scores on normal images.
        drift_unit_from: which images those were.
        precision: of each part of the graph.
        calibration: number and digest of the calibration images; None without INT8.
        parity: the ladder: figures of each rung against the reference.
        tools: versions of the packages that made it.
        processor: that it was built on.
        files: every file of the artifact but the manifest and the report, by its posix path.
    """

    target: Target
    image_input: ImageInput
    map_size: tuple[int, int]
    source: dict[str, str]
    thresholds: dict[str, Any]
    drift_unit: float
    drift_unit_from: str
    precision: dict[str, str]
    calibration: dict[str, Any] | None
    parity: list[dict[str, Any]]
    tools: dict[str, str]
    processor: str
    files: dict[str, FileEntry] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text."""
        value = asdict(self)
        value["target"] = str(self.target)
        del value["image_input"]
        value["graph"] = {
            "input": self.image_input.to_json(),
            "outputs": list(OUTPUT_NAMES),
            "map_size": list(value.pop("map_size")),
        }
        value["schema_version"] = SCHEMA_VERSION
        return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `manifest.json`.

        Raises:
            InputError: no JSON, another schema version, a field that is missing or of another
                type, or a file outside the artifact.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{MANIFEST_FILE} is no JSON: {error}") from None
        if not isinstance(value, dict) or "schema_version" not in value:
            raise InputError(f"{MANIFEST_FILE} has no schema_version")
        if value["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{MANIFEST_FILE} has schema version {value['schema_version']!r}, this vadexport "
                f"reads {SCHEMA_VERSION}: build again, or use the version that wrote it"
            )
        try:
            return cls._from_value(value)
        except KeyError as error:
            raise InputError(f"{MANIFEST_FILE} lacks {error}") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{MANIFEST_FILE} is damaged: {error}") from None

    @classmethod
    def _from_value(cls, value: dict[str, Any]) -> Self:
        height, width = (int(size) for size in value["graph"]["map_size"])
        files = {
            _inside(name): FileEntry(str(entry["sha256"]), int(entry["size"]))
            for name, entry in value["files"].items()
        }
        unit = float(value["drift_unit"])
        thresholds = {key: value["thresholds"][key] for key in _THRESHOLD_KEYS}
        return cls(
            target=Target.parse(value["target"]),
            image_input=ImageInput.from_json(value["graph"]["input"]),
            map_size=(height, width),
            source=dict(value["source"]),
            thresholds=thresholds,
            drift_unit=unit,
            drift_unit_from=str(value["drift_unit_from"]),
            precision=dict(value["precision"]),
            calibration=value["calibration"],
            parity=list(value["parity"]),
            tools=dict(value["tools"]),
            processor=str(value["processor"]),
            files=files,
        )


_THRESHOLD_KEYS = ("image", "pixel", "minimum", "maximum", "rule")


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise InputError(f"{MANIFEST_FILE} names a file outside the artifact: {name!r}")
    return name
