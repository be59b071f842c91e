"""Detectors on disk: safetensors, the configuration in the header. Never a pickle."""

import json
import pickletools
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vadexport.contract import ImageInput
from vadexport.detectors.base import Detector
from vadexport.detectors.families import FAMILIES
from vadexport.detectors.preprocessing import PreprocessingConfig
from vadexport.detectors.stages import read_stages
from vadexport.errors import InputError
from vadexport.files import written_whole
from vadexport.thresholds import Thresholds

_HEADER_KEY = "vadexport"
_SCHEMA_VERSION = 1
#: Digests of images that a header may list; more would be no image set but an attack.
_MOST_IMAGES = 1_000_000
_DIGEST = re.compile(r"[0-9a-f]{16}")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
#: Opcodes and bytes that are looked at to tell an old pickle from anything else.
_OPCODES, _OPCODES_WITHIN = 8, 4096


def save_detector(detector: Detector, path: Path) -> None:
    """Write a fitted detector; an old file is replaced only when the new one is whole.

    Raises:
        InputError: the folder does not exist, cannot be written or is full.
    """
    header = {
        "schema_version": _SCHEMA_VERSION,
        "family": detector.family,
        "image_input": detector.image_input.to_json(),
        "preprocessing": detector.preprocessing.config.to_json(),
        "thresholds": detector.thresholds.to_json(),
        "config": detector.config(),
        "fitted_on": list(detector.fitted_on),
        "stages": [stage.to_json() for stage in detector.stages],
    }
    state = {name: value.contiguous() for name, value in detector.state_dict().items()}
    try:
        with written_whole(path) as temporary:
            save_file(state, temporary, {_HEADER_KEY: json.dumps(header, sort_keys=True)})
    except SafetensorError as error:
        raise InputError(f"cannot write {path}: {error}") from None


def load_detector(path: Path) -> Detector:
    """Read what `save_detector` wrote, in evaluation mode.

    Raises:
        InputError: no such file, another format, a pickle, truncated, of a newer version, or
            with weights that are missing, not finite, or of another shape or type.
    """
    header, state = _read(path)
    try:
        return _built(header, state).eval().requires_grad_(requires_grad=False)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _built(header: dict[str, Any], state: dict[str, torch.Tensor]) -> Detector:
    """The detector that the header describes, with the weights of `state`."""
    try:
        if header["schema_version"] != _SCHEMA_VERSION:
            raise InputError(
                f"it has schema version {header['schema_version']}, this vadexport reads "
                f"{_SCHEMA_VERSION}: fit again, or use the version that wrote it"
            )
        family, config = header["family"], header["config"]
        image_input = ImageInput.from_json(header["image_input"])
        preprocessing = PreprocessingConfig.from_json(header["preprocessing"])
        thresholds = Thresholds.from_json(header["thresholds"])
        fitted_on = _read_digests(header.get("fitted_on", []))
        stages = read_stages(header.get("stages", []))
    except (KeyError, TypeError) as error:
        raise InputError(f"it lacks {error} in its header") from None
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"it holds a detector of the unknown family {family!r}")
    detector_class: type[Detector] = FAMILIES[family].load(FAMILIES[family].detector)
    detector = detector_class.from_config(config, image_input, preprocessing, state)
    detector.normal_scores = torch.zeros(state.get("normal_scores", torch.zeros(0)).numel())
    for key, own in detector.state_dict().items():
        if key in state and state[key].dtype != own.dtype:
            raise InputError(f"the weights {key!r} are {state[key].dtype}, not {own.dtype}")
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise InputError(f"it does not fit its own configuration: {first}") from None
    detector.thresholds = thresholds
    detector.fitted_on, detector.stages = fitted_on, stages
    return detector


def _read_digests(value: Any) -> tuple[str, ...]:
    """Digests of the images it was fitted on; older checkpoints have none."""
    if type(value) is not list or len(value) > _MOST_IMAGES:
        raise InputError(f"the digests of its images are damaged: no list of ≤ {_MOST_IMAGES}")
    for each in value:
        if type(each) is not str or not _DIGEST.fullmatch(each):
            raise InputError("the digests of its images are damaged: one is not 16 hex digits")
    return tuple(value)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with path.open("rb") as file:
            start = file.read(_OPCODES_WITHIN)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    # A safetensors file starts with its header's length, which may look like a pickle, then "{".
    if start.startswith(_PICKLE_STARTS) and start[8:9] != b"{":
        raise _pickle_error(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if _is_old_pickle(start):
            raise _pickle_error(path) from None
        raise InputError(
            f"{path} is truncated, damaged or not a safetensors file: {error}"
        ) from None
    for name, value in state.items():
        if value.is_floating_point() and not value.to(torch.float32).isfinite().all():
            raise InputError(f"{path}: the weights {name!r} hold NaN or infinity")
    try:
        header = json.loads(metadata[_HEADER_KEY])
    except (KeyError, ValueError, RecursionError):
        raise InputError(
            f"{path} is a safetensors file, but no detector: its header has no vadexport entry"
        ) from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: the header's vadexport entry is not an object")
    return header, state


def _is_old_pickle(start: bytes) -> bool:
    """Whether a file begins with opcodes of pickle's protocols 0 and 1, which have no mark.

    They are read, never run. Other files may begin so by chance: ask only of one that is refused.
    """
    found = []
    try:
        for opcode, _, _ in pickletools.genops(start):
            found.append(opcode)
            if opcode.name == "STOP" or len(found) == _OPCODES:
                is_first_fit = not found[0].stack_before
                return is_first_fit and all(each.proto <= 1 for each in found)
    except ValueError:
        pass
    return False


def _pickle_error(path: Path) -> InputError:
    return InputError(
        f"{path} is a pickle (a PyTorch checkpoint), which can run code when it is loaded: "
        "refused; vadexport reads detectors that `vadexport fit` wrote (.safetensors), checkpoints "
        "of anomalib 2.x, and other sources (`vadexport build --help`)"
    )
