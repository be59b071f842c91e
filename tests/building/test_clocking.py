"""How many rounds a form takes; the clock is made up."""

import time
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from vadexport.building import clocking
from vadexport.building.clocking import TimedRunner, compared, speedups

CALLS = [np.zeros(1), np.ones(1)]


def seconds(median, spread, seed):
    """A clock whose times scatter around a median; how often it was asked."""
    random, asked = np.random.default_rng(seed), []

    def one(number):
        asked.append(number)
        return median * np.exp(spread * random.normal())

    return one, asked


@pytest.mark.parametrize(
    ("form", "spread", "least", "rounds"),
    [
        (0.1, 0.001, 1.02, (6, 6)),  # narrow
        (0.1, 0.1, 1.02, (40, 40)),  # twice as fast, but by how much?
        (0.25, 0.05, 1.02, (6, 6)),  # surely slower: of no use
        (0.2, 0.02, 1.02, (7, 40)),  # the same: who knows
    ],
)
def test_rounds_end_where_enough_is_known(form, spread, least, rounds):
    base, asked = seconds(0.2, spread, 1)
    other, _ = seconds(form, spread, 2)
    found = compared(base, other, least=least)
    assert rounds[0] <= len(asked) <= rounds[1]
    assert asked == list(range(len(asked)))
    assert found.low <= 0.2 / form <= found.high


def test_time_is_bounded(monkeypatch):
    monkeypatch.setattr(clocking, "_MOST_SECONDS", 0.0)
    base, asked = seconds(0.2, 0.3, 1)
    compared(base, base, least=1.0)
    assert len(asked) == 12


class Runner:
    def __init__(self, took, held=None):
        self.took, self.calls = took, 0
        if held is not None:
            held.runners.add(self)
            held.most = max(held.most, len(held.runners))

    def infer(self, _call):
        self.calls += 1
        time.sleep(self.took)
        return {}


def test_only_short_calls_follow_an_untimed_one(monkeypatch):
    monkeypatch.setattr(clocking, "_LONG_CALL", 0.01)
    for took, calls in ((0.02, 1), (0.0, 2)):
        runner = Runner(took)
        timed = TimedRunner(lambda runner=runner: runner, CALLS)
        assert timed.long == (calls == 1)
        before = runner.calls
        assert timed.seconds(0) >= took
        assert runner.calls - before == calls


@pytest.mark.usefixtures("in_process")
def test_forms_are_held_against_the_float_graph_one_at_a_time():
    held, told = SimpleNamespace(runners=weakref.WeakSet(), most=0), []
    base, *others = (partial(Runner, took, held) for took in (0.004, 0.002, 0.008))
    forms = dict(zip((3, 5), others, strict=True))
    found, floor = speedups(base, forms, CALLS, 1.02, lambda *n: told.append(n))
    assert found[3].value == pytest.approx(2, rel=0.3)
    assert found[5].value == pytest.approx(0.5, rel=0.3)
    assert floor >= 1
    assert told == [(1, 2), (2, 2)]
    assert held.most <= 3  # one that was let go of is here still, for want of a process
