"""Checkpoints of anomalib 2.0 to 2.6, in the layout of 2.7.

These versions pickled the pre- and the post-processor that a model was given as hyper-parameters,
and with them, over methods that Lightning had hung on them, the whole model and its metrics. 2.7
keeps their settings as plain data; its keys in a checkpoint start with `anomalib_`. The old objects
are read as data too: stand-ins take the place of every class and function that their pickle names,
so nothing of it runs, and what they hold is rebuilt by anomalib's own closed set of transforms.
"""

import pickle
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self

import torch

from vadexport.errors import InputError

PRE_PROCESSOR_CONFIG = "anomalib_pre_processor_config"
_POST_PROCESSOR_CONFIG = "anomalib_post_processor_config"
_HYPER_PARAMETERS = "hyper_parameters"
#: Parts of a module, which are no hyper-parameters.
COMPONENTS = frozenset({"pre_processor", "post_processor", "evaluator", "visualizer"})
_PRE_PROCESSOR = "anomalib.pre_processing.pre_processor.PreProcessor"
_POST_PROCESSOR = "anomalib.post_processing.post_processor.PostProcessor"
_POST_PROCESSOR_SETTINGS = (
    "enable_normalization",
    "enable_thresholding",
    "enable_threshold_matching",
    "image_sensitivity",
    "pixel_sensitivity",
)
#: What Lightning hangs on callbacks; through them a callback holds its whole module.
_OF_LIGHTNING = ("log", "log_dict")


class Recorded:
    """Stands for an object in a pickle: its class's name, arguments and state, none of its code."""

    path: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: dict[str, Any]

    def __new__(cls, *args: Any) -> Self:
        """Take what the pickle would call the class or function with."""
        made = super().__new__(cls)
        made.args, made.state = args, {}
        return made

    def __setstate__(self, state: Any) -> None:
        """Take what the pickle would set."""
        self.state = state if isinstance(state, dict) else {}


class _AsDict:
    """Stands for a class of dictionaries: the pickle fills a plain one."""

    def __new__(cls) -> Any:
        return {}


class _AsText:
    """Stands for a path."""

    def __new__(cls, *parts: str) -> Any:
        return str(PurePosixPath(*parts))


_PLAIN = {
    "lightning.fabric.utilities.data.AttributeDict": _AsDict,
    "pathlib.PosixPath": _AsText,
    "pathlib._local.PosixPath": _AsText,
    "pathlib.WindowsPath": _AsText,
    "pathlib._local.WindowsPath": _AsText,
}


def read_recorded(path: Path) -> dict[str, Any] | None:
    """A checkpoint whose components are `Recorded`; None where anything else is no plain data.

    What else is safe to load must be among PyTorch's safe globals.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(_stand_in(name), name) for name in names]
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, TypeError, ValueError, AttributeError):
        return None  # it builds something that is none of anomalib's, on stand-ins
    if not isinstance(found, dict) or not isinstance(found.get(_HYPER_PARAMETERS), dict):
        return None
    stored = found[_HYPER_PARAMETERS]
    rest = {name: value for name, value in stored.items() if name not in COMPONENTS}
    return None if _holds_recorded({**found, _HYPER_PARAMETERS: rest}) else found


def _stand_in(name: str) -> Any:
    return _PLAIN.get(name) or type(name.rpartition(".")[-1], (Recorded,), {"path": name})


def _holds_recorded(value: Any) -> bool:
    """Whether there is a stand-in, or the class of one, in containers that may hold themselves."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Recorded) or (isinstance(each, type) and issubclass(each, Recorded)):
            return True
        if isinstance(each, dict | list | tuple | set) and id(each) not in seen:
            seen.add(id(each))
            waiting.extend(_items(each))
    return False


def _items(container: Any) -> Iterator[Any]:
    yield from container
    if isinstance(container, dict):
        yield from container.values()


def modernised(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The checkpoint as anomalib 2.7 would have written it; itself where it is of 2.7 or later.

    Where a component is not given, versions before 2.7 store True and make their default as they
    load the checkpoint; so does 2.7, then.

    Raises:
        InputError: a component of a class that is not anomalib's own.
    """
    stored = checkpoint.get(_HYPER_PARAMETERS)
    if not isinstance(stored, dict) or not {"pre_processor", "post_processor"} <= set(stored):
        return checkpoint
    given = {name: stored[name] for name in sorted(COMPONENTS & set(stored))}
    made = dict(checkpoint)
    made["anomalib_components_enabled"] = {
        name: value is not None and value is not False for name, value in given.items()
    }
    # Neither the evaluator nor the visualizer changes a score.
    kept = {name: value for name, value in given.items() if name.endswith("_processor")}
    if isinstance(found := given["pre_processor"], Recorded):
        made[PRE_PROCESSOR_CONFIG] = {"transform": _transform(found, path)}
        del kept["pre_processor"]
    if isinstance(found := given["post_processor"], Recorded):
        made[_POST_PROCESSOR_CONFIG] = _post_processor(found, path)
        del kept["post_processor"]
    for value in kept.values():
        if isinstance(value, torch.nn.Module):  # its pickle was trusted
            for name in _OF_LIGHTNING:
                value.__dict__.pop(name, None)
    rest = {name: value for name, value in stored.items() if name not in COMPONENTS}
    return {**made, _HYPER_PARAMETERS: rest | kept}


def _transform(pre_processor: Recorded, path: Path) -> Any:
    """The specification of a recorded pre-processor's transform; None where it has none."""
    from anomalib.pre_processing.utils.spec import spec_to_transform

    if pre_processor.path != _PRE_PROCESSOR:
        raise _foreign(pre_processor.path, "pre-processor", path)
    state = pre_processor.state
    modules = state.get("_modules")
    transform = (modules if isinstance(modules, dict) else {}).get("transform")
    spec = _plain(state.get("transform") if transform is None else transform)
    try:
        spec_to_transform(spec)
    except (TypeError, ValueError) as error:
        raise _foreign(_unknown(spec) or str(error), "pre-processor's transform", path) from None
    return spec


def _plain(value: Any) -> Any:
    """Plain data of a value in a transform: specifications of transforms, values of enums."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if not isinstance(value, Recorded):
        return value
    if value.path.endswith(".InterpolationMode") and len(value.args) == 1:
        return value.args[0]
    if value.path == "builtins.getattr" and len(value.args) == 2:  # a member of an enum
        return str(value.args[1]).lower().replace("_", "-")
    settings = {
        name: _plain(each)
        for name, each in value.state.items()
        if not name.startswith("_") and name not in ("training", *_OF_LIGHTNING)
    }
    return {"class_path": value.path, "init_args": settings}


def _unknown(spec: Any) -> str | None:
    """The first class in a specification that is not of anomalib's closed set."""
    from anomalib.pre_processing.utils.spec import spec_to_transform

    if not isinstance(spec, dict):
        return None
    for each in spec["init_args"].get("transforms") or ():
        if found := _unknown(each):
            return found
    try:
        spec_to_transform({**spec, "init_args": {}})
    except (TypeError, ValueError) as error:
        return str(spec["class_path"]) if "Unsupported transform class" in str(error) else None
    return None


def _post_processor(found: Recorded, path: Path) -> dict[str, Any]:
    if found.path != _POST_PROCESSOR:
        raise _foreign(found.path, "post-processor", path)
    settings = {name: found.state[name] for name in _POST_PROCESSOR_SETTINGS if name in found.state}
    if any(not isinstance(value, bool | int | float) for value in settings.values()):
        raise _foreign("one with settings that are no numbers", "post-processor", path)
    return settings


def _foreign(name: str, what: str, path: Path) -> InputError:
    return InputError(
        f"{path} carries the {what} {name}, which cannot be rebuilt without running code: refused; "
        "--trust-pickle loads it, if you trust where it comes from"
    )


def renamed(state: dict[str, Any], model: str) -> dict[str, Any]:
    """The state by 2.7's names: Fastflow's networks had layers of padding before theirs."""
    if model != "Fastflow" or not any(".subnet.4." in name for name in state):
        return state
    return {
        name.replace(".subnet.1.", ".subnet.0.").replace(".subnet.4.", ".subnet.2."): value
        for name, value in state.items()
    }


#: Versions before 2.1 had other transforms by default, and no checkpoint tells its version.
_CHANGED_DEFAULTS = {
    "Patchcore": "cropped the middle 224×224 of 256×256, later ones do not crop",
    "Draem": "normalised, later ones do not",
    "Dsr": "normalised, later ones do not",
}
#: Hyper-parameters that tell versions with today's default.
_SINCE = {"Patchcore": "precision", "Draem": "dtd_dir"}


def settle_changes(module: Any, checkpoint: dict[str, Any], path: Path) -> None:
    """Give the module the default transform of the version that wrote the checkpoint.

    Raises:
        InputError: it cannot be told, or today's class computes other scores of the state.
    """
    stored = checkpoint.get(_HYPER_PARAMETERS) or {}
    name = type(module).__name__
    if name == "Supersimplenet" and "adapt_cls_features" not in stored:
        raise InputError(
            f"{path} is of a Supersimplenet before anomalib 2.3, whose network scored otherwise, "
            "in logits and from other features: train it again"
        )
    if stored.get("pre_processor") is not True or name not in _CHANGED_DEFAULTS:
        return
    if _SINCE.get(name) in stored:
        return
    if name == "Patchcore" and (cropped := _was_cropped(module, stored)) is not None:
        if cropped:
            module.pre_processor = module.configure_pre_processor((256, 256), (224, 224))
        return
    raise InputError(
        f"{path} does not hold its transform, the default of the anomalib that wrote it: 2.0's "
        f"{name} {_CHANGED_DEFAULTS[name]}. Load it by anomalib's {name}.load_from_checkpoint(path,"
        " pre_processor=PreProcessor(transform)), with the right one, and save it again by "
        "Trainer.save_checkpoint"
    )


def _was_cropped(module: Any, stored: dict[str, Any]) -> bool | None:
    """Whether Patchcore saw 224×224: its memory bank is a share of whole images' vectors."""
    found = {size: _may_have_seen(module, stored, size) for size in (224, 256)}
    return None if found[224] == found[256] else found[224]


def _may_have_seen(module: Any, stored: dict[str, Any], size: int) -> bool:
    share, network = stored.get("coreset_sampling_ratio"), module.model.feature_extractor
    with suppress(Exception), torch.inference_mode():  # networks that take no such size
        features = network(torch.zeros(1, 3, size, size))[stored["layers"][0]]
        vectors = features.shape[-2] * features.shape[-1]
        count = len(module.model.memory_bank)
        images = int(count / (vectors * share))
        return any(int(n * vectors * share) == count for n in range(max(images, 1), images + 3))
    return False
