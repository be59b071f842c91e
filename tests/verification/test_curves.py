import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_curve, precision_score, recall_score

from vadexport.verification.curves import BestF1, Curve, precision_recall

labelled = st.lists(
    st.tuples(st.integers(0, 8).map(float) | st.floats(-1e3, 1e3), st.booleans()),
    min_size=2,
    max_size=30,
)


def split(pairs):
    scores = np.array([score for score, _ in pairs])
    truth = np.array([label for _, label in pairs])
    assume(truth.any() and not truth.all())
    return scores, truth


@given(pairs=labelled)
def test_best_f1_is_scikit_learns_at_its_threshold(pairs):
    scores, truth = split(pairs)
    best = BestF1.of(scores, truth)
    called = scores > best.threshold
    assert best.value == pytest.approx(f1_score(truth, called), abs=1e-12)
    assert best.precision == pytest.approx(precision_score(truth, called), abs=1e-12)
    assert best.recall == pytest.approx(recall_score(truth, called), abs=1e-12)
    others = [f1_score(truth, scores >= score) for score in scores]
    assert best.value == pytest.approx(max(others), abs=1e-12)


@given(pairs=labelled)
def test_precision_and_recall_are_scikit_learns(pairs):
    scores, truth = split(pairs)
    expected = precision_recall_curve(truth, scores)[:2]
    for found, wanted in zip(precision_recall(scores, truth), expected, strict=True):
        # Scikit-learn begins with the lowest threshold, and adds a point that is none.
        np.testing.assert_allclose(found, wanted[-2::-1], atol=1e-12)


def test_a_curve_does_not_grow_with_the_number_of_normal_scores():
    rng = np.random.default_rng(0)
    anomalous = rng.normal(size=50)
    few, many = (Curve.over_thresholds(np.sort(rng.normal(size=n)), anomalous) for n in (9, 9000))
    assert len(few.x) == len(many.x) == 102


@given(seed=st.integers(0, 99), steps=st.sampled_from([4, 10, 100]))
@settings(deadline=None)
def test_a_thinned_curve_stays_within_a_step_of_itself(seed, steps):
    rng = np.random.default_rng(seed)
    curve = Curve.over_thresholds(np.sort(rng.normal(size=400)), rng.normal(1, size=300))
    thin = curve.thinned(steps)
    assert len(thin.x) <= 4 * steps + 2
    assert (thin.x[0], thin.y[0], thin.x[-1], thin.y[-1]) == (0, 0, 1, 1)
    # Both go up along x + y, so a point of the one has its counterpart on the other.
    along = curve.x + curve.y
    for axis in ("x", "y"):
        counterpart = np.interp(along, thin.x + thin.y, getattr(thin, axis))
        assert np.abs(counterpart - getattr(curve, axis)).max() <= 1 / steps
