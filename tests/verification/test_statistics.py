import warnings

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from vadexport.verification import statistics
from vadexport.verification.statistics import (
    auroc,
    best_f1_threshold,
    certain_quantile,
    interquartile_range,
    median_interval,
    spearman,
    values_needed,
)

# Few distinct values, so that ties are common.
scores = st.lists(st.integers(-6, 6).map(float) | st.floats(-1e6, 1e6), min_size=1, max_size=40)
labelled = st.lists(
    st.tuples(st.integers(0, 8).map(float) | st.floats(-1e3, 1e3), st.booleans()),
    min_size=2,
    max_size=30,
)


def split(pairs):
    return np.array([score for score, _ in pairs]), np.array([label for _, label in pairs])


class TestAuroc:
    @given(pairs=labelled)
    @example(pairs=[(1.0, True), (1.0, False), (1.0, True)])
    def test_is_scikit_learns_ties_and_all(self, pairs):
        values, truth = split(pairs)
        assume(truth.any() and not truth.all())
        assert auroc(values, truth) == pytest.approx(roc_auc_score(truth, values), abs=1e-12)

    def test_tells_scores_apart_that_a_float32_sigmoid_would_not(self):
        values = np.array([40.0, 41.0, 42.0, 43.0])
        assert auroc(values, np.array([False, False, True, True])) == 1.0
        assert auroc(values, np.array([True, True, False, False])) == 0.0

    def test_of_equal_scores_is_a_half(self):
        assert auroc(np.ones(7), np.array([True] * 3 + [False] * 4)) == 0.5

    @pytest.mark.parametrize("truth", [[], [True, True], [False]])
    def test_needs_both_classes(self, truth):
        assert auroc(np.arange(len(truth), dtype=float), np.array(truth, dtype=bool)) is None

    @given(pairs=labelled, factor=st.floats(0.1, 10), offset=st.floats(-5, 5))
    def test_does_not_depend_on_the_scale(self, pairs, factor, offset):
        values, truth = split(pairs)
        values = np.round(values, 3)
        scaled = values * factor + offset
        assume(len(np.unique(scaled)) == len(np.unique(values)))
        assert auroc(scaled, truth) == auroc(values, truth)


class TestSpearman:
    @given(pairs=st.lists(st.tuples(*[st.integers(0, 6) | st.floats(-1e6, 1e6)] * 2), min_size=2))
    def test_is_scipys_ties_and_all(self, pairs):
        first, second = np.array(pairs, dtype=float).T
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            expected = stats.spearmanr(first, second).statistic
        found = spearman(first, second)
        if np.isnan(expected):
            assert found is None
        else:
            assert found == pytest.approx(expected, abs=1e-12)

    @given(values=scores)
    def test_of_a_thing_and_itself_is_one(self, values):
        array = np.array(values)
        assume(np.ptp(array) > 0)
        assert spearman(array, array) == pytest.approx(1.0, abs=1e-12)
        assert spearman(array, -array) == pytest.approx(-1.0, abs=1e-12)

    @pytest.mark.parametrize(
        ("first", "second"), [([], []), ([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0])]
    )
    def test_is_none_where_one_side_is_constant(self, first, second):
        assert spearman(np.array(first), np.array(second)) is None
        assert spearman(np.array(second), np.array(first)) is None


@given(values=scores)
def test_interquartile_range_is_scipys(values):
    array = np.array(values)
    assert interquartile_range(array) == pytest.approx(stats.iqr(array), rel=1e-12, abs=1e-12)


class TestBestF1Threshold:
    @given(pairs=labelled)
    @example(pairs=[(0.0, True), (0.0, False)])
    @example(pairs=[(0.0, True), (1.0, True), (0.5, False)])
    @example(pairs=[(-1.0, True), (-2.0, False), (-3.0, True)])
    @example(pairs=[(1.0, True), (np.nextafter(1.0, 0), False)])
    @settings(deadline=None)
    def test_no_other_threshold_does_better(self, pairs):
        values, truth = split(pairs)
        assume(truth.any() and not truth.all())
        distinct = np.unique(values)
        candidates = [distinct[0] - 1, *((distinct[:-1] + distinct[1:]) / 2), *distinct]
        best = max(f1_score(truth, values > each, zero_division=0) for each in candidates)
        threshold = best_f1_threshold(values, truth)
        assert f1_score(truth, values > threshold) == pytest.approx(best, abs=1e-12)

    def test_lies_half_way_between_two_scores(self):
        values = np.array([1.0, 2.0, 4.0, 5.0])
        assert best_f1_threshold(values, np.array([False, False, True, True])) == 3.0

    def test_among_equals_is_the_highest(self):
        # One of two above 3.5, or two of four above 1.5: F1 is 2/3 both times.
        values = np.array([1.0, 2.0, 3.0, 4.0])
        truth = np.array([False, True, False, True])
        assert f1_score(truth, values > 3.5) == pytest.approx(2 / 3)
        assert f1_score(truth, values > 1.5) == pytest.approx(0.8)
        assert best_f1_threshold(values, truth) == 1.5
        truth = np.array([True, False, False, True])
        assert f1_score(truth, values > 3.5) == f1_score(truth, values > 0) == pytest.approx(2 / 3)
        assert best_f1_threshold(values, truth) == 3.5


def coverage(draw, count, ends, trials=2000):
    """Share of samples of so many values whose interval holds the true median."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(trials):
        if draw == "ratio":
            # Two contestants of the same speed, whose calls take longer by chance.
            first, second = rng.lognormal(sigma=0.1, size=(2, count))
            values, truth = first / second, 1.0
        else:
            values, truth = rng.exponential(size=count), np.log(2)
        low, high = ends(values)
        covered += low <= truth <= high
    return covered / trials


class TestMedianInterval:
    def test_value_is_the_median_within_the_interval(self):
        values = np.random.default_rng(0).gamma(2, size=101)
        found = median_interval(values)
        assert found.value == np.median(values)
        assert found.low < found.value < found.high

    def test_is_the_same_every_time(self):
        values = np.random.default_rng(0).normal(size=50)
        assert median_interval(values) == median_interval(values)
        assert median_interval(values) != median_interval(values, seed=1)

    def test_of_one_value_is_that_value(self):
        found = median_interval(np.array([1.5]))
        assert (found.low, found.value, found.high) == (1.5, 1.5, 1.5)

    @pytest.mark.parametrize("count", [10, 15, 30, 100])
    @pytest.mark.parametrize("draw", ["ratio", "exponential"])
    def test_covers_the_true_median_95_times_of_100(self, count, draw):
        def ends(values):
            found = median_interval(values, resamples=400)
            return found.low, found.high

        assert 0.93 <= coverage(draw, count, ends) <= 0.97

    @pytest.mark.parametrize("count", [10, 15])
    @pytest.mark.parametrize("draw", ["ratio", "exponential"])
    def test_plain_percentiles_of_few_values_cover_it_too_rarely(self, count, draw):
        drawn = np.random.default_rng(2).integers(count, size=(400, count))

        def ends(values):
            return np.quantile(np.median(values[drawn], axis=1), [0.025, 0.975])

        assert 0.91 <= coverage(draw, count, ends) <= 0.94

    def test_many_values_are_drawn_in_parts(self, monkeypatch):
        values = np.random.default_rng(3).normal(size=50)
        whole = median_interval(values)
        monkeypatch.setattr(statistics, "_DRAWN_AT_ONCE", 7 * 50)
        assert median_interval(values) == whole

    def test_narrows_with_more_values(self):
        values = np.random.default_rng(2).normal(size=2000)
        few, many = median_interval(values[:50]), median_interval(values)
        assert many.high - many.low < 0.4 * (few.high - few.low)


class TestCertainQuantile:
    @pytest.mark.parametrize(("quantile", "needed"), [(0.5, 5), (0.9, 29), (0.99, 299)])
    def test_needs_as_many_values_as_put_the_largest_above_it(self, quantile, needed):
        # The number of values below the quantile is binomial: all of them are with probability q^n.
        assert stats.binom.pmf(needed, needed, quantile) <= 0.05
        assert stats.binom.pmf(needed - 1, needed - 1, quantile) > 0.05
        assert values_needed(quantile) == needed
        values = np.random.default_rng(0).normal(size=needed)
        assert certain_quantile(values[1:], quantile) is None
        assert certain_quantile(values, quantile) == pytest.approx(
            stats.mstats.mquantiles(values, quantile, alphap=1, betap=1).item()
        )

    def test_of_no_values(self):
        assert certain_quantile(np.array([]), 0.9) is None
