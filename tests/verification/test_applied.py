"""What a pass brought: figures only where they are more than noise, and only whole reports."""

import json

import numpy as np
import pytest

from vadexport.verification.applied import AppliedPass, Passes, read_passes, timed

TWO = (AppliedPass("a", 1), AppliedPass("wrong", 2, undone="drift 3"), AppliedPass("b", 1))


def pair(*seconds, noise=0.0):
    random = np.random.default_rng(0)
    rounds = 1 + noise * random.normal(size=(2, 30))
    return tuple((np.array(seconds)[:, None] * rounds).tolist())


def test_each_is_compared_with_the_graph_before_it():
    first, wrong, last = timed(TWO, pair(0.01, 0.01), [pair(0.01, 0.008), pair(0.008, 0.004)])
    assert first.brought == "10 → 8 ms"
    assert wrong.brought == "undone: drift 3"
    assert last.time.ratio.value == pytest.approx(2)
    assert last.brought == "8 → 4 ms"


def test_what_is_within_noise_is_no_figure():
    first, _, last = timed(
        TWO,
        pair(0.010, 0.010, noise=0.02),
        [pair(0.010, 0.00999, noise=0.02), pair(0.00999, 0.015, noise=0.02)],
    )
    assert first.brought == "no difference measured"
    assert last.brought.endswith(" ms")  # slower is a difference as well


def test_what_a_graph_shows_against_itself_is_no_difference():
    first, _, last = timed(TWO, pair(0.0100, 0.0097), [pair(0.0100, 0.0098), pair(0.0098, 0.0080)])
    assert first.brought == "no difference measured"
    assert last.time.differs


def test_what_was_not_timed_against_itself_may_seem_faster_by_a_twentieth():
    first, _, last = timed(TWO, None, [pair(1.0, 0.96), pair(1.0, 0.94)])
    assert first.brought == "no difference measured"
    assert last.brought == "1e+03 → 940 ms"


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "build.json"

    def write(change=lambda _: None):
        passes = Passes(timed(TWO, None, [pair(0.01, 0.008), pair(0.008, 0.004)]), ("c",), "here")
        value = {"passes": json.loads(json.dumps(passes.to_json()))}
        change(value["passes"])
        path.write_text(json.dumps(value))
        return passes, read_passes(path)

    return write


def test_a_report_is_read_as_it_was_written(report):
    written, found = report()
    assert found == written


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("left_out"),
        lambda found: found["applied"][0].update(places=0),
        lambda found: found["applied"][0].update(name=3),
        lambda found: found["applied"][0]["time"].update(before_ms=float("nan")),
        lambda found: found["applied"][0]["time"]["ratio"].update(low="1"),
        lambda found: found.update(applied={}),
        lambda found: found.update(timed_on=[]),
    ],
)
def test_a_damaged_report_is_none(report, change):
    assert report(change)[1] is None


def test_no_report_is_none(tmp_path):
    assert read_passes(tmp_path / "build.json") is None
    assert read_passes(tmp_path) is None
