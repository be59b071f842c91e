from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.calibration.rounding import (
    LARGEST,
    _near,
    _with_feedback,
    cost,
    importance,
    nearest,
    rounded,
)


def scales_of(weights):
    largest = np.abs(weights).max(axis=2)
    return np.where(largest > 0, largest, 1.0) / LARGEST


def alike(random, groups, columns, rank, noise=0.05):
    """Mean and covariance of columns that few sources drive, as pixels of a window are."""
    mix = random.normal(size=(groups, rank, columns))
    rows = random.normal(size=(groups, 50, rank)) @ mix + 3 * random.normal(size=(groups, 1, 1))
    rows += noise * random.normal(size=rows.shape)
    mean = rows.mean(axis=1)
    apart = rows - mean[:, None]
    return mean, apart.transpose(0, 2, 1) @ apart / rows.shape[1]


@st.composite
def problems(draw):
    """Weights, scales and moments of few sources, with dead columns and dead outputs among them."""
    groups, outputs, columns = draw(st.tuples(*[st.integers(1, n) for n in (3, 4, 12)]))
    rank = draw(st.integers(0, columns + 2))  # 0: nothing varies
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = 10.0 ** draw(st.integers(-12, 12))
    rows = (
        size * random.normal(size=(groups, 20, rank)) @ random.normal(size=(groups, rank, columns))
    )
    rows += draw(st.sampled_from([0, 1, 100])) * size * random.normal(size=(groups, 1, columns))
    dead = random.random(columns) < draw(st.sampled_from([0, 0.3, 1]))
    rows[:, :, dead] = 0
    mean = rows.mean(axis=1)
    covariance = rows.transpose(0, 2, 1) @ rows / 20 - mean[:, :, None] * mean[:, None, :]
    weights = random.normal(size=(groups, outputs, columns))
    weights *= 10.0 ** draw(st.integers(-6, 6))
    weights[random.random(weights.shape) < draw(st.sampled_from([0, 0.5, 1]))] = 0
    return weights, scales_of(weights), mean, covariance


class TestRounded:
    @given(problems())
    @settings(deadline=None, max_examples=200)
    def test_gives_integers_in_range_and_never_costs_more_than_nearest(self, problem):
        weights, scales, mean, covariance = problem
        matrix = importance(mean, covariance)
        found = rounded(weights, scales, matrix)
        assert found.shape == weights.shape
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found, np.rint(found))
        assert np.abs(found).max() <= 127
        simple = nearest(weights, scales)
        assert (explicit(weights, scales, matrix, found) >= -1e-9).all()
        ours, theirs = (cost(weights, scales, matrix, each) for each in (found, simple))
        assert (ours <= theirs).all()

    def test_beats_nearest_where_columns_are_alike(self):
        random = np.random.default_rng(1)
        weights = random.normal(size=(1, 40, 27))
        scales = scales_of(weights)
        matrix = importance(*alike(random, 1, 27, 3))
        ours = cost(weights, scales, matrix, rounded(weights, scales, matrix))
        theirs = cost(weights, scales, matrix, nearest(weights, scales))
        assert ours.sum() < 0.1 * theirs.sum()
        assert (ours < theirs).mean() > 0.95

    def test_keeps_the_sum_of_a_filter_whose_inputs_are_one_brightness(self):
        # What a filter for edges gives on an even surface must stay next to nothing.
        random = np.random.default_rng(2)
        weights = random.normal(size=(1, 30, 49))
        weights -= weights.mean(axis=2, keepdims=True)
        scales = scales_of(weights)
        covariance = np.ones((1, 49, 49)) + 1e-4 * np.eye(49)
        matrix = importance(np.ones((1, 49)), covariance)
        leaks = [
            np.abs((integers * scales[..., None]).sum(axis=2) / scales).mean()
            for integers in (rounded(weights, scales, matrix), nearest(weights, scales))
        ]
        assert leaks[0] < 0.3
        assert leaks[1] > 1

    def test_where_columns_are_unlike_nearest_is_best(self):
        random = np.random.default_rng(3)
        weights = random.normal(size=(2, 5, 9))
        scales = scales_of(weights)
        matrix = importance(np.zeros((2, 9)), np.eye(9)[None] * random.uniform(1, 9, (2, 9, 1)))
        np.testing.assert_array_equal(rounded(weights, scales, matrix), nearest(weights, scales))

    @pytest.mark.parametrize("seed", range(8))
    def test_is_near_the_best_of_all_roundings(self, seed):
        random = np.random.default_rng(seed)
        columns = 7
        weights = random.normal(size=(1, 1, columns))
        scales = scales_of(weights)
        matrix = importance(*alike(random, 1, columns, 2))
        floor = np.floor(weights / scales[..., None])
        every = [
            cost(weights, scales, matrix, np.clip(floor + np.array(steps), -127, 127)).item()
            for steps in product((0, 1), repeat=columns)
        ]
        ours = cost(weights, scales, matrix, rounded(weights, scales, matrix)).item()
        # Not the best of all, but better than all but a few, and far from the typical one.
        assert np.mean(np.array(every) < ours) < 0.1
        assert ours < 0.2 * np.median(every)

    def test_single_steps_improve_on_feedback_alone(self):
        from vadexport.calibration.rounding import _near, _stepped, _with_feedback

        random = np.random.default_rng(4)
        weights = random.normal(size=(1, 60, 18))
        scales = scales_of(weights)
        matrix = importance(*alike(random, 1, 18, 4))
        bounds = _near(weights, scales, LARGEST)
        start = _with_feedback(weights, scales, matrix, bounds)
        made = _stepped(weights, scales, matrix, start, bounds)
        before, after = (cost(weights, scales, matrix, each) for each in (start, made))
        assert (after <= before * (1 + 1e-9)).all()
        assert after.sum() < 0.95 * before.sum()

    def test_groups_are_apart(self):
        random = np.random.default_rng(5)
        weights = random.normal(size=(3, 2, 9))
        scales = scales_of(weights)
        matrix = importance(*alike(random, 3, 9, 2))
        together = rounded(weights, scales, matrix)
        for g in range(3):
            alone = rounded(weights[g : g + 1], scales[g : g + 1], matrix[g : g + 1])
            np.testing.assert_array_equal(together[g : g + 1], alone)

    def test_one_column_is_rounded_to_the_nearest(self):
        weights = np.array([[[0.4], [-0.26], [0.0]]])
        scales = np.array([[0.1, 0.1, 0.1]])
        matrix = importance(np.array([[2.0]]), np.array([[[0.5]]]))
        assert rounded(weights, scales, matrix).ravel().tolist() == [4, -3, 0]

    def test_more_columns_than_steps_are_tried_for(self):
        random = np.random.default_rng(6)
        weights = random.normal(size=(1, 3, 600))
        scales = scales_of(weights)
        matrix = importance(*alike(random, 1, 600, 5))
        ours = cost(weights, scales, matrix, rounded(weights, scales, matrix))
        theirs = cost(weights, scales, matrix, nearest(weights, scales))
        assert ours.sum() < 0.5 * theirs.sum()


def explicit(weights, scales, matrix, integers):
    """The mean of squared errors of a layer's output, by sums over pairs of columns."""
    groups, outputs, columns = weights.shape
    found = np.zeros((groups, outputs))
    for g, o in np.ndindex(groups, outputs):
        error = integers[g, o] * scales[g, o] - weights[g, o]
        for i in range(columns):
            for j in range(columns):
                found[g, o] += error[i] * matrix[g, i, j] * error[j]
    return found


def column_by_column(weights, scales, matrix):
    """GPTQ as the paper states it: after each column, the inverse of what is left of `matrix`."""
    left, made = weights.copy(), np.empty_like(weights)
    exact = weights / scales[:, None]
    low, high = np.floor(exact) - 1, np.ceil(exact) + 1
    for column in range(weights.shape[1]):
        inverse = np.linalg.inv(matrix[column:, column:])
        whole = np.clip(np.rint(left[:, column] / scales), low[:, column], high[:, column])
        made[:, column] = np.clip(whole, -127, 127)
        error = (left[:, column] - made[:, column] * scales) / inverse[0, 0]
        left[:, column:] -= error[:, None] * inverse[0]
    return made


@pytest.mark.parametrize("columns", [1, 2, 63, 64, 65, 150])
def test_blocks_give_what_column_by_column_does(columns):
    random = np.random.default_rng(columns)
    weights = random.normal(size=(2, 5, columns))
    scales = scales_of(weights)
    matrix = importance(*alike(random, 2, columns, max(1, columns // 3), noise=0.3))
    found = _with_feedback(weights, scales, matrix, _near(weights, scales, LARGEST))
    expected = [column_by_column(*each) for each in zip(weights, scales, matrix, strict=True)]
    # A weight just between two steps may go either way, and others follow.
    assert (found == np.stack(expected)).mean() > 0.99


def test_cost_is_the_mean_squared_error_of_outputs():
    random = np.random.default_rng(7)
    rows = random.normal(size=(2, 300, 6)) + 2
    weights = random.normal(size=(2, 3, 6))
    scales = scales_of(weights) * 20
    integers = nearest(weights, scales)
    second_moment = rows.transpose(0, 2, 1) @ rows / 300
    found = cost(weights, scales, second_moment, integers)
    error = integers * scales[..., None] - weights
    outputs = np.einsum("gpd,god->gpo", rows, error)
    np.testing.assert_allclose(found, np.square(outputs).mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(found, explicit(weights, scales, second_moment, integers))


class TestImportance:
    @given(problems())
    @settings(deadline=None)
    def test_is_positive_definite_and_symmetric(self, problem):
        _, _, mean, covariance = problem
        matrix = importance(mean, covariance)
        np.testing.assert_allclose(matrix, matrix.transpose(0, 2, 1), rtol=1e-6, atol=0)
        spread = np.sqrt(np.einsum("gdd->gd", matrix))
        assert (spread > 0).all()
        values = np.linalg.eigvalsh(matrix / spread[:, :, None] / spread[:, None, :])
        assert values.min() > 1e-5

    def test_of_dead_columns_is_next_to_nothing(self):
        covariance = np.diag([4.0, 0.0, 1.0])[None]
        matrix = importance(np.zeros((1, 3)), covariance)
        assert 0 < matrix[0, 1, 1] < 1e-5
        assert matrix[0, 0, 0] == pytest.approx(4, rel=0.01)

    def test_a_shift_that_is_the_same_on_all_images_counts_little(self):
        matrix = importance(np.array([[10.0]]), np.array([[[1.0]]]))
        assert 1 < matrix.item() < 10  # the second moment would be 101
