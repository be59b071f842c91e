"""Latency of several contestants, interleaved in random order.

On a small machine, the same model against itself differs by several percent when each is measured
in a block of its own, and hardly when calls alternate. So every round times each contestant once,
in random order, and speed-ups are medians of the rounds' paired ratios. The timed call follows an
untimed one of the same contestant, which brings back what the others pushed out of the caches: a
detector in use runs alone.

A processor that others use as well spoils even ratios: PyTorch's threads, which wait for each
other, lose many times more than another runtime's. So the time that threads wait for a processor is
counted, and a measurement that was disturbed is called so. What is left is measured as well: a
contestant that is timed twice a round shows what ratio comes out where there is no difference.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from vadexport.backends.base import Execution, Runner, RunnerOpener, outputs_of
from vadexport.backends.cuda import GpuState
from vadexport.contract import Call
from vadexport.machine import peak_megabytes, seconds_waited
from vadexport.verification.statistics import Interval, certain_quantile, median_interval

#: Warm-up is over when the median of a block of calls is hardly lower than the best before it, ...
_BLOCK_CALLS: Final = 5
_HARDLY_LOWER: Final = 0.98
#: ... or after so many seconds or calls: slow detectors must not wait for it.
_WARM_UP_S: Final = 5.0
_MOST_WARM_UP_CALLS: Final = 500
#: A call is disturbed when its threads waited for a processor for more of its time than this.
_WAITED_SHARE: Final = 0.1
#: A measurement is disturbed when more of its calls were than this.
_DISTURBED_SHARE: Final = 0.1
#: ... or when a contestant may differ from itself by more than this factor.
_HIGHEST_FLOOR: Final = 1.05


@dataclass(frozen=True)
class Timing:
    """Seconds that a call took, and that its threads waited for a processor (None: unknown)."""

    seconds: float
    waited: float | None


@dataclass(frozen=True)
class Footprint:
    """What a contestant takes beside the time of its calls, in a process of its own.

    Attributes:
        load_ms: until it was ready, imports included.
        first_ms: of the first call, when nothing is warm.
        peak_mb: largest resident memory of the process so far; None where the system does not say.
    """

    load_ms: float
    first_ms: float
    peak_mb: float | None


@dataclass(frozen=True)
class WarmUp:
    """What went before the timed calls.

    Attributes:
        calls: how many, the first one included.
        steady: whether they had stopped getting faster; False where there was no time to see it.
    """

    calls: int
    steady: bool


def warm_up(make_call: Callable[[int], object], made: int) -> WarmUp:
    """Make calls until they get no faster.

    Args:
        make_call: makes call `n`.
        made: calls that were made before.
    """
    started = now = time.perf_counter()
    best = math.inf
    taken: list[float] = []
    while made < _MOST_WARM_UP_CALLS and now - started < _WARM_UP_S:
        make_call(made)
        before, now = now, time.perf_counter()
        made += 1
        taken.append(now - before)
        if len(taken) == _BLOCK_CALLS:
            median = statistics.median(taken)
            if median > _HARDLY_LOWER * best:
                return WarmUp(made, steady=True)
            best = median
            taken.clear()
    return WarmUp(made, steady=False)


class Stopwatch:
    """A runner and the calls it is timed on, in the process where it runs.

    Args:
        open_runner: opens the runner.
        calls: of which the first is made at once; `take` replaces them.
    """

    def __init__(self, open_runner: RunnerOpener, calls: Sequence[Call]) -> None:
        start = time.perf_counter()
        self.runner: Runner = open_runner()
        loaded = time.perf_counter()
        outputs_of(self.runner, calls[0])
        self._load_ms = 1e3 * (loaded - start)
        self._first_ms = 1e3 * (time.perf_counter() - loaded)
        self._calls = calls
        self._gpu: GpuState | None = None

    def take(self, calls: Sequence[Call]) -> None:
        """Time these calls from now on."""
        self._calls = calls

    def warm_up(self) -> WarmUp:
        """Make calls, in turn, until they get no faster."""
        return warm_up(lambda number: outputs_of(self.runner, self._call(number)), made=1)

    def footprint(self) -> Footprint:
        """What it has taken until now."""
        return Footprint(self._load_ms, self._first_ms, peak_megabytes())

    def time(self, number: int) -> Timing:
        """Time one call, preprocessing included, right after another."""
        call = self._call(number)
        outputs_of(self.runner, call)
        before = seconds_waited()
        start = time.perf_counter()
        outputs_of(self.runner, call)
        seconds = time.perf_counter() - start
        after = seconds_waited()
        self._watch_gpu()
        # A thread that has ended takes its count with it.
        waited = None if before is None or after is None else max(0.0, after - before)
        return Timing(seconds, waited)

    def gpu_state(self) -> GpuState | None:
        """Of the GPU at the last timed call; what slowed it down at any. None on the processor."""
        if self._gpu is None:
            self._watch_gpu()
        return self._gpu

    def _call(self, number: int) -> Call:
        return self._calls[number % len(self._calls)]

    def _watch_gpu(self) -> None:
        state: GpuState | None = getattr(self.runner, "gpu_state", lambda: None)()
        if state is not None and self._gpu is not None:
            slowed = tuple(dict.fromkeys((*self._gpu.slowed_by, *state.slowed_by)))
            state = replace(state, slowed_by=slowed)
        self._gpu = state


@dataclass(frozen=True)
class LatencyFigures:
    """Latency of one contestant.

    Attributes:
        name: of the contestant.
        execution: how it ran.
        median_ms: of one call.
        p90_ms: 0.9 quantile of one call; None where too few were timed to know of it.
        samples_ms: every call, in order of the rounds.
        disturbed_calls: fraction of the calls whose threads waited for a processor for more than a
            tenth of the time; None where the system does not say.
        footprint: what it takes beside; None where it was not asked.
        p99_ms: 0.99 quantile of one call; None as above.
        warm_up: what went before the timed calls; None where it is not known.
        again: ratio of its calls to those of a second process of its own in the same rounds (A/A);
            None where there was none.
        again_ms: every call of that second process, in order of the rounds.
    """

    name: str
    execution: Execution
    median_ms: float
    p90_ms: float | None
    samples_ms: tuple[float, ...]
    disturbed_calls: float | None = None
    footprint: Footprint | None = None
    p99_ms: float | None = None
    warm_up: WarmUp | None = None
    again: Interval | None = None
    again_ms: tuple[float, ...] = ()

    @property
    def floor(self) -> float | None:
        """Factor, at least 1, up to which a ratio to it may be no difference at all.

        The end of the A/A interval that is further from 1. None where it was not measured.
        """
        return None if self.again is None else max(self.again.high, 1 / self.again.low)

    def images_per_s(self, batch: int) -> float:
        """Images a second, where calls of so many follow one another."""
        return 1e3 * batch / self.median_ms

    @property
    def disturbed(self) -> bool:
        """Whether others took the processors too often for the figures to hold."""
        return self.disturbed_calls is not None and self.disturbed_calls > _DISTURBED_SHARE

    @property
    def unlike_itself(self) -> bool:
        """Whether it differs from itself by so much that the measurement was disturbed."""
        return self.floor is not None and self.floor > _HIGHEST_FLOOR


@dataclass(frozen=True)
class Speedup:
    """How many times faster `name` is than `baseline`: median of paired ratios."""

    name: str
    baseline: str
    ratio: Interval


def measure(
    contestants: Mapping[str, Callable[[int], Timing]],
    executions: Mapping[str, Execution],
    *,
    rounds: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[LatencyFigures]:
    """Time every contestant once a round, in random order.

    Args:
        contestants: by name, a function that makes and times call `n`.
        executions: how each runs.
        rounds: number of rounds.
        seed: of the orders.
        progress: told about each round.
    """
    rng = np.random.default_rng(seed)
    names = list(contestants)
    timings: dict[str, list[Timing]] = {name: [] for name in names}
    for number in range(rounds):
        for index in rng.permutation(len(names)):
            name = names[index]
            timings[name].append(contestants[name](number))
        progress(number + 1, rounds)
    return [_figures(name, executions[name], timings[name]) for name in names]


def speedup(found: LatencyFigures, baseline: LatencyFigures) -> Speedup:
    """Speed-up of one contestant over another that was measured in the same rounds."""
    ratios = np.array(baseline.samples_ms) / np.array(found.samples_ms)
    return Speedup(found.name, baseline.name, median_interval(ratios))


def _figures(name: str, execution: Execution, timings: Sequence[Timing]) -> LatencyFigures:
    samples = np.array([timing.seconds for timing in timings]) * 1e3
    shares = [
        timing.waited / (timing.seconds * execution.threads)
        for timing in timings
        if timing.waited is not None
    ]
    return LatencyFigures(
        name=name,
        execution=execution,
        median_ms=float(np.median(samples)),
        p90_ms=certain_quantile(samples, 0.9),
        p99_ms=certain_quantile(samples, 0.99),
        samples_ms=tuple(round(float(sample), 4) for sample in samples),
        disturbed_calls=float(np.mean(np.array(shares) > _WAITED_SHARE)) if shares else None,
    )
