"""Contestants in real child processes, and what is measured of them beside their calls."""

import time
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest

from vadexport.backends.base import Execution
from vadexport.contract import ImageInput
from vadexport.listening import Listener
from vadexport.verification import contest as contest_module
from vadexport.verification.contest import Contest, timed_calls

CALLS = [np.full((1, 1, 1, 1), value, np.uint8) for value in range(3)]


class Sleeping:
    execution = Execution("sleeping", "none", "a processor", 1)
    seconds = 0.002

    def infer(self, image):
        del image
        time.sleep(self.seconds)
        return {}


class Uneven(Sleeping):
    """Slow in every process but the first one."""

    def __init__(self, first):
        self.seconds = 0.008 if first.exists() else 0.002
        first.touch()


@pytest.fixture
def timed():
    def run(openers, rounds, **options):
        with ExitStack() as stack:
            contest = Contest(stack, openers, CALLS)
            return contest.time(list(openers), rounds, Listener(), **options)

    return run


def test_what_is_timed_twice_has_a_floor(timed):
    openers = {"a": Sleeping, "b": Sleeping}
    found = timed(openers, 20, twice=["b"])
    assert list(found) == ["a", "b"]
    assert [len(one.samples_ms) for one in found.values()] == [20, 20]
    assert (found["a"].again, found["a"].floor, found["a"].again_ms) == (None, None, ())
    assert len(found["b"].again_ms) == len(found["b"].samples_ms)
    assert found["b"].again_ms != found["b"].samples_ms
    again = found["b"].again
    assert again.low <= again.value <= again.high
    assert found["b"].floor == pytest.approx(max(again.high, 1 / again.low))
    assert 1 <= found["b"].floor < 2  # of sleeps, on however busy a machine


def test_a_contestant_unlike_itself_is_noticed(timed, tmp_path):
    found = timed({"a": partial(Uneven, tmp_path / "first")}, 20, twice=["a"])["a"]
    assert found.floor > 2
    assert found.median_ms < 8
    assert found.unlike_itself


def test_what_goes_before_the_timed_calls_is_told(timed):
    found = timed({"a": Sleeping}, 3)["a"]
    assert found.warm_up.calls > 10
    assert found.footprint.first_ms >= 2


def test_calls_are_sent_only_when_they_are_timed():
    with ExitStack() as stack:
        contest = Contest(stack, {"a": Sleeping}, CALLS)
        assert contest._children["a"].apply(lengths) == 1
        contest.time(["a"], 1, Listener())
        assert contest._children["a"].apply(lengths) == len(CALLS)


def lengths(stopwatch):
    return len(stopwatch._calls)


@pytest.mark.parametrize(("height", "batch", "count"), [(8, 1, 16), (4000, 2, 2), (9000, 1, 1)])
def test_timed_calls_are_as_many_as_so_much_memory_holds(monkeypatch, height, batch, count):
    taken = []

    def load(files, *_, **__):
        for file in files:
            taken.append(file)
            yield file, np.zeros((height, 4000, 1), np.uint8)

    monkeypatch.setattr(contest_module, "load_images", load)
    image_input = ImageInput(height, 4000, 1, batch)
    found = timed_calls(range(40), image_input, skip_unreadable=False)
    assert (len(found), len(taken)) == (count, count * batch)
