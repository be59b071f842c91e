"""How much faster forms of a graph are than its float graph, in as few calls as will tell.

One form after the other is timed beside the float graph, each in a process of its own, so that no
more than two are in memory. Every round times both, in random order; a speed-up is the median of
the rounds' ratios (see `verification/latency.py`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from vadexport.backends.base import RunnerOpener, outputs_of
from vadexport.backends.child import Child
from vadexport.contract import Call
from vadexport.verification.latency import warm_up
from vadexport.verification.statistics import Interval, median_interval

#: Rounds of a form behind which it is asked whether they tell enough, and seconds that they may
#: take: asked after each, an interval would cover less than it says.
_LOOKS: Final = (6, 12, 24, 40)
_MOST_SECONDS: Final = 10.0
#: Seconds of a call that is long: an untimed one before it would bring nothing back.
_LONG_CALL: Final = 0.1
#: An interval whose ends are no further apart tells enough.
_NARROW: Final = 1.03


class TimedRunner:
    """A runner that is warm, and times its calls.

    Args:
        open_runner: opens it.
        calls: that are made in turn.
    """

    def __init__(self, open_runner: RunnerOpener, calls: Sequence[Call]) -> None:
        self._runner, self._calls = open_runner(), calls
        self._call(0)
        self.long = self._seconds(1) > _LONG_CALL
        if not self.long:
            warm_up(self._call, made=2)

    def seconds(self, number: int) -> float:
        """Of call `number`; a short one follows an untimed one, which warms the caches."""
        if not self.long:
            self._call(number)
        return self._seconds(number)

    def _call(self, number: int) -> None:
        outputs_of(self._runner, self._calls[number % len(self._calls)])

    def _seconds(self, number: int) -> float:
        started = time.perf_counter()
        self._call(number)
        return time.perf_counter() - started


def speedups(
    base: RunnerOpener,
    forms: Mapping[int, RunnerOpener],
    calls: Sequence[Call],
    least: float,
    progress: Callable[[int, int], None],
) -> tuple[dict[int, Interval], float]:
    """Time forms beside the float graph.

    Args:
        base: opens the float graph.
        forms: open them, by number.
        calls: that are timed, in turn.
        least: speed-up that a form must be certain of to be of use.
        progress: told how many forms were timed, of how many.

    Returns:
        The speed-up of each; and the floor, a factor of at least 1 by which the float graph may
        seem faster than itself, in a second process (A/A).

    Raises:
        BackendError: one of them crashed.
    """
    with Child("float32") as child:
        child.open(TimedRunner, base, calls)
        with Child("float32 again") as again:
            again.open(TimedRunner, base, calls)
            same = compared(_seconds_of(child), _seconds_of(again), least=0.0)
        floor = max(same.high, 1 / same.low, 1.0)
        found = {}
        for number, form in forms.items():
            with Child(f"form {number}") as other:
                other.open(TimedRunner, form, calls)
                found[number] = compared(
                    _seconds_of(child), _seconds_of(other), least=least * floor
                )
            progress(len(found), len(forms))
    return found, floor


def compared(
    base: Callable[[int], float], other: Callable[[int], float], *, least: float
) -> Interval:
    """How many times as fast the other is, from as few rounds as tell.

    Args:
        base: seconds of its call `n`.
        other: likewise.
        least: what is surely slower than that is of no use, and needs no narrower interval.
    """
    both, samples = (base, other), np.zeros((_LOOKS[-1], 2))
    random = np.random.default_rng(0)
    started = time.perf_counter()
    for done in range(1, _LOOKS[-1] + 1):
        for index in random.permutation(2):
            samples[done - 1, index] = both[index](done - 1)
        late = done >= _LOOKS[0] and time.perf_counter() - started > _MOST_SECONDS
        if not late and done not in _LOOKS:
            continue
        ratio = median_interval(samples[:done, 0] / samples[:done, 1])
        if late or ratio.high < least or ratio.high < _NARROW * ratio.low:
            break
    return ratio


def _seconds_of(child: Child) -> Callable[[int], float]:
    return lambda number: child.apply(TimedRunner.seconds, number)
