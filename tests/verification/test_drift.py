import numpy as np
import pytest

from vadexport.errors import InputError
from vadexport.verification.drift import DriftUnit, NormalScores, fitted_scores

NONE = fitted_scores(np.zeros(0, np.float32))
SEEN = NormalScores(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), "5 check images")
SAME = fitted_scores(np.full(20, 0.5, np.float32))


def of(*scores):
    return DriftUnit.of(*(NormalScores(np.array(each), "images") for each in scores))


def test_comes_from_the_scores_of_fitting():
    unit = DriftUnit.of(fitted_scores(np.arange(9, dtype=np.float32) * 0.5), SEEN)
    assert unit == DriftUnit(2.0, "the 9 normal images that set its thresholds")


def test_eight_scores_are_enough_and_seven_are_not():
    eight = np.arange(8, dtype=np.float32)
    enough = NormalScores(np.arange(9.0) * 10, "9 check images")
    assert DriftUnit.of(fitted_scores(eight), enough).value == 3.5
    assert DriftUnit.of(fitted_scores(eight[:7]), enough) == DriftUnit(40.0, "9 check images")


def test_of_too_few_the_most():
    assert of([1.0, 2.0], [0.0, 4.0, 8.0], [5.0]).value == 4.0


@pytest.mark.parametrize("fitted", [NONE, SAME])
def test_else_from_those_seen_now(fitted):
    assert DriftUnit.of(fitted, SEEN) == DriftUnit(2.0, "5 check images")


@pytest.mark.parametrize("scores", [[], [[]], [[1.0]], [[], [1.0]]])
def test_too_few_normal_scores(scores):
    with pytest.raises(InputError, match=r"spread of normal scores.*give normal images"):
        of(*scores)


@pytest.mark.parametrize("seen", [[], [1.0], [2.0] * 9])
def test_all_the_same(seen):
    with pytest.raises(InputError, match="the same score, so drift has no unit"):
        DriftUnit.of(SAME, NormalScores(np.array(seen), "x"))


def test_is_computed_in_float64():
    fitted = np.array([1e8, 1e8 + 8, 1e8 + 16, 1e8 + 24] * 2, np.float32)
    assert DriftUnit.of(fitted_scores(fitted)).value == np.subtract(
        *np.quantile(fitted.astype(np.float64), [0.75, 0.25])
    )
