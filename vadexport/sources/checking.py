"""Run a model that nobody described, and find out whether it can be a detector."""

import logging
import re
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from vadexport.errors import InputError, VadexportError
from vadexport.sources.outputs import Leaf, OutputMap, find_outputs, leaves_of, listed

#: Of an image's score alone and among others, relative to the largest value.
_TOLERANCE: Final = 1e-3
#: What errors say that another size of the images may mend.
_OF_SIZES: Final = re.compile(r"shape|size|dimension|channel|height|width|broadcast", re.IGNORECASE)
#: Where code lies that is not the user's: vadexport's, Python's, and installed packages'.
_OTHERS: Final = (
    Path(__file__).parents[1],
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
)
#: Layers that compute something else in training mode; their classes' names begin so.
_TRAINING_LAYERS: Final = (
    *("Dropout", "AlphaDropout", "FeatureAlphaDropout", "DropPath", "StochasticDepth"),
    *("BatchNorm", "SyncBatchNorm", "LazyBatchNorm"),
)


@dataclass(frozen=True)
class Measured:
    """What one call showed of a model.

    Attributes:
        outputs: which of its outputs are score and map.
        leaves: all of its outputs with their shapes, for readers.
        map_size: height and width of the map; None where there is none.
        batch: images that a call must have; None where any number goes.
    """

    outputs: OutputMap
    leaves: str
    map_size: tuple[int, int] | None
    batch: int | None


def measure(
    network: Callable[[Tensor], Any],
    images: Tensor,
    wanted: OutputMap | None,
    batch: int | None,
    mend: str,
) -> Measured:
    """Run `network` a few times, and check what comes of it.

    Args:
        network: maps preprocessed images to outputs of any structure.
        images: float32 [n, 3, h, w] that differ from each other; n is `batch`, or 2.
        wanted: which outputs to take; None finds out.
        batch: images that a call must have; None where that is not known.
        mend: what to do about a model in training mode, such as "call .eval() before …".

    Raises:
        InputError: its weights hold NaN, it fails, draws random numbers, is in training mode, gives
            values that are not finite, or gives neither score nor map.
    """
    check_weights(network)
    _refuse_training(network, mend)
    found, batch = _first_call(network, images, batch)
    images = images[: batch or 2]
    leaves = leaves_of(found)
    outputs = wanted or find_outputs(leaves, len(images))
    outputs.check(leaves, len(images))
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)  # elsewhere than the first call ended
        state = torch.random.get_rng_state()
        again = leaves_of(_run(network, images))
        draws = not torch.equal(state, torch.random.get_rng_state())
    _refuse_chance(leaves, again, mend)
    if draws:
        raise InputError(
            "the model draws random numbers, if always the same ones: no graph repeats PyTorch's, "
            "so draw them once and keep them as a buffer"
        )
    _refuse_non_finite(leaves, outputs)
    _refuse_company(network, images, outputs, batch, mend)
    anomaly_map = outputs.scores(found, len(images)).anomaly_map
    return Measured(
        outputs,
        listed(leaves, len(images)),
        None if anomaly_map is None else (anomaly_map.shape[-2], anomaly_map.shape[-1]),
        batch,
    )


def reason(error: BaseException) -> str:
    """The first line of an error's message, or the error itself where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)


def told(error: BaseException) -> str:
    """An error in one line, and where in a user's file it was raised."""
    frames = _own_frames(error)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    named = reason(error) if str(error).strip() else _line(error)
    return f"{type(error).__name__}: {named}{where}" if named else f"{reason(error)}{where}"


def _line(error: BaseException) -> str:
    """The line of a user's file that raised an error; empty for none."""
    frames = _own_frames(error)
    return frames[-1].line or "" if frames else ""


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Where an error passed through the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    return [
        frame
        for frame in frames
        if not frame.filename.startswith("<")
        and not any(map(Path(frame.filename).is_relative_to, _OTHERS))
    ]


def check_weights(network: Any) -> None:
    """Look at the weights, and at what fitting left, before anything runs.

    Raises:
        InputError: they have no values, or hold NaN; a single number may be NaN, for unset.
    """
    for name, value in _weights(network):
        if value.is_meta:
            raise InputError(
                f"the weights {name} are on PyTorch's device meta, where they have no values: load "
                "the trained ones"
            )
        if value.is_floating_point() and value.numel() > 1 and bool(value.isnan().any()):
            raise InputError(f"the weights {name} hold NaN: they are damaged; train or save again")


def _weights(network: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by the names that their owner knows."""
    if isinstance(network, nn.Module):
        for name, value in chain(network.named_parameters(), network.named_buffers()):
            yield name.removeprefix("module."), value


def _run(network: Callable[[Tensor], Any], images: Tensor) -> Any:
    try:
        with torch.inference_mode():
            return network(images)
    except VadexportError:
        raise
    except Exception as error:
        shape = ", ".join(map(str, images.shape))
        raise InputError(
            f"the model cannot take float32 [{shape}]: {told(error)}{_advice(network, error)}"
        ) from error


def _advice(network: Any, error: Exception) -> str:
    """What to do about a model that fails, as far as its weights and the error tell."""
    for name, value in _weights(network):
        if value.device.type != "cpu":
            return f"; its weights {name} are on device {value.device}: move it with .cpu() first"
        if value.is_floating_point() and value.dtype != torch.float32:
            dtype = str(value.dtype).removeprefix("torch.")
            return f"; its weights {name} are {dtype}: make them float32 with .float() first"
    if _OF_SIZES.search(f"{error} {_line(error)}"):
        return "; --resize and --image-size set another size"
    return ""


def _first_call(
    network: Callable[[Tensor], Any], images: Tensor, batch: int | None
) -> tuple[Any, int | None]:
    """Outputs, and the only batch that the model takes where it takes one alone."""
    if batch is not None:
        return _run(network, images[:batch]), batch
    try:
        return _run(network, images[:2]), None
    except InputError as error:
        try:
            return _run(network, images[:1]), 1
        except InputError:
            raise error from None


def training_layer(network: Any) -> str | None:
    """Name and class of the first layer in training mode that computes otherwise there."""
    if not isinstance(network, nn.Module):
        return None
    for name, module in network.named_modules():
        # A TorchScript layer bears the name of the class that it was made from.
        kind = getattr(module, "original_name", type(module).__name__)
        if module.training and kind.startswith(_TRAINING_LAYERS):
            return f"{name or 'it'} ({kind})"
    return None


def _refuse_training(network: Any, mend: str) -> None:
    layer = training_layer(network)
    if layer is not None:
        raise InputError(f"the model is in training mode, {layer} for one: {mend}")


def _refuse_chance(first: list[Leaf], second: list[Leaf], mend: str) -> None:
    name = first_unlike(first, second, 0.0)
    if name is not None:
        raise InputError(
            f"the model gives two values of {name} for one image: it is in training mode, "
            f"draws random numbers or keeps something from call to call; {mend}, seed what it "
            "draws, keep nothing"
        )


def first_unlike(first: list[Leaf], second: list[Leaf], tolerance: float) -> str | None:
    """The first output that two calls do not share; None where they agree.

    Args:
        first: outputs of one call.
        second: of the other.
        tolerance: of a difference, relative to the output's largest value; NaN equals NaN.
    """
    if len(first) != len(second):
        return "its outputs, of which there are others each time,"
    for (name, one), (_, other) in zip(first, second, strict=True):
        if one.shape != other.shape:
            return name
        values, others = (each.to_dense().to(torch.float64).nan_to_num() for each in (one, other))
        if values.numel() and bool((values - others).abs().max() > tolerance * values.abs().max()):
            return name
    return None


def _refuse_non_finite(leaves: list[Leaf], outputs: OutputMap) -> None:
    for name, value in leaves:
        if name in (outputs.score, outputs.map) and not value.isfinite().all():
            raise InputError(
                f"the model gives values of {name} that are not finite: its weights are damaged, "
                "or its images are scaled otherwise (--mean, --std)"
            )


def _refuse_company(
    network: Callable[[Tensor], Any],
    images: Tensor,
    outputs: OutputMap,
    batch: int | None,
    mend: str,
) -> None:
    """An image's score must not depend on the others of its call."""
    if batch == 1:
        return
    together = outputs.scores(_run(network, images), len(images))
    fewer = images[:1] if batch is None else images[:1].expand_as(images).contiguous()
    alone = outputs.scores(_run(network, fewer), len(fewer))
    for one, other in zip(together[:2], alone[:2], strict=True):
        if one is None or other is None:
            continue
        if float((one[0] - other[0]).abs().max()) > _TOLERANCE * float(one.abs().max()):
            raise InputError(
                "the score of an image depends on the other images of its call: the model is in "
                f"training mode (batch normalisation), or mixes images; {mend}"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back PyTorch's notes on formats, and on its own deprecated calls."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
