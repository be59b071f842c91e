import numpy as np
import pytest

from vadexport.errors import InputError
from vadexport.verification.drift import DriftUnit

NONE = np.zeros(0, np.float32)
SEEN = np.array([1.0, 2.0, 3.0, 4.0, 5.0])


def test_comes_from_the_scores_of_fitting():
    fitted = np.arange(9, dtype=np.float32) * 0.5
    unit = DriftUnit.of(fitted, SEEN, "check images")
    assert unit == DriftUnit(2.0, "the 9 normal images it was fitted on")


def test_eight_scores_are_enough_and_seven_are_not():
    fitted = np.arange(8, dtype=np.float32)
    assert DriftUnit.of(fitted, SEEN, "check images").value == 3.5
    assert DriftUnit.of(fitted[:7], SEEN, "check images") == DriftUnit(2.0, "5 check images")


@pytest.mark.parametrize("fitted", [NONE, np.full(20, 0.5, np.float32)])
def test_else_from_those_seen_now(fitted):
    assert DriftUnit.of(fitted, SEEN, "normal images") == DriftUnit(2.0, "5 normal images")


@pytest.mark.parametrize("fitted", [NONE, np.full(20, 0.5, np.float32)])
@pytest.mark.parametrize("seen", [[], [1.0], [2.0] * 9])
def test_without_a_spread_there_is_none(fitted, seen):
    with pytest.raises(InputError, match="drift has no unit: give more normal images"):
        DriftUnit.of(fitted, np.array(seen), "normal images")


def test_is_computed_in_float64():
    fitted = np.array([1e8, 1e8 + 8, 1e8 + 16, 1e8 + 24] * 2, np.float32)
    assert DriftUnit.of(fitted, SEEN, "x").value == np.subtract(
        *np.quantile(fitted.astype(np.float64), [0.75, 0.25])
    )
