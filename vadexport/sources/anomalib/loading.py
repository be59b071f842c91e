"""Read a checkpoint of anomalib without running what it may carry, and without any download."""

import importlib
import inspect
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from vadexport.errors import InputError, MissingPackageError
from vadexport.sources.anomalib.old_checkpoints import (
    COMPONENTS,
    PRE_PROCESSOR_CONFIG,
    modernised,
    read_recorded,
    renamed,
    settle_changes,
)
from vadexport.sources.checking import reason
from vadexport.torchvision_operators import declare_torchvision_operators

_HYPER_PARAMETERS = "hyper_parameters"
_OTHERWISE = (
    "weights need the code of their model: build from python:package.module:factory, or save the "
    "model itself with torch.export.save (.pt2)"
)
#: Parameters of a module's class that are no hyper-parameters.
_COMPONENTS = COMPONENTS | {"self"}


def load_module(path: Path, model: str | None, *, trust_pickle: bool) -> Any:
    """Build the `AnomalibModule` of a checkpoint, in evaluation mode, all its state loaded.

    Args:
        path: of the checkpoint.
        model: name of its class, such as `Patchcore`; found out where it is None.
        trust_pickle: unpickle what may run code.

    Raises:
        InputError: no checkpoint of anomalib, truncated, one that carries code, of a class that
            cannot be told, or whose state does not fit the class.
        MissingPackageError: anomalib is not installed.
    """
    models = _anomalib_models()
    checkpoint = _read(path, models, trust_pickle=trust_pickle)
    if "state_dict" not in checkpoint or "pytorch-lightning_version" not in checkpoint:
        raise InputError(
            f"{path} is no checkpoint of anomalib: it holds no Lightning state; {_OTHERWISE}"
        )
    checkpoint = modernised(checkpoint, path)
    classes = _classes(models)
    if model is not None and model not in classes:
        raise InputError(f"--model {model} is no image model of anomalib: {', '.join(classes)}")
    candidates = [classes[model]] if model else _candidates(checkpoint, classes)
    errors = {}
    fitting = []
    for each in candidates:
        try:
            fitting.append(_built(each, checkpoint))
        except Exception as error:  # noqa: BLE001 - constructors of any model
            errors[each.__name__] = reason(error)
    if len(fitting) == 1:
        settle_changes(fitting[0], checkpoint, path)
        return fitting[0]
    if len(candidates) == 1:
        (name,) = errors
        how = "does not fit" if model else "seems to be of, but does not fit,"
        raise InputError(f"{path} {how} anomalib's {name}: {errors[name]}")
    if len(fitting) > 1:
        names = ", ".join(type(each).__name__ for each in fitting)
        raise InputError(f"{path} may be of several classes of anomalib ({names}): give --model")
    if not _is_anomalibs(checkpoint):
        raise InputError(
            f"{path} is a Lightning checkpoint of another project than anomalib; {_OTHERWISE}"
        )
    raise InputError(
        f"{path} does not say which model of anomalib it is, and its state fits none: if it is "
        "one, give --model, such as --model Patchcore"
    )


def _anomalib_models() -> Any:
    declare_torchvision_operators()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("anomalib.models.image")
    except ImportError as error:
        raise MissingPackageError(error.name or "anomalib", "anomalib") from None


def _classes(models: Any) -> dict[str, type[Any]]:
    """Every image model of the installed anomalib, by name."""
    from anomalib.models.components import AnomalibModule

    found = {name: getattr(models, name) for name in models.__all__}
    return {
        name: each
        for name, each in sorted(found.items())
        if inspect.isclass(each) and issubclass(each, AnomalibModule)
    }


def _read(path: Path, models: Any, *, trust_pickle: bool) -> dict[str, Any]:
    """The checkpoint's content, with nothing unpickled that could run code."""
    from anomalib.utils.serialization import anomalib_safe_globals

    extra = [kind for each in _classes(models).values() for kind in each.checkpoint_safe_globals()]
    try:
        with anomalib_safe_globals(extra=extra), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
            except pickle.UnpicklingError:
                found = None if trust_pickle else read_recorded(path)
                if found is None:
                    raise
    except pickle.UnpicklingError:
        raise _refusal(path, extra) from None
    except ImportError as error:
        raise InputError(f"{path} holds objects of code that is not installed: {error}") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is truncated or damaged: {reason(error)}") from None
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise InputError(
            f"{path} is no checkpoint of anomalib: it holds a value of type {kind}; {_OTHERWISE}"
        )
    return found


def _refusal(path: Path, known: list[Any]) -> InputError:
    """What a checkpoint would have run, as far as its pickle names it."""
    from anomalib.utils.serialization import anomalib_safe_globals

    try:
        with anomalib_safe_globals(extra=known):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001 - of a damaged file
        return InputError(f"{path} is truncated or damaged: its pickle cannot be read")
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return InputError(
        f"{path} carries objects that run code when they are loaded ({shown or 'unnamed'}): "
        "refused; --trust-pickle loads it, if you trust where it comes from"
    )


def _candidates(checkpoint: dict[str, Any], classes: dict[str, type[Any]]) -> list[type[Any]]:
    """Classes that the checkpoint may be of.

    Lightning's checkpoints do not name their class. Where one does (key `class_path`, or
    hyper-parameters with it), that is it; else one that takes just these hyper-parameters, for
    Lightning keeps them all; else, of another version of anomalib, one that takes them.
    """
    stored = dict(checkpoint.get(_HYPER_PARAMETERS) or {})
    named = str(stored.get("class_path", checkpoint.get("class_path", ""))).rsplit(".", 1)[-1]
    if named in classes:
        return [classes[named]]
    given = set(stored) - _COMPONENTS
    taken = {name: set(inspect.signature(each).parameters) for name, each in classes.items()}
    exact = [name for name, takes in taken.items() if takes - _COMPONENTS == given]
    wider = [name for name, takes in taken.items() if given <= takes]
    return [classes[name] for name in exact or wider] if _is_anomalibs(checkpoint) else []


def _is_anomalibs(checkpoint: dict[str, Any]) -> bool:
    """Whether there is a trace of anomalib in it; other Lightning projects leave none."""
    return any(str(key).startswith("anomalib") for key in checkpoint) or any(
        key.startswith(("post_processor.", "image_threshold", "normalization_metrics"))
        for key in checkpoint["state_dict"]
    )


def _built(model: type[Any], checkpoint: dict[str, Any]) -> Any:
    """The class's module with the checkpoint's state; raises what its constructor raises."""
    stored = dict(checkpoint.get(_HYPER_PARAMETERS) or {})
    known = set(inspect.signature(model).parameters)
    arguments = {name: value for name, value in stored.items() if name in known}
    if "pre_trained" in known:
        arguments["pre_trained"] = False  # its weights are in the checkpoint
    if (transform := _stored_transform(checkpoint)) is not None:
        # Some networks take their shape from it.
        arguments["pre_processor"] = _pre_processor(transform)
    with _no_downloads(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        module = model(**arguments)
    state = renamed(dict(checkpoint["state_dict"]), model.__name__)
    _size_buffers(module, state)
    module.on_load_checkpoint(checkpoint)
    _check_names(module, state)
    module.load_state_dict(state, strict=PRE_PROCESSOR_CONFIG in checkpoint)
    _detach(module)
    return module.eval().requires_grad_(requires_grad=False)


def _stored_transform(checkpoint: dict[str, Any]) -> Any:
    """The specification of the pre-processor's transform; None where there is none."""
    enabled = checkpoint.get("anomalib_components_enabled") or {}
    stored = checkpoint.get(PRE_PROCESSOR_CONFIG) or {}
    return stored.get("transform") if enabled.get("pre_processor", True) else None


def _pre_processor(transform: Any) -> Any:
    from anomalib.pre_processing import PreProcessor
    from anomalib.pre_processing.utils.spec import spec_to_transform

    return PreProcessor(spec_to_transform(transform))


def _detach(module: Any) -> None:
    """Let go of the gradients of what training computed, with which nothing can be copied."""
    for part in module.modules():
        for holder in (part.__dict__, part._buffers):  # noqa: SLF001 - PyTorch offers no other way
            for name, value in list(holder.items()):
                if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                    holder[name] = value.detach()


def _size_buffers(module: Any, state: dict[str, torch.Tensor]) -> None:
    """Give buffers and parameters that fitting sizes the shapes that they have in `state`."""
    for name, value in state.items():
        owner, _, leaf = name.rpartition(".")
        try:
            parent = module.get_submodule(owner)
        except AttributeError:
            continue
        own = parent._buffers.get(leaf)  # noqa: SLF001 - PyTorch offers no other way to them
        if own is not None and own.shape != value.shape:
            parent._buffers[leaf] = torch.zeros_like(value)  # noqa: SLF001


def _check_names(module: Any, state: dict[str, torch.Tensor]) -> None:
    """Raises ValueError where the state lacks something that scores depend on, or holds more."""
    own = set(module.state_dict())
    for found, what in ((own - set(state), "lacks"), (set(state) - own, "holds")):
        names = sorted(name for name in found if name.startswith(("model.", "post_processor.")))
        if names:
            raise ValueError(
                f"the checkpoint {what} {names[0]!r}: it is of another class, or of another "
                "anomalib; the version that wrote it can load it"
            )


#: Packages whose modules may have taken a function to download with by its name.
_PATCHED = ("timm", "torchvision", "torch", "anomalib", "huggingface_hub", "safetensors")

#: Where WinCLIP's module keeps the tag of the weights that open_clip would fetch.
_WINCLIP_TAG = "anomalib.models.image.winclip.torch_model.PRETRAINED"


class _NoWeights:
    """Stands for a file that is not downloaded; loading it changes nothing."""


@contextmanager
def _no_downloads() -> Iterator[None]:
    """Constructors make their networks without weights, which are in the checkpoint.

    Nor do they fetch what only training needs, such as images of textures.
    """
    import timm
    from anomalib.data.utils import download
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file
    from torch.hub import load_state_dict_from_url
    from torchvision.models import WeightsEnum

    create, load = timm.create_model, torch.nn.Module.load_state_dict

    def without_weights(name: str, *_pretrained: bool, **kwargs: Any) -> Any:
        return create(name, **{**kwargs, "pretrained": False})

    def load_unless_absent(module: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        return None if isinstance(state, _NoWeights) else load(module, state, *args, **kwargs)

    def absent(*_args: Any, **_kwargs: Any) -> _NoWeights:
        return _NoWeights()

    def load_file_unless_absent(file: Any, *args: Any, **kwargs: Any) -> Any:
        return file if isinstance(file, _NoWeights) else load_file(file, *args, **kwargs)

    functions: list[tuple[Any, Any]] = [
        (timm.create_model, without_weights),
        (download.download_and_extract, absent),
        (load_state_dict_from_url, absent),
        (hf_hub_download, absent),
        (load_file, load_file_unless_absent),
    ]
    with ExitStack() as stack:
        for function, replacement in functions:
            for place in _names_of(function):
                stack.enter_context(mock.patch(place, replacement))
        stack.enter_context(mock.patch.object(WeightsEnum, "get_state_dict", absent))
        stack.enter_context(mock.patch(_WINCLIP_TAG, None))
        stack.enter_context(
            mock.patch.object(torch.nn.Module, "load_state_dict", load_unless_absent)
        )
        yield


def _names_of(function: Any) -> list[str]:
    """Each name that a module knows the function by, `from timm import create_model` too."""
    return [
        f"{name}.{attribute}"
        for name, module in list(sys.modules.items())
        if name.split(".")[0] in _PATCHED
        for attribute, value in list(getattr(module, "__dict__", {}).items())
        if value is function and attribute.isidentifier()
    ]
