"""Latency of several contestants, interleaved in random order.

On a small machine, the same model against itself differs by several percent when each is measured
in a block of its own, and hardly when calls alternate. So every round times each contestant once,
in random order, and speed-ups are medians of the rounds' paired ratios. The timed call follows an
untimed one of the same contestant, which brings back what the others pushed out of the caches: a
detector in use runs alone.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vadexport.backends.base import Execution, Runner, RunnerOpener
from vadexport.contract import UInt8Array
from vadexport.verification.statistics import Interval, median_interval

_WARM_UP_CALLS = 10


class Stopwatch:
    """A runner and the calls it is timed on, in the process where it runs."""

    def __init__(self, open_runner: RunnerOpener, calls: Sequence[UInt8Array]) -> None:
        self.runner: Runner = open_runner()
        self._calls = calls
        for call in calls[:_WARM_UP_CALLS]:
            self.runner.infer(call)

    def time(self, number: int) -> float:
        """Seconds that one call takes, preprocessing included, right after another."""
        call = self._calls[number % len(self._calls)]
        self.runner.infer(call)
        start = time.perf_counter()
        self.runner.infer(call)
        return time.perf_counter() - start


@dataclass(frozen=True)
class LatencyFigures:
    """Latency of one contestant.

    Attributes:
        name: of the contestant.
        execution: how it ran.
        median_ms: of one call.
        p90_ms: 0.9 quantile of one call.
        samples_ms: every call, in order of the rounds.
    """

    name: str
    execution: Execution
    median_ms: float
    p90_ms: float
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class Speedup:
    """How many times faster `name` is than `baseline`: median of paired ratios."""

    name: str
    baseline: str
    ratio: Interval


def measure(
    contestants: Mapping[str, Callable[[int], float]],
    executions: Mapping[str, Execution],
    *,
    rounds: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[LatencyFigures]:
    """Time every contestant once a round, in random order.

    Args:
        contestants: by name, a function that makes call `n` and returns its seconds.
        executions: how each runs.
        rounds: number of rounds.
        seed: of the orders.
        progress: told about each round.
    """
    rng = np.random.default_rng(seed)
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for index in rng.permutation(len(names)):
            name = names[index]
            seconds[name].append(contestants[name](number))
        progress(number + 1, rounds)
    return [_figures(name, executions[name], np.array(seconds[name]) * 1e3) for name in names]


def speedup(found: LatencyFigures, baseline: LatencyFigures) -> Speedup:
    """Speed-up of one contestant over another that was measured in the same rounds."""
    ratios = np.array(baseline.samples_ms) / np.array(found.samples_ms)
    return Speedup(found.name, baseline.name, median_interval(ratios))


def _figures(name: str, execution: Execution, samples: np.ndarray) -> LatencyFigures:
    return LatencyFigures(
        name=name,
        execution=execution,
        median_ms=float(np.median(samples)),
        p90_ms=float(np.quantile(samples, 0.9)),
        samples_ms=tuple(round(float(sample), 4) for sample in samples),
    )
