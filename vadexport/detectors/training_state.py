"""The state of a training on disk: safetensors, facts in the header. Never a pickle."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vadexport.errors import InputError
from vadexport.files import written_whole

_HEADER_KEY = "vadexport-training"
_SCHEMA_VERSION = 1
_LARGEST_STEP = 2**31


@dataclass
class State:
    """How far a stage of training is.

    Attributes:
        digest: of all that decides the result.
        step: steps done.
        best_loss: lowest loss on the held-out images.
        best_step: when that was.
        stale: evaluations since then.
        finished: the stage is over; only its best weights are still needed.
        best: the module's state at that time.
    """

    digest: str
    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    stale: int = 0
    finished: bool = False
    best: dict[str, Tensor] = field(default_factory=dict)


class Tensors(NamedTuple):
    """What goes back into the module and into Adam.

    Attributes:
        model: state of the module.
        optimizer: Adam's state of each parameter by its number.
    """

    model: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]


def write_state(
    path: Path,
    state: State,
    model: Mapping[str, Tensor],
    optimizer: Mapping[int, Mapping[str, Tensor]],
) -> None:
    """Write a state; an old one is replaced only when the new one is whole.

    Raises:
        InputError: it cannot be written.
    """
    header = {
        "schema_version": _SCHEMA_VERSION,
        **{
            name: value for name, value in asdict(_without_tensors(state)).items() if name != "best"
        },
    }
    # Infinity is no JSON: before the first evaluation there is no best loss.
    header["best_loss"] = state.best_loss if math.isfinite(state.best_loss) else None
    named = {
        **{f"model/{name}": value for name, value in model.items()},
        **{f"best/{name}": value for name, value in state.best.items()},
        **{
            f"adam/{number}/{key}": value
            for number, moments in optimizer.items()
            for key, value in moments.items()
        },
    }
    # Clones, because safetensors refuses tensors that share memory.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in named.items()}
    try:
        with written_whole(path) as temporary:
            save_file(tensors, temporary, {_HEADER_KEY: json.dumps(header, sort_keys=True)})
    except (InputError, SafetensorError) as error:
        raise InputError(f"cannot keep the training's progress: {error}") from None


def read_state(path: Path, state: State) -> Tensors:
    """Fill `state`, whose digest says what it must be of, from what `write_state` wrote.

    Raises:
        InputError: the file is damaged, or of other images or another configuration; `state` is
            as it was then.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
            }
        header = json.loads(metadata[_HEADER_KEY])
        if header["schema_version"] != _SCHEMA_VERSION:
            raise InputError("it is of another version of vadexport")
        if header["digest"] != state.digest:
            raise InputError("it is of other images or another configuration")
        best_loss = header["best_loss"]
        loss = math.inf if best_loss is None else float(best_loss)
        step, best_step, stale = (_count(header[key]) for key in ("step", "best_step", "stale"))
        finished = bool(header["finished"])
        adam = _adam_state(tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"it is damaged: {error}") from None
    best = _below("best/", tensors)
    if finished and not best:
        raise InputError("it is damaged: finished without weights")
    state.step, state.best_step, state.stale = step, best_step, stale
    state.best_loss, state.finished, state.best = loss, finished, best
    return Tensors(_below("model/", tensors), adam)


def find_states(path: Path) -> list[Path]:
    """The files of all stages of the training whose state is kept at `path`."""
    return [each for each in path.parent.iterdir() if each.name.startswith(f"{path.name}-")]


def remove_states(path: Path) -> None:
    """Remove what `find_states` finds."""
    try:
        for each in find_states(path):
            each.unlink(missing_ok=True)
    except OSError:
        return  # left-overs take room, nothing else: the fit itself succeeded


def _without_tensors(state: State) -> State:
    return State(
        state.digest, state.step, state.best_loss, state.best_step, state.stale, state.finished
    )


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST_STEP:
        raise ValueError(f"{value!r} is no count")
    return value


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _adam_state(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _below("adam/", tensors).items():
        number, key = name.split("/", 1)
        state.setdefault(int(number), {})[key] = value
    return state
