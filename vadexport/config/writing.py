"""Write a `vadexport.toml` with comments, to start from."""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from vadexport.config.choices import FACTORY, SourceChoices
from vadexport.errors import InputError
from vadexport.terminal import printable

_PREPROCESS: Final = ("resize", "interpolation", "antialias", "crop", "mean", "std")
_SOURCE: Final = ("model", "image_size", "camera", "outputs", "threshold", "pixel_threshold")

_REST: Final = """
[calibration]
# Normal IMAGES that set INT8 ranges and check every step. INT8 needs them, and every source but a
# detector of `vadexport fit`: the spread of their scores is the unit of drift.
# images = "images/train"

[build]
# Folder of the artifact; with several targets, of an artifact for each.
output = "artifact"
# `vadexport doctor` lists those that work here.
targets = ["openvino:fp32"]
# Images a call of the graph; "dynamic" for any number.
batch = 1
# "float-nchw" takes what anomalib's own inferencers feed instead of the camera's bytes.
input_layout = "nhwc"
# threads = 4
# Time that each auto target may take to find the layers that must stay in float.
# search_minutes = 10.0
# Graph passes that are not applied; docs/passes.md names them.
# no_pass = ["map-as-matrices"]
# Rewrites that move scores, within the limits of the precision, or within so many drift units.
# approximate = true

# Of TensorRT's builder; docs/tensorrt.md has them all.
# [build.tensorrt]
# batches = [1, 8, 32]     # smallest, most usual and largest, of a dynamic batch
# workspace_mb = 2048      # most GPU memory that one layer may use beside its tensors

[verify]
# IMAGES that neither training nor calibration has seen.
# images = "images/test"

# Of `vadexport verify`, for all targets. The first four, and that of AUROC, have defaults that
# depend on the precision; what stands here replaces them for every one, looser or not.
[limits]
# max_drift = 0.001        # of an image, in drift units
# max_flips = 0.0          # fraction of decisions that differ
# max_map_drift = 0.01     # of an anomaly map, as a fraction of the maps' range
# min_spearman = 0.99      # rank correlation of raw scores
# min_speedup = 3.0        # over the reference
# max_latency_ms = 20.0    # of the median of one call
# min_auroc_delta = -0.002 # image AUROC minus the reference's
# max_size_mb = 50.0       # of the artifact's files
# max_memory_mb = 500.0    # peak of a process that runs the artifact

# For targets of one precision: fp32, fp16, int8 or auto.
# [limits.int8]
# max_drift = 0.5
"""
_EXAMPLE: Final = """
# What was done to images in training; each step is left out where it is not given.
# [source.preprocess]
# resize = [256, 256]
# interpolation = "bilinear"
# antialias = true
# crop = [224, 224]
# colour_order = "rgb"
# mean = [0.485, 0.456, 0.406]
# std = [0.229, 0.224, 0.225]
"""


def config_text(
    file: str,
    choices: SourceChoices,
    proposals: SourceChoices,
    facts: Mapping[str, object],
    *,
    preprocesses: bool,
) -> str:
    """The text of a file that builds a source.

    Args:
        file: its name, for the commands that the text shows.
        choices: that the file makes; the location as the file has it.
        proposals: those that it names in comments, where `choices` leaves them open.
        facts: of the source, for readers.
        preprocesses: whether the source brings its preprocessing and takes no other.

    Raises:
        InputError: a text is one that TOML cannot hold.
    """
    lines = [
        "# A build and its check:",
        *(f"#   {printable(command)}" for command in commands(file, choices)),
        "# Relative paths start from this file's folder. docs/configuration.md explains every key.",
        "",
        "# What `vadexport inspect` found:",
        *(f"#   {printable(f'{name}: {value}')}" for name, value in facts.items()),
        "[source]",
        *_source(choices, proposals),
    ]
    preprocess = list(_preprocess(choices))
    if preprocess:
        lines += ["", "[source.preprocess]", *preprocess]
    example = "" if preprocess or preprocesses else _EXAMPLE
    return "\n".join(lines) + "\n" + example + _REST


def commands(file: str, choices: SourceChoices) -> tuple[str, str]:
    """How to build with a file, and to verify; what may run code is said there each time."""
    location = choices.location or ""
    code = shlex.quote(location) if location.startswith(FACTORY) else None
    use = f"--config {shlex.quote(file)}{' --trust-pickle' * choices.trust_pickle}"
    build = f"vadexport build {code} {use}" if code else f"vadexport build {use}"
    verify = f"vadexport verify --reference {code} {use}" if code else f"vadexport verify {use}"
    return build, verify


def location_in(folder: Path, location: str) -> str:
    """A source's location for a file that lies in `folder`; absolute ones and code stay as is."""
    if location.startswith(FACTORY) or Path(location).is_absolute():
        return location
    path = Path(location)
    # A folder may be a link, from which `..` leads elsewhere; a file's name is kept if it is one.
    real = Path(os.path.realpath(path.parent)) / path.name
    return os.path.relpath(real, os.path.realpath(folder))


def toml_value(value: Any) -> str:
    """A value as TOML writes it.

    Raises:
        InputError: a text is no Unicode, such as the name of a file that is not in UTF-8.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case tuple():
            return f"[{', '.join(map(toml_value, value))}]"
        case str():
            return f'"{"".join(map(_escaped, value))}"'
        case _:
            return repr(value)


def _source(choices: SourceChoices, proposals: SourceChoices) -> Iterator[str]:
    location = choices.location or ""
    if location.startswith(FACTORY):
        yield "# location: code to run is named on the command line, not in a file."
    else:
        yield f"location = {toml_value(location)}"
    for name in _SOURCE:
        made, proposed = getattr(choices, name), getattr(proposals, name)
        if made is not None:
            yield f"{name} = {toml_value(made)}"
        elif proposed is not None:
            yield f"# {name} = {toml_value(proposed)}"


def _preprocess(choices: SourceChoices) -> Iterator[str]:
    for name in _PREPROCESS:
        value = getattr(choices, name)
        if value is not None:
            yield f"{name} = {toml_value(value)}"
    if choices.bgr is not None:
        yield f"colour_order = {toml_value('bgr' if choices.bgr else 'rgb')}"


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    if "\ud800" <= char <= "\udfff":
        raise InputError("a name that is no Unicode text cannot stand in a vadexport.toml")
    return f"\\U{ord(char):08x}"
