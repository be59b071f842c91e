"""Read `vadexport.toml`: every key is known, every value of the kind that its key wants.

What the file says is not trusted: its size is bounded, and it cannot have code run.
"""

import glob
import os
import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from vadexport.backends.tensorrt.settings import TensorRTSettings
from vadexport.config import kinds
from vadexport.config.choices import (
    CAMERAS,
    FACTORY,
    INTERPOLATIONS,
    LimitChoices,
    SourceChoices,
)
from vadexport.config.kinds import Kind, WrongValueError, shown
from vadexport.errors import InputError
from vadexport.targets import ALL_PRECISIONS, Target

if TYPE_CHECKING:
    from vadexport.contract import Layout

#: How a graph may take its images: the names of `vadexport.contract.Layout`.
LAYOUTS: Final = ("nhwc", "float-nchw")
#: Many times what a file holds that names every key and target.
MAX_BYTES: Final = 64 * 1024

_AT_LEAST_0: Final = kinds.number(0)
_ABOVE_0: Final = kinds.number(above=0)

_LIMITS: Final[dict[str, Kind]] = {
    "max_drift": _AT_LEAST_0,
    "max_flips": kinds.number(0, 1),
    "max_map_drift": _AT_LEAST_0,
    "min_spearman": kinds.number(-1, 1),
    "min_speedup": _ABOVE_0,
    "max_latency_ms": _ABOVE_0,
    "min_auroc_delta": kinds.number(-1, 1),
    "max_size_mb": _ABOVE_0,
    "max_memory_mb": _ABOVE_0,
}

#: Every table and key; a table in another has that one's name before a dot.
SCHEMA: Final[dict[str, dict[str, Kind]]] = {
    "source": {
        "location": kinds.TEXT,
        "model": kinds.TEXT,
        "image_size": kinds.SIZE,
        "camera": kinds.one_of(*CAMERAS),
        "outputs": kinds.TEXT,
        "threshold": kinds.number(),
        "pixel_threshold": kinds.number(),
    },
    "source.preprocess": {
        "resize": kinds.SIZE_OR_SIDE,
        "interpolation": kinds.one_of(*INTERPOLATIONS),
        "antialias": kinds.FLAG,
        "crop": kinds.SIZE,
        "mean": kinds.numbers(),
        "std": kinds.numbers(above=0),
        "colour_order": kinds.one_of("rgb", "bgr"),
    },
    "calibration": {"images": kinds.TEXT},
    "build": {
        "output": kinds.TEXT,
        "targets": kinds.TARGETS,
        "batch": kinds.BATCH,
        "input_layout": kinds.one_of(*LAYOUTS),
        "threads": kinds.whole(kinds.MAX_THREADS),
        "search_minutes": _ABOVE_0,
        "no_pass": kinds.TEXTS,
        "approximate": kinds.FLAG_OR_ABOVE_0,
    },
    "build.tensorrt": {
        field.name: kinds.tensorrt(field.name) for field in fields(TensorRTSettings)
    },
    "verify": {"images": kinds.TEXT},
    "limits": _LIMITS,
    **{f"limits.{precision}": _LIMITS for precision in ALL_PRECISIONS},
}

_WILDCARD: Final = re.compile(r"[*?[]")


@dataclass(frozen=True)
class BuildTable:
    """The table `[build]`; None is the command's default."""

    output: Path | None = None
    targets: tuple[Target, ...] | None = None
    batch: int | Literal["dynamic"] | None = None
    input_layout: "Layout | None" = None
    threads: int | None = None
    search_minutes: float | None = None
    no_pass: tuple[str, ...] | None = None
    approximate: bool | float | None = None


@dataclass(frozen=True)
class Config:
    """What a file holds; paths are as the commands take them, from the folder they run in.

    Attributes:
        source: where the trained detector is, and how to read it.
        calibration: IMAGES.
        build: what to build.
        verify: IMAGES.
        limits: of a verification.
        tensorrt: settings of its builder, by their name in `TensorRTSettings`.
    """

    source: SourceChoices = field(default_factory=SourceChoices)
    calibration: str | None = None
    build: BuildTable = field(default_factory=BuildTable)
    verify: str | None = None
    limits: LimitChoices = field(default_factory=LimitChoices)
    tensorrt: dict[str, Any] = field(default_factory=dict)


def read_config(file: Path) -> Config:
    """Read a `vadexport.toml`.

    Raises:
        InputError: it cannot be read, is no TOML, or holds something unknown or wrong.
    """
    tables = _tables(_Place(file), _parsed(file))
    preprocess = dict(tables["source.preprocess"])
    order = preprocess.pop("colour_order", None)
    bgr = None if order is None else order == "bgr"
    source = SourceChoices(**tables["source"], **preprocess, bgr=bgr)
    lacking = source.lacking()
    if lacking is not None:
        name, needed = lacking
        raise InputError(f"{file}: [source.preprocess] {name} means nothing without {needed}")
    if source.location is not None:
        if source.location.startswith(FACTORY):
            raise InputError(
                f"{file}: [source] location names code to run, which is not taken from a file: "
                f"give SOURCE {source.location} on the command line"
            )
        source = source.at(str(file.parent / source.location))
    build = BuildTable(**tables["build"])
    if build.output is not None:
        build = replace(build, output=file.parent / build.output)
    return Config(
        source,
        _images(tables["calibration"], file.parent),
        build,
        _images(tables["verify"], file.parent),
        _limits(tables),
        _from(file.parent, tables["build.tensorrt"]),
    )


@dataclass(frozen=True)
class _Place:
    """Where in a file something is, for errors."""

    file: Path
    table: str = ""

    def __str__(self) -> str:
        return f"{self.file}: [{self.table}]" if self.table else f"{self.file}:"

    def inside(self, name: str) -> "_Place":
        return _Place(self.file, f"{self.table}.{name}" if self.table else name)


def _parsed(file: Path) -> dict[str, Any]:
    """The file's content as TOML has it."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{file} is no vadexport.toml: it has more than {MAX_BYTES // 1024} KiB")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # Windows' editors write such a mark
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (at byte {error.start + 1})") from None
    except RecursionError:
        raise InputError(f"{file} is no vadexport.toml: its lists are nested too deep") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file} is not TOML: {error}") from None
    except ValueError:  # of Python's own: it takes no number of more than 4300 digits
        raise InputError(f"{file} is no vadexport.toml: a number has too many digits") from None


def _tables(top: _Place, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The values of every table of the schema, checked."""
    found: dict[str, dict[str, Any]] = {}
    for table, keys in SCHEMA.items():
        place, values = top, content
        for name in table.split("."):
            values = values.get(name, {})
            place = place.inside(name)
            if type(values) is not dict:
                raise InputError(f"{place} must be a table, not {shown(values)}")
        inner = {name.rpartition(".")[2] for name in SCHEMA if name.rpartition(".")[0] == table}
        found[table] = {
            name: _value(place, name, value, keys)
            for name, value in values.items()
            if name not in inner
        }
    for name, value in content.items():
        if name not in SCHEMA:
            wrong = _unknown_table if type(value) is dict else _unknown_key
            raise InputError(wrong(top, name))
    return found


def _value(place: _Place, name: str, value: Any, keys: dict[str, Kind]) -> Any:
    if name == "trust_pickle":
        raise InputError(
            f"{place} trust_pickle is not taken from a file, which could then have its own code "
            "run: give --trust-pickle on the command line"
        )
    if name not in keys:
        raise InputError(_unknown_key(place, name))
    try:
        return keys[name].take(value)
    except WrongValueError as error:
        said = str(error)
        raise InputError(
            f"{place} {name}: {said}"
            if said
            else f"{place} {name} must be {keys[name].wanted}, not {shown(value)}"
        ) from None


def _unknown_key(place: _Place, name: str) -> str:
    """What is wrong with a key that no table, or not this one, has."""
    where = f"in [{place.table}]" if place.table else "before any table"
    said = f"{place.file}: unknown key {shown(name)} {where}"
    elsewhere = [table for table, keys in SCHEMA.items() if name in keys]
    if elsewhere:
        return f"{said}: it belongs into [{elsewhere[0]}]"
    tables = [place.table] if place.table else SCHEMA
    known = [key for table in tables for key in SCHEMA[table]]
    known += [table.rpartition(".")[2] for table in SCHEMA if table.rpartition(".")[0] in tables]
    return f"{said}; {_nearest(name, known)}"


def _unknown_table(place: _Place, name: str) -> str:
    known = [table for table in SCHEMA if "." not in table]
    return f"{place.file}: unknown table [{name[:40]}]; {_nearest(name, known)}"


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name[:64], known, n=1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"


def _limits(tables: dict[str, dict[str, Any]]) -> LimitChoices:
    found = {precision: tables[f"limits.{precision}"] for precision in ALL_PRECISIONS}
    return LimitChoices(tables["limits"], {name: table for name, table in found.items() if table})


def _from(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings whose path starts from the file's folder."""
    if "timing_cache" in settings:
        settings = {**settings, "timing_cache": folder / settings["timing_cache"]}
    return settings


def _images(table: dict[str, Any], folder: Path) -> str | None:
    """IMAGES, from the file's folder on; only what the file says itself can be a pattern."""
    text: str | None = table.get("images")
    if text is None:
        return None
    path = folder / text
    if _WILDCARD.search(text) and not os.path.lexists(path):
        return str(Path(glob.escape(str(folder))) / text)
    return str(path)
