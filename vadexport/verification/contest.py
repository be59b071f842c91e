"""The reference and what is held against it, each in a child process of its own."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from vadexport.backends.base import Execution, RunnerOpener, outputs_of
from vadexport.backends.child import Child
from vadexport.backends.cuda import GpuState
from vadexport.contract import Call, ImageInput, Outputs
from vadexport.errors import BackendError, VadexportError
from vadexport.images import ImageFile, load_images
from vadexport.listening import Listener
from vadexport.verification.latency import LatencyFigures, Stopwatch, measure, speedup

if TYPE_CHECKING:
    from vadexport.backends.pytorch import PyTorchRunner

_T = TypeVar("_T")

#: Different calls that are timed, one after the other, ...
_TIMED_CALLS: Final = 16
#: ... or fewer, where so many bytes hold no more: each process of a contestant has its own.
_TIMED_BYTES: Final = 64_000_000
#: Rounds where nobody says how many: as many as there is time for, in seconds.
_MOST_ROUNDS, _FEWEST_ROUNDS, _MEASURING_S = 100, 10, 60.0


class ContestantError(BackendError):
    """A contestant crashed, timed out or failed.

    Args:
        contestant: its name.
        reason: in words.
    """

    def __init__(self, contestant: str, reason: str) -> None:
        super().__init__(reason)
        self.contestant = contestant


@contextmanager
def blamed(contestant: str) -> Iterator[None]:
    """Say of what fails in here that it is this contestant's failure."""
    try:
        yield
    except BackendError as error:
        raise ContestantError(contestant, str(error)) from None


class Contest:
    """Contestants that run the same calls.

    Args:
        stack: closes the children.
        openers: of each contestant's runner, by its name.
        calls: of the graph, that are timed.

    Raises:
        ContestantError: here and by every method, where a contestant fails.
    """

    def __init__(
        self, stack: ExitStack, openers: Mapping[str, RunnerOpener], calls: Sequence[Call]
    ) -> None:
        self._stack = stack
        self._openers = dict(openers)
        self._calls = calls
        self._children = {name: self._open(name) for name in openers}

    def add(self, name: str, opener: RunnerOpener) -> None:
        """Open another one."""
        self._openers[name] = opener
        self._children[name] = self._open(name)

    def inference(self, name: str) -> Callable[[Call], Outputs]:
        """Inference of a contestant."""
        return partial(_apply, name, self._children[name], _infer)

    def preparation(self, name: str) -> Callable[[Call], NDArray[np.float32]]:
        """Preprocessing of a contestant that runs in PyTorch."""
        return partial(_apply, name, self._children[name], _prepare)

    def gpu_state(self, name: str) -> GpuState | None:
        """State of the GPU that a contestant runs on; None on the processor."""
        return _apply(name, self._children[name], Stopwatch.gpu_state)

    def time(
        self,
        names: Collection[str],
        rounds: int | None,
        listener: Listener,
        *,
        twice: Collection[str] = (),
    ) -> dict[str, LatencyFigures]:
        """Latency of some contestants, interleaved.

        Args:
            names: of those that are timed.
            rounds: how many; None for as many as there is time for.
            listener: told of each.
            twice: those of them that are timed against themselves, in a second process: what is
                called twice as often as others stays warmer than they do.
        """
        children = {name: self._children[name] for name in names}
        children |= {_again(name): self._open(name) for name in twice}
        owners = {_again(name): name for name in twice}
        ask = {
            name: partial(_apply, owners.get(name, name), child) for name, child in children.items()
        }
        for each in ask.values():
            each(Stopwatch.take, self._calls)
        warm = {name: each(Stopwatch.warm_up) for name, each in ask.items()}
        contestants = {name: partial(each, Stopwatch.time) for name, each in ask.items()}
        if rounds is None:
            rounds = _affordable_rounds(contestants)
            if rounds < _MOST_ROUNDS:
                listener.note(
                    f"latency is measured in {rounds} rounds, for calls take long: --rounds "
                    f"{_MOST_ROUNDS} gives narrower intervals"
                )
        measured = measure(
            contestants,
            {name: each(_execution) for name, each in ask.items()},
            rounds=rounds,
            progress=lambda done, total: listener.step("latency", done, total),
        )
        found = {one.name: one for one in measured}
        for name in twice:
            second = found[_again(name)]
            found[name] = replace(
                found[name],
                again=speedup(second, found[name]).ratio,
                again_ms=second.samples_ms,
            )
        return {
            name: replace(found[name], footprint=ask[name](Stopwatch.footprint), warm_up=warm[name])
            for name in names
        }

    def _open(self, name: str) -> Child:
        child = self._stack.enter_context(Child(name))
        with blamed(name):
            child.open(Stopwatch, self._openers[name], self._calls[:1])
        return child


def add_part(contest: Contest, name: str, opener: RunnerOpener) -> bool:
    """Open a part of a contestant; False where it has none that runs alone."""
    try:
        contest.add(name, opener)
    except BackendError:
        return False
    return True


def add_compiled(contest: Contest, name: str, opener: RunnerOpener, listener: Listener) -> bool:
    """Open a reference under `torch.compile`; a warning says why where that cannot be."""
    listener.step("torch.compile", 0, 1)
    try:
        contest.add(name, opener)
    except VadexportError as error:
        listener.warn(f"torch.compile is not timed: {error}")
        return False
    listener.step("torch.compile", 1, 1)
    return True


def timed_calls(
    files: Sequence[ImageFile], image_input: ImageInput, *, skip_unreadable: bool
) -> list[Call]:
    """Calls of the graph to time, on the first images, in memory: 16, or what 64 MB hold.

    Args:
        files: the images.
        image_input: of the graph.
        skip_unreadable: pass over images that cannot be read.
    """
    size = image_input.batch or 1
    each = size * math.prod(image_input.shape[1:]) * np.dtype(image_input.graph_dtype).itemsize
    count = max(1, min(_TIMED_CALLS, _TIMED_BYTES // each))
    loaded = load_images(files, image_input, skip_unreadable=skip_unreadable)
    images = np.stack([image for _, image in islice(loaded, count * size)])
    starts = range(0, len(images), size)
    return [next(image_input.batches(images[start : start + size]))[0] for start in starts]


def _affordable_rounds(contestants: Mapping[str, Callable[[int], object]]) -> int:
    """By how long one round takes, which is not counted."""
    started = time.perf_counter()
    for time_call in contestants.values():
        time_call(0)
    took = time.perf_counter() - started
    return max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, int(_MEASURING_S / took)))


def _again(name: str) -> str:
    return f"{name} again"


def _apply(name: str, child: Child, function: Callable[..., _T], *arguments: Any) -> _T:
    with blamed(name):
        return child.apply(function, *arguments)


def _infer(stopwatch: Stopwatch, image: Call) -> Outputs:
    return outputs_of(stopwatch.runner, image)


def _prepare(stopwatch: Stopwatch, image: Call) -> NDArray[np.float32]:
    prepared: NDArray[np.float32] = cast("PyTorchRunner", stopwatch.runner).prepared(image)
    return prepared


def _execution(stopwatch: Stopwatch) -> Execution:
    return stopwatch.runner.execution
