"""What was compiled, held against the float graph."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from tests.passes.half_graphs import graph
from vadexport.calibration.judging import (
    Bounds,
    Judged,
    Judging,
    expected_rank_correlation,
    judge_compiled,
    rank_correlation,
    scored,
)

RANDOM = np.random.default_rng(11)
CALLS = [RANDOM.normal(size=(2, 1, 4, 4)).astype(np.float32) for _ in range(5)]


class Off:
    """A runner whose scores and maps are off by known amounts, more for each call."""

    def __init__(self):
        self.calls = 0

    def infer(self, image):
        self.calls += 1
        shift = 0.125 * self.calls
        return {
            "anomaly_map": 2 * image + 3 * shift,
            "raw_score": (2 * image).max(axis=(1, 2, 3)) + shift,
            "pred_score": np.zeros(len(image)),
        }


@pytest.fixture
def model(tmp_path):
    found = graph(
        "float[2,1,4,4] image",
        """
        anomaly_map = Mul(image, two)
        raw_score = ReduceMax<keepdims = 0>(anomaly_map, rest)
        """,
        "float[2] raw_score, float[2,1,4,4] anomaly_map",
        two=np.array(2.0),
        rest=np.array([1, 2, 3]),
    )
    onnx.save(found, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_figures_are_those_of_scores_by_hand(model):
    scores = np.concatenate([(2 * call).max(axis=(1, 2, 3)) for call in CALLS]).astype(float)
    shifts = np.repeat(0.125 * np.arange(1, 6), 2)
    threshold = float(scores.max() + 0.01)
    judging = Judging(CALLS, 3, scored(model, CALLS))
    assert judging.images == (6, 4)
    judged = judge_compiled(Off, judging, threshold)
    assert judged.drift == pytest.approx(0.375, rel=1e-5)  # of the three calls of normal images
    assert judged.rms == pytest.approx(np.sqrt(np.mean(shifts**2)), rel=1e-5)
    assert judged.flips == np.count_nonzero(scores + shifts > threshold)
    spans = [np.ptp(2 * image) for call in CALLS for image in call]
    assert judged.maps == pytest.approx(3 * 0.625 / np.mean(spans), rel=1e-5)
    assert judge_compiled(Off, judging, None).flips == 0


BOUNDS = Bounds(drift=1.0, maps=0.1, spearman=0.999, threshold=0.0)
HELD = Judged(drift=1.0, rms=9.0, spearman=0.999, flips=0, maps=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drift": 1.01}, "drift of normal images"),
        ({"spearman": 0.9989}, "rank correlation 0.99890, limit 0.999"),
        ({"maps": 0.2}, "maps by 0.2 of their range, limit 0.1"),
        ({"flips": 2}, "2 decisions flipped"),
        ({"drift": np.nan}, "drift of normal images"),
        ({"spearman": np.nan}, "rank correlation nan, limit 0.999"),
        ({"maps": np.nan}, "maps by nan of their range, limit 0.1"),
    ],
)
def test_what_is_beyond_its_bound_is_named(change, words):
    assert HELD.beyond(BOUNDS) == ()
    assert HELD.holds(BOUNDS)
    judged = replace(HELD, **change)
    assert judged.beyond(BOUNDS) == (words,)
    assert not judged.holds(BOUNDS)


class TestExpectedRankCorrelation:
    @pytest.mark.parametrize("normal", [6, 16, 100])
    @pytest.mark.parametrize("noise", [0.02, 0.05, 0.2])
    def test_of_few_images_is_that_of_many(self, normal, noise):
        """On average over samples."""

        def drawn(count):
            scores = [random.normal(size=count), 2 + random.gamma(2, 1, size=2 * count)]
            return np.concatenate(scores), noise * random.normal(size=3 * count)

        random = np.random.default_rng(2)
        many, drifts = drawn(50_000)
        lost = 1 - spearmanr(many, many + drifts).statistic
        found = [1 - expected_rank_correlation(*drawn(normal), normal) for _ in range(40)]
        error = np.std(found) / np.sqrt(len(found))
        assert np.mean(found) == pytest.approx(lost, abs=0.15 * lost + 3 * error)

    def test_is_the_same_each_time(self):
        scores, drifts = RANDOM.normal(size=(2, 30))
        found = expected_rank_correlation(scores, drifts, 10)
        assert found == expected_rank_correlation(scores, drifts, 10)

    @pytest.mark.parametrize("normal", [4, 9])
    def test_of_what_all_drift_alike_is_one(self, normal):
        found = expected_rank_correlation(np.arange(9.0), np.full(9, 3.0), normal)
        assert found == pytest.approx(1, abs=1e-12)

    def test_of_what_is_not_finite_is_nan(self):
        drifts = np.zeros(9)
        drifts[3] = np.nan
        assert np.isnan(expected_rank_correlation(np.arange(9.0), drifts, 6))

    def test_of_scores_all_alike_hangs_on_drifts_alone(self):
        assert expected_rank_correlation(np.ones(9), np.zeros(9), 6) == 1


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30))
def test_rank_correlation_is_scipys(pairs):
    one, other = np.array(pairs, float).T
    found = rank_correlation(one, other)
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        assert found == 1
    else:
        assert found == pytest.approx(spearmanr(one, other).statistic, abs=1e-9)
