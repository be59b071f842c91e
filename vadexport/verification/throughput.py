"""Images a second where calls run beside each other, in streams that share the threads.

Blocks of a second alternate between the contestants in random order, each in a process of its own:
whatever slows the machine down meets all of them.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import numpy as np

from vadexport.backends.base import Runner, RunnerOpener, outputs_of
from vadexport.backends.child import Child
from vadexport.contract import Call
from vadexport.errors import InputError
from vadexport.listening import Listener
from vadexport.verification.contest import blamed

_BLOCKS: Final = 5
_BLOCK_S: Final = 1.0


@dataclass(frozen=True)
class Throughput:
    """What a contestant gets done.

    Attributes:
        streams: calls that run beside each other.
        images_per_s: median of the blocks.
        blocks: images a second of each block, in their order.
    """

    streams: int
    images_per_s: float
    blocks: tuple[float, ...]


class Streams:
    """Runners that are called beside each other, in the process where they run.

    Args:
        open_runner: opens one; it must let go of Python's lock while it runs.
        streams: how many.
        calls: that each makes in turn.
    """

    def __init__(self, open_runner: RunnerOpener, streams: int, calls: Sequence[Call]) -> None:
        self._runners = [open_runner() for _ in range(streams)]
        self._calls = calls

    def run(self, seconds: float) -> float:
        """Images a second over so long, at least one call of each runner."""
        start = time.perf_counter()

        def work(runner: Runner) -> int:
            done = made = 0
            while not made or time.perf_counter() - start < seconds:
                call = self._calls[made % len(self._calls)]
                outputs_of(runner, call)
                made += 1
                done += len(call)
            return done

        with ThreadPoolExecutor(len(self._runners)) as pool:
            images = sum(pool.map(work, self._runners))
        return images / (time.perf_counter() - start)


def threads_a_stream(threads: int, streams: int) -> int:
    """Threads of each stream.

    Raises:
        InputError: there are more streams than threads.
    """
    if streams > threads:
        raise InputError(f"{streams} streams cannot share {threads} threads: at most one a thread")
    return threads // streams


def measure_throughput(
    openers: Mapping[str, tuple[RunnerOpener, int]],
    calls: Sequence[Call],
    listener: Listener,
    *,
    seed: int = 0,
) -> dict[str, Throughput]:
    """Throughput of contestants.

    Args:
        openers: by name, what opens a runner, and in how many streams it is called.
        calls: that are made.
        listener: told of each block.
        seed: of the orders.

    Raises:
        ContestantError: one of them failed.
    """
    rng = np.random.default_rng(seed)
    names = list(openers)
    found: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        children = {name: stack.enter_context(Child(name)) for name in names}
        for name, child in children.items():
            with blamed(name):
                child.open(Streams, *openers[name], calls)
                child.apply(Streams.run, _BLOCK_S)  # to warm up
        for block in range(_BLOCKS):
            for index in rng.permutation(len(names)):
                name = names[index]
                with blamed(name):
                    found[name].append(children[name].apply(Streams.run, _BLOCK_S))
            listener.step("throughput", block + 1, _BLOCKS)
    return {
        name: Throughput(openers[name][1], float(np.median(rates)), tuple(rates))
        for name, rates in found.items()
    }
