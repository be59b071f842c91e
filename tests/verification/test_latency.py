import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from vadexport.backends.base import Execution
from vadexport.backends.child import Child
from vadexport.backends.cuda import GpuState
from vadexport.verification import latency
from vadexport.verification.latency import Stopwatch, Timing, WarmUp, measure, speedup

NAMES = ["a", "b", "c"]


class Track:
    """Contestants of known speed that note who was called when."""

    def __init__(self):
        self.calls = []
        self.seconds = {"a": 0.001, "b": 0.002, "c": 0.004}
        self.waited = {"a": 0.0, "b": 0.0999, "c": 0.25}

    def contestants(self):
        def call(name):
            def time_call(number):
                self.calls.append((number, name))
                # The machine slows down as time goes by; all are hit alike.
                seconds = self.seconds[name] * (1 + number / 10)
                return Timing(seconds, self.waited[name] * seconds)

            return time_call

        return {name: call(name) for name in NAMES}


EXECUTIONS = {name: Execution(name, "float32", "CPU", 1) for name in NAMES}


@pytest.fixture
def track():
    return Track()


@pytest.fixture
def found(track):
    return measure(track.contestants(), EXECUTIONS, rounds=200)


def test_each_is_called_once_a_round(track, found):
    assert len(found) == 3
    assert len(track.calls) == 600
    for number in range(200):
        this_round = track.calls[3 * number : 3 * number + 3]
        assert {each for each, _ in this_round} == {number}
        assert sorted(name for _, name in this_round) == NAMES


@pytest.mark.usefixtures("found")
def test_in_random_order(track):
    orders = Counter(
        tuple(name for _, name in track.calls[start : start + 3]) for start in range(0, 600, 3)
    )
    assert len(orders) == 6
    assert min(orders.values()) > 15  # of 33 expected


def test_by_the_seed():
    orders = []
    for seed in (0, 0, 1):
        track = Track()
        measure(track.contestants(), EXECUTIONS, rounds=20, seed=seed)
        orders.append(track.calls)
    assert orders[0] == orders[1] != orders[2]


def test_figures_are_milliseconds_in_order_of_the_rounds(found):
    assert [each.name for each in found] == NAMES
    for each, base in zip(found, (1.0, 2.0, 4.0), strict=True):
        expected = base * (1 + np.arange(200) / 10)
        np.testing.assert_allclose(each.samples_ms, expected, atol=5.1e-5)
        assert each.median_ms == pytest.approx(np.median(expected))
        assert each.p90_ms == pytest.approx(np.quantile(expected, 0.9))
        assert each.p99_ms is None  # 299 calls would tell
        assert each.execution is EXECUTIONS[each.name]


@pytest.mark.parametrize(
    ("rounds", "p90", "p99"), [(28, False, False), (29, True, False), (299, True, True)]
)
def test_quantiles_only_of_enough_calls(track, rounds, p90, p99):
    (found, *_) = measure(track.contestants(), EXECUTIONS, rounds=rounds)
    assert (found.p90_ms is not None, found.p99_ms is not None) == (p90, p99)
    if p99:
        assert found.p99_ms == pytest.approx(np.quantile(found.samples_ms, 0.99), rel=1e-3)


def test_calls_that_waited_for_a_processor_are_counted(found):
    assert [each.disturbed_calls for each in found] == [0.0, 0.0, 1.0]
    assert [each.disturbed for each in found] == [False, False, True]


def test_threads_share_the_time_that_they_waited(track):
    executions = {name: Execution(name, "float32", "CPU", 4) for name in NAMES}
    found = measure(track.contestants(), executions, rounds=5)
    assert not any(each.disturbed for each in found)


def test_where_the_system_does_not_say_nothing_is_called_disturbed():
    contestants = {"a": lambda _: Timing(0.001, None)}
    (found,) = measure(contestants, EXECUTIONS, rounds=5)
    assert found.disturbed_calls is None
    assert not found.disturbed


def test_speedup_is_the_median_of_paired_ratios(found):
    ratio = speedup(found[0], found[2])
    assert (ratio.name, ratio.baseline) == ("a", "c")
    # The slowdown is twenty-fold over the rounds, and cancels in every pair.
    for value in (ratio.ratio.value, ratio.ratio.low, ratio.ratio.high):
        assert value == pytest.approx(4, rel=1e-3)


def test_speedup_over_oneself_is_one(found):
    assert speedup(found[1], found[1]).ratio.value == 1


def test_progress_is_told_of_each_round(track):
    told = []
    measure(track.contestants(), EXECUTIONS, rounds=3, progress=lambda *each: told.append(each))
    assert told == [(1, 3), (2, 3), (3, 3)]


class Runner:
    """Slow whenever the image is another than the last."""

    execution = EXECUTIONS["a"]

    def __init__(self):
        self.seen = []

    def infer(self, image):
        value = int(image[0, 0, 0, 0])
        time.sleep(0.002 if self.seen[-1:] == [value] else 0.1)
        self.seen.append(value)
        return {}


def test_stopwatch_times_its_calls_in_turn_in_steady_running():
    runner = Runner()
    calls = [np.full((1, 1, 1, 1), value, np.uint8) for value in range(3)]
    stopwatch = Stopwatch(lambda: runner, calls)
    assert runner.seen == [0]
    assert stopwatch.warm_up().calls == len(runner.seen) > 2 * latency._BLOCK_CALLS
    assert set(runner.seen) == {0, 1, 2}
    warm = len(runner.seen)
    for number in (0, 4, 5):
        assert 0.002 <= stopwatch.time(number).seconds < 0.1
    assert runner.seen[warm:] == [0, 0, 1, 1, 2, 2]


def test_stopwatch_keeps_what_slowed_the_gpu_down_at_any_call():
    states = [
        GpuState("a GPU", temperature_c=60),
        GpuState("a GPU", temperature_c=80, slowed_by=("power limit",)),
        GpuState("a GPU", temperature_c=90, slowed_by=("temperature (driver)", "power limit")),
        GpuState("a GPU", temperature_c=70),
    ]
    runner = Runner()
    runner.gpu_state = iter(states).__next__
    stopwatch = Stopwatch(lambda: runner, [np.zeros((1, 1, 1, 1), np.uint8)])
    for number in range(4):
        stopwatch.time(number)
    assert stopwatch.gpu_state() == GpuState(
        "a GPU", temperature_c=70, slowed_by=("power limit", "temperature (driver)")
    )


def test_stopwatch_knows_no_gpu_on_the_processor():
    stopwatch = Stopwatch(Runner, [np.zeros((1, 1, 1, 1), np.uint8)])
    stopwatch.time(0)
    assert stopwatch.gpu_state() is None


@pytest.fixture
def warming(monkeypatch):
    """Warm up a contestant whose calls take so many seconds; the last one for ever."""
    now = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def run(*seconds):
        def call(number):
            now[0] += seconds[min(number - 1, len(seconds) - 1)]

        return latency.warm_up(call, made=1), now[0]

    return run


class TestWarmUp:
    def test_ends_with_the_first_block_that_is_hardly_faster(self, warming):
        found, _ = warming(0.01)
        assert found == WarmUp(calls=1 + 10, steady=True)

    def test_goes_on_while_calls_get_faster(self, warming):
        blocks = [1.0, 0.9, 0.8, 0.79]  # the last is 1.25% faster than the best before it
        found, _ = warming(*(0.01 * each for each in blocks for _ in range(5)))
        assert found == WarmUp(calls=1 + 20, steady=True)

    def test_single_slow_calls_do_not_count(self, warming):
        found, _ = warming(0.2, *[0.01] * 6, 0.3)
        assert found.calls == 1 + 10

    @pytest.mark.parametrize(("seconds", "calls"), [(2.0, 3), (0.7, 8), (60.0, 1)])
    def test_slow_detectors_do_not_wait_long(self, warming, seconds, calls):
        found, took = warming(*(seconds * 0.99**n for n in range(20)))
        assert found == WarmUp(calls=1 + calls, steady=False)
        assert took < 5.0 + seconds

    def test_what_never_gets_steady_ends_as_well(self, warming):
        found, _ = warming(*(1e-3 * 0.99**n for n in range(1000)))
        assert found == WarmUp(calls=500, steady=False)


class Busy:
    """Computes for a tenth of a second."""

    execution = EXECUTIONS["a"]

    def infer(self, image):
        del image
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass
        return {}


def timed_beside(others):
    """Time `Busy` on the first processor, beside so many other processes that want it."""
    one = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {one})
    rivals = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
    try:
        time.sleep(0.3)
        stopwatch = Stopwatch(Busy, [np.zeros((1, 1, 1, 1), np.uint8)])
        return stopwatch.time(0)
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how long threads waited")
def test_time_spent_waiting_for_a_processor_is_noticed():
    with Child("timed") as child:
        timing = child.run(timed_beside, 2)
    # Two rivals and the timed call share one processor: a third each.
    assert timing.seconds > 0.2
    assert timing.waited / timing.seconds > 0.4
