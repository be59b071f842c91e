"""`manifest.json`: what an artifact is, and what must be in its folder.

It holds no clock, path or host name, so that the same build gives the same bytes. Its last entry
is a digest of all others: it shows damage and edits by hand, and is no signature.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final, Literal, Self, get_args

from vadexport.contract import OUTPUT_NAMES, PRED_SCORE, RAW_SCORE, ImageInput
from vadexport.errors import InputError
from vadexport.targets import Target
from vadexport.thresholds import Thresholds

MANIFEST_FILE: Final = "manifest.json"
SCHEMA_VERSION: Final = 1
#: What parity was proven on: the artifact as it will run, or the ONNX graph behind it.
ProvenOn = Literal["artifact", "graph"]


@dataclass(frozen=True)
class FileEntry:
    """A file of the artifact: SHA-256 in hexadecimal, size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class CalibrationEntry:
    """The images that set INT8 ranges.

    Attributes:
        sha256: over the images' own digests, whatever their names and order.
        seed: of their choice.
        image_digests: of each image, as `image_digest` gives them, sorted.
    """

    sha256: str
    seed: int
    image_digests: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        target: what it was compiled for.
        image_input: the graph's input.
        outputs: names of the graph's outputs, in their order.
        map_size: height and width of `anomaly_map`; None where there is none.
        source: kind, family and SHA-256 of what it was built from.
        options: that the source was read with, as JSON values; they open the reference alike.
        thresholds: image and pixel threshold and the normalisation's range, raw score units; None
            where the detector makes no decisions.
        drift_unit: interquartile range of the reference's raw scores on normal images.
        drift_unit_from: which images those were.
        precision: of each part of the graph.
        calibration: the calibration images; None without INT8.
        parity: the ladder: figures of each rung against the reference.
        proven_on: `artifact`, or `graph` where the device that it runs on was not at hand: parity
            was then proven on the ONNX graph that it was compiled from.
        tools: versions of the packages that made it.
        processor: that it was built on.
        files: every file of the artifact but the manifest and the report, by its posix path.
    """

    target: Target
    image_input: ImageInput
    outputs: tuple[str, ...]
    map_size: tuple[int, int] | None
    source: dict[str, str]
    options: dict[str, Any]
    thresholds: Thresholds | None
    drift_unit: float
    drift_unit_from: str
    precision: dict[str, str]
    calibration: CalibrationEntry | None
    parity: list[dict[str, Any]]
    proven_on: ProvenOn
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
            "outputs": value.pop("outputs"),
            "map_size": value.pop("map_size"),
        }
        value["schema_version"] = SCHEMA_VERSION
        json.dumps(value, allow_nan=False)  # a figure that is none is a defect: ValueError
        return _sealed(value)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `manifest.json`.

        Raises:
            InputError: no JSON, another schema version, a digest that does not fit, a field that is
                missing or of another type, or a file outside the artifact.
        """
        try:
            value = json.loads(text)
            unchanged = isinstance(value, dict) and _sealed(value) == text
        except (ValueError, RecursionError) as error:
            raise InputError(f"{MANIFEST_FILE} is no JSON: {error}") from None
        if not isinstance(value, dict) or "schema_version" not in value:
            raise InputError(f"{MANIFEST_FILE} has no schema_version")
        if value["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{MANIFEST_FILE} has schema version {value['schema_version']!r}, this vadexport "
                f"reads {SCHEMA_VERSION}: build again, or use the version that wrote it"
            )
        if not unchanged:
            raise InputError(
                f"{MANIFEST_FILE} was changed after it was built: its digest does not fit"
            )
        try:
            return cls._from_value(value)
        except KeyError as error:
            raise InputError(f"{MANIFEST_FILE} lacks {error}") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{MANIFEST_FILE} is damaged: {error}") from None

    @classmethod
    def _from_value(cls, value: dict[str, Any]) -> Self:
        graph = value["graph"]
        unit = value["drift_unit"]
        if type(unit) not in (int, float) or not (0 < unit < math.inf):
            raise TypeError("drift_unit is no positive number")
        return cls(
            target=Target.parse(_text(value["target"], "target")),
            image_input=ImageInput.from_json(graph["input"]),
            outputs=_outputs(graph["outputs"]),
            map_size=_map_size(graph["map_size"]),
            source=_texts(value["source"], "source"),
            options=_object(value["options"], "options"),
            thresholds=None
            if value["thresholds"] is None
            else Thresholds.from_json(value["thresholds"]),
            drift_unit=float(unit),
            drift_unit_from=_text(value["drift_unit_from"], "drift_unit_from"),
            precision=_texts(value["precision"], "precision"),
            calibration=_calibration(value["calibration"]),
            parity=[_rung(rung) for rung in value["parity"]],
            proven_on=_proven_on(value["proven_on"]),
            tools=_texts(value["tools"], "tools"),
            processor=_text(value["processor"], "processor"),
            files={
                _inside(name): FileEntry(
                    _digest_text(entry["sha256"], 64), _whole(entry["size"], "size", at_least=0)
                )
                for name, entry in value["files"].items()
            },
        )


#: The entry that holds the digest of all others.
_SEAL: Final = "manifest_sha256"


def _sealed(value: dict[str, Any]) -> str:
    """The one text that entries have, with the digest of all others among them."""
    others = {key: entry for key, entry in value.items() if key != _SEAL}
    digest = hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
    return json.dumps({**others, _SEAL: digest}, indent=2, sort_keys=True) + "\n"


def _outputs(value: Any) -> tuple[str, ...]:
    if type(value) is not list or not {PRED_SCORE, RAW_SCORE} <= set(value) <= set(OUTPUT_NAMES):
        raise TypeError(f"the graph's outputs are not what they may be: {value!r}")
    return tuple(value)


def _map_size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    height, width = (_whole(size, "map_size", at_least=1) for size in value)
    return height, width


def _object(value: Any, name: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise TypeError(f"{name} is no object")
    return value


def _calibration(value: Any) -> CalibrationEntry | None:
    if value is None:
        return None
    return CalibrationEntry(
        sha256=_digest_text(value["sha256"], 64),
        seed=_whole(value["seed"], "seed", at_least=0),
        image_digests=tuple(_digest_text(digest, 16) for digest in value["image_digests"]),
    )


def _rung(value: Any) -> dict[str, Any]:
    """A rung's name, verdict and figures, which are numbers or None."""
    figures = {key: found for key, found in value.items() if key not in ("rung", "held")}
    _text(value["rung"], "a rung's name")
    if type(value["held"]) is not bool or not all(
        found is None or (type(found) in (int, float) and math.isfinite(found))
        for found in figures.values()
    ):
        raise TypeError("a figure of the parity ladder is no number")
    return dict(value)


def _proven_on(value: Any) -> ProvenOn:
    if value not in get_args(ProvenOn):
        raise TypeError(f"proven_on is {value!r}")
    found: ProvenOn = value
    return found


def _text(value: Any, name: str) -> str:
    if type(value) is not str:
        raise TypeError(f"{name} is no text")
    return value


def _texts(value: Any, name: str) -> dict[str, str]:
    if type(value) is not dict:
        raise TypeError(f"{name} is no object")
    return {key: _text(each, f"{name}.{key!r}") for key, each in value.items()}


def _whole(value: Any, name: str, *, at_least: int) -> int:
    if type(value) is not int or value < at_least:
        raise TypeError(f"{name} is no whole number of {at_least} or more")
    return value


def _digest_text(value: Any, length: int) -> str:
    if type(value) is not str or not re.fullmatch(rf"[0-9a-f]{{{length}}}", value):
        raise TypeError(f"{value!r} is no digest of {length} hexadecimal digits")
    return value


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise InputError(f"{MANIFEST_FILE} names a file outside the artifact: {name!r}")
    return name
