import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from vadexport.verification.curves import BestF1
from vadexport.verification.losses import (
    FEWEST_CHANGED,
    FEWEST_FOR_F1,
    FEWEST_WITH_MAPS,
    bootstrap_loss,
    compare_auroc,
    compare_f1_max,
    weighted_f1_max,
)
from vadexport.verification.statistics import auroc


def drawn(rng, images, separation, noise):
    """Scores of a reference and of an artifact that adds noise, of half normal images each."""
    normal, anomalous = images
    truth = np.repeat([False, True], [normal, anomalous])
    reference = rng.normal(size=len(truth)) + 2**0.5 * stats.norm.ppf(separation) * truth
    return reference, reference + noise * rng.normal(size=len(truth)), truth


def true_auroc_loss(separation, noise):
    """Of two normal distributions with the same deviation, and of the same with noise."""
    shift = 2**0.5 * stats.norm.ppf(separation)
    return separation - stats.norm.cdf(shift / (2 * (1 + noise**2)) ** 0.5)


def delong(reference, found, truth):
    """Variance of the difference of two areas: equations 4 to 6 of DeLong et al. 1988, by loops."""
    components = []
    for label, sign in ((True, 1), (False, -1)):
        columns = [
            [
                np.mean(
                    [np.heaviside(sign * (one - other), 0.5) for other in scores[truth != label]]
                )
                for one in scores[truth == label]
            ]
            for scores in (reference, found)
        ]
        components.append(np.cov(columns) / len(columns[0]))
    covariance = sum(components)
    return covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]


class TestAuroc:
    @given(
        pairs=st.lists(
            st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), min_size=6, max_size=40
        )
    )
    def test_its_values_are_those_of_ranks_and_its_error_is_delongs(self, pairs):
        reference, found, labels = (np.array(each) for each in zip(*pairs, strict=True))
        reference, found, truth = reference.astype(float), found.astype(float), labels.astype(bool)
        assume(2 <= truth.sum() <= len(truth) - 2)
        one = compare_auroc(reference, found, truth)
        assert one.reference == pytest.approx(auroc(reference, truth), abs=1e-12)
        assert one.artifact == pytest.approx(auroc(found, truth), abs=1e-12)
        assert one.loss.value == pytest.approx(one.reference - one.artifact, abs=1e-12)
        error = delong(reference, found, truth) ** 0.5
        reach = one.loss.value - one.loss.least
        # Student's t lies between the normal distribution and that of one degree of freedom.
        assert 1.959 * error - 1e-9 <= reach <= 12.71 * error + 1e-9

    def test_its_degrees_of_freedom_are_welchs(self):
        reference, found, truth = drawn(np.random.default_rng(5), (30, 90), 0.8, 1.0)
        one = compare_auroc(reference, found, truth).loss
        # The placements differ by these; Welch's test of their means has the same interval.
        moved = [
            np.array(
                [
                    np.mean(np.heaviside(sign * (s[n] - s[truth != label]), 0.5))
                    for n in np.flatnonzero(truth == label)
                ]
            )
            for label, sign in ((True, 1), (False, -1))
            for s in (reference, found)
        ]
        of_anomalous, of_normal = moved[0] - moved[1], moved[2] - moved[3]
        interval = stats.ttest_ind(of_anomalous, -of_normal, equal_var=False).confidence_interval()
        assert one.high - one.low == pytest.approx(interval.high - interval.low)

    def test_needs_both_classes(self):
        assert compare_auroc(np.arange(3.0), np.arange(3.0), np.zeros(3, bool)) is None
        assert compare_f1_max(np.arange(3.0), np.arange(3.0), np.ones(3, bool)) is None

    def test_where_no_image_changes_its_place_there_is_no_interval(self):
        scores = np.arange(200.0)
        loss = compare_auroc(scores, np.exp(scores / 100), scores > 120).loss
        assert (loss.value, loss.low, loss.high, loss.least, loss.enough) == (
            0,
            None,
            None,
            0,
            None,
        )

    def test_too_few_images_that_change_say_how_many_would_do(self):
        reference, found, truth = drawn(np.random.default_rng(2), (10, 10), 0.9, 0.3)
        loss = compare_auroc(reference, found, truth).loss
        assert (loss.low, loss.high) == (None, None)
        assert loss.enough > FEWEST_CHANGED
        # With that many of each label, about half of such sets change enough.
        rng = np.random.default_rng(3)
        given = [
            compare_auroc(*drawn(rng, (loss.enough, loss.enough), 0.9, 0.3)).loss.low is not None
            for _ in range(200)
        ]
        assert np.mean(given) > 0.3

    def test_of_an_artifact_that_says_the_same_of_all_the_loss_is_certain(self):
        scores = np.arange(32.0)
        found = compare_auroc(scores, np.zeros(32), scores > 15)
        assert (found.reference, found.artifact) == (1.0, 0.5)
        assert found.loss.least == pytest.approx(0.5)


@pytest.mark.parametrize("images", [(1, 1), (1, 40), (40, 1)])
def test_of_one_image_of_a_label_nothing_is_certain(images):
    truth = np.repeat([False, True], images)
    reference = truth.astype(float) + np.linspace(0, 0.1, len(truth))
    found = compare_auroc(reference, -reference, truth)
    assert (found.loss.value, found.loss.least) == (1.0, -np.inf)
    assert (found.loss.low, found.loss.high) == (None, None)
    best = compare_f1_max(reference, -reference, truth, resamples=50).loss
    assert best.least == bootstrap_loss(np.full(9, 0.5), truth).least == -np.inf


@pytest.mark.parametrize("images", [(10, 10), (20, 20), (50, 50), (100, 100), (100, 40)])
@pytest.mark.parametrize("separation", [0.75, 0.9, 0.97])
@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_interval_of_auroc_covers_the_true_loss(images, separation, noise):
    rng, trials = np.random.default_rng(0), 1000
    truth = true_auroc_loss(separation, noise)
    losses = [compare_auroc(*drawn(rng, images, separation, noise)).loss for _ in range(trials)]
    # What is certainly lost is too much in 2.5% of all samples; 1% is what 1,000 trials leave open.
    assert np.mean([one.least > truth for one in losses]) <= 0.035
    given = [one for one in losses if one.low is not None]
    if images == (10, 10):
        assert not given
    if len(given) < 0.9 * trials:  # of a choice of samples, coverage is at least what is promised
        assert not given or np.mean([o.low <= truth <= o.high for o in given]) >= 0.93
    else:
        assert 0.925 <= np.mean([one.low <= truth <= one.high for one in given]) <= 0.98


@pytest.mark.parametrize(("images", "least"), [(10, 0.52), (20, 0.85)])
def test_percentiles_of_a_bootstrap_of_few_images_would_cover_it_too_rarely(images, least):
    rng, trials, resamples = np.random.default_rng(0), 1000, 400
    weights = rng.multinomial(images, np.full(images, 1 / images), (2, resamples)) / images
    shares = []
    for separation in (0.75, 0.9, 0.97):
        for noise in (0.3, 1.0):
            truth, covered = true_auroc_loss(separation, noise), 0
            for _ in range(trials):
                *scores, labels = drawn(rng, (images, images), separation, noise)
                before, after = (
                    np.heaviside(each[labels][:, None] - each[~labels], 0.5) for each in scores
                )
                losses = (weights[0] @ (before - after) * weights[1]).sum(axis=1)
                low, high = np.quantile(losses, [0.025, 0.975])
                covered += low <= truth <= high
            shares.append(covered / trials)
    # 400 draws and 1,000 trials leave 3% open.
    assert np.min(shares) == pytest.approx(least, abs=0.03)
    assert np.argmin(shares) == 4  # an AUROC of 0.97, little noise: few images change their place


@pytest.mark.slow
@pytest.mark.parametrize(("separation", "noise"), [(0.8, 0.3), (0.8, 1.0), (0.9, 0.5), (0.97, 1.0)])
def test_the_interval_of_f1_max_covers_the_true_loss(separation, noise):
    rng, trials = np.random.default_rng(1), 400
    reference, found, labels = drawn(rng, (200_000, 200_000), separation, noise)
    truth = BestF1.of(reference, labels).value - BestF1.of(found, labels).value
    losses = [
        compare_f1_max(
            *drawn(rng, (200, 200), separation, noise),
            resamples=200,
            seed=int(rng.integers(1 << 30)),
        ).loss
        for _ in range(trials)
    ]
    given = [one for one in losses if one.low is not None]
    assert len(given) > 0.9 * trials
    # 400 trials leave 2.2% open.
    assert 0.925 <= np.mean([one.low <= truth <= one.high for one in given]) <= 0.975


@pytest.mark.parametrize("images", [(199, 200), (200, 199)])
def test_f1_max_of_few_images_has_no_interval(images):
    found = compare_f1_max(*drawn(np.random.default_rng(4), images, 0.8, 1.0), resamples=50).loss
    assert (found.low, found.high, found.enough) == (None, None, FEWEST_FOR_F1)
    assert found.least < found.value


class TestWeightedF1Max:
    """An image that was drawn twice is two images."""

    @given(scores=st.lists(st.integers(0, 9), min_size=2, max_size=30), data=st.data())
    def test_is_that_of_repeated_images(self, scores, data):
        labels = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
        weights = data.draw(st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores)))
        truth, many = np.array(labels), np.array(weights)
        repeated, kinds = np.repeat(np.array(scores, float), many), np.repeat(truth, many)
        assume(0 < kinds.sum() < len(kinds))
        rows = np.stack([many, 2 * many]).astype(float)
        best = BestF1.of(repeated, kinds).value
        assert weighted_f1_max(np.array(scores, float), truth, rows) == pytest.approx(best)


class TestBootstrapLoss:
    def test_is_students_interval_of_the_bootstraps_error(self):
        losses = np.random.default_rng(0).normal(0.1, 0.02, 500)
        labels = np.repeat([False, True], [140, 120])
        found = bootstrap_loss(losses, labels)
        low, high = stats.t.interval(0.95, 119, losses[0], losses[1:].std())
        assert (found.low, found.high) == pytest.approx((low, high))
        assert found.least == found.low

    def test_of_few_images_there_is_none(self):
        labels = np.repeat([False, True], [140, FEWEST_WITH_MAPS - 1])
        found = bootstrap_loss(np.zeros(5), labels)
        assert (found.low, found.high, found.enough) == (None, None, FEWEST_WITH_MAPS)
