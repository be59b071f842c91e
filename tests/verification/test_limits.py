from dataclasses import fields, replace

import numpy as np
import pytest

from vadexport.backends.base import Execution
from vadexport.targets import PRECISIONS
from vadexport.verification.latency import Footprint, LatencyFigures, Speedup
from vadexport.verification.limits import (
    Limits,
    images_that_rank,
    instability,
    latency_checks,
    least_by_chance,
    parity_checks,
    size_checks,
)
from vadexport.verification.parity import ParityFigures, figures
from vadexport.verification.records import ImageRecord
from vadexport.verification.statistics import Interval, proportion_interval, spearman
from vadexport.verification.unjudged import unjudged

GOOD = ParityFigures(
    images=100,
    drift_max=0.5,
    drift_mean=0.1,
    drift_median=0.1,
    drift_p95=0.4,
    spearman=0.995,
    flips=2,
    map_max=0.1,
    map_mean=0.01,
    auroc_reference=0.9875,
    auroc=0.9825,
    not_finite=0,
    inconsistent=0,
)
EVERY = Limits(
    max_drift=0.5, max_flips=0.02, min_spearman=0.995, max_map_drift=0.1, min_auroc_delta=-0.0051
)


def held(found, limits):
    checks = parity_checks(found, limits, given=("min_spearman",))
    return {check.name: check.held for check in checks}


def test_figures_at_their_limits_hold():
    assert held(GOOD, EVERY) == dict.fromkeys(
        ("finite", "outputs", "drift", "flips", "spearman", "map", "auroc"), True
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("finite", {"not_finite": 1}),
        ("drift", {"drift_max": 0.500001}),
        ("flips", {"flips": 3}),
        ("spearman", {"spearman": 0.994999}),
        ("map", {"map_max": 0.1000001}),
        ("outputs", {"inconsistent": 1}),
        ("auroc", {"auroc": 0.982}),
    ],
)
def test_each_figure_beyond_its_limit_fails_its_check_alone(name, change):
    found = held(replace(GOOD, **change), EVERY)
    assert [key for key, value in found.items() if not value] == [name]


def test_a_better_auroc_holds():
    assert held(replace(GOOD, auroc=1.0), EVERY)["auroc"]


def test_without_limits_outputs_must_be_finite_and_agree():
    assert held(GOOD, Limits()) == {"finite": True, "outputs": True}
    assert held(replace(GOOD, not_finite=1), Limits()) == {"finite": False, "outputs": True}
    assert held(replace(GOOD, inconsistent=1), Limits()) == {"finite": True, "outputs": False}


def test_figures_that_do_not_exist_are_not_checked():
    found = replace(GOOD, spearman=None, auroc=None, auroc_reference=None)
    assert list(held(found, EVERY)) == ["finite", "outputs", "drift", "flips", "map"]


def test_lines_give_measured_and_limit():
    lines = {check.name: check.line for check in parity_checks(replace(GOOD, flips=3), EVERY)}
    assert lines["drift"] == "largest drift 0.5, limit 0.5"
    assert lines["map"] == (
        "largest difference of a map, as a fraction of the maps' range, 0.1, limit 0.1"
    )
    assert lines["flips"] == (
        "3 of 100 decisions flipped (3.00%, at most 8.52% of such images, 95%), limit 2.0%"
    )
    assert lines["spearman"] == "Spearman 0.99500, limit 0.995"
    assert lines["auroc"] == "AUROC 0.9825, reference 0.9875 (-0.0050), limit -0.0051"
    assert lines["finite"] == "0 of 100 images have scores that are not finite"


def test_the_line_names_images_that_are_not_finite_and_whose_score_it_is():
    nan = float("nan")
    scores = {"a": (nan, 1.0), "b": (1.0, nan), "c": (1.0, 1.0)}
    records = [
        ImageRecord(
            name,
            None,
            first,
            second,
            None,
            None,
            None,
            None,
            None,
            consistent=True,
            reference_finite=name != "a",
        )
        for name, (first, second) in scores.items()
    ]
    (line, *_) = parity_checks(replace(GOOD, images=3, not_finite=2), EVERY, records)
    assert line.line == (
        "2 of 3 images have scores that are not finite: a (reference), b (artifact)"
    )
    (line, *_) = parity_checks(replace(GOOD, images=30, not_finite=20), EVERY, 10 * records)
    assert line.line.count("(") == 5
    assert line.line.endswith(", …")


class TestOrderWithinRounding:
    """Of float32: images that the reference scores alike may come out in any order."""

    unit = 2.0

    def records(self, change):
        """Ten normal and ten anomalous images; two of either kind have the same score."""
        scores = np.array([*range(10), 9, *range(11, 20)], float)
        moved = scores.copy()
        moved[9] += change
        return [
            ImageRecord(
                str(n), n >= 10, scores[n], moved[n], None, None, None, None, None, consistent=True
            )
            for n in range(20)
        ]

    def fallen(self, change, precision="fp32", **given):
        found = figures(self.records(change), self.unit)
        limits = Limits.of_precision(precision).overridden(**given)
        return {check.name: check.line for check in parity_checks(found, limits) if not check.held}

    def test_a_broken_tie_falls_short_of_what_is_judged_without(self):
        found = figures(self.records(1e-7), self.unit)
        assert found.spearman < 0.9999
        assert found.auroc - found.auroc_reference == pytest.approx(-0.005)

    def test_a_broken_tie_holds(self):
        assert self.fallen(1e-7) == {}
        assert self.fallen(self.unit * 0.99e-3) == {}

    def test_more_than_rounding_falls_short(self):
        lines = self.fallen(self.unit * 1.1e-3, max_drift=1.0)
        assert set(lines) == {"spearman", "auroc"}

    def test_other_precisions_have_limits_that_leave_room_for_it(self):
        assert set(self.fallen(1e-7, "fp16")) == {"auroc"}
        assert Limits.of_precision("int8").rounding is None

    def test_a_line_shows_both(self):
        found = figures(self.records(1e-7), self.unit)
        lines = {c.name: c.line for c in parity_checks(found, Limits.of_precision("fp32"))}
        # One rank of twenty is off by a half twice, and the tie's correction goes.
        exact = np.sqrt((20**3 - 20 - 6) / (20**3 - 20))
        assert found.spearman == pytest.approx(exact)
        assert lines["spearman"] == (
            f"Spearman 1.00000 ({int(exact * 1e5) / 1e5:.5f} with drift up to 0.001, which counts "
            "as none), limit 0.9999"
        )


class TestAThresholdThatIsTheScoreOfAnImage:
    """As anomalib's F1AdaptiveThreshold gives it: rounding alone then decides on that image."""

    unit, threshold = 0.5, 3.0

    def records(self, move, *, consistent=True):
        """Twenty images, the fourth at the threshold; the artifact moves it."""
        scores = np.arange(20.0)
        moved = scores + move * (scores == self.threshold)
        return [
            ImageRecord(
                str(n),
                None,
                scores[n],
                moved[n],
                scores[n] > self.threshold,
                moved[n] > self.threshold,
                None,
                None,
                None,
                consistent=consistent,
            )
            for n in range(20)
        ]

    def flips(self, records, precision="fp32", **given):
        limits = Limits.of_precision(precision).overridden(**given)
        checks = parity_checks(figures(records, self.unit), limits)
        (check,) = [check for check in checks if check.name == "flips"]
        return check

    def test_is_a_tie_and_told(self):
        found = figures(self.records(1e-6), self.unit)
        assert (found.flips, found.settled_flips) == (1, 0)
        check = self.flips(self.records(1e-6))
        assert check.held
        high = 100 * proportion_interval(0, 19).high
        assert check.line == (
            f"0 of 19 decisions flipped (0.00%, at most {high:.3g}% of such images, 95%), limit "
            "0.0%; 1 more is a tie, as near to the threshold as rounding (0.001 drift units)"
        )

    def test_rounding_ends_where_drift_begins(self):
        assert self.flips(self.records(self.unit * 0.99e-3)).held
        check = self.flips(self.records(self.unit * 1.1e-3), max_drift=1.0)
        assert not check.held
        assert check.line.startswith("1 of 20 decisions flipped (5.00%")

    def test_a_decision_that_contradicts_its_own_score_is_none(self):
        assert not self.flips(self.records(1e-6, consistent=False)).held

    def test_without_a_move_of_any_score_it_is_a_flip(self):
        records = self.records(0.0)
        records[3] = replace(records[3], label=True)
        assert not self.flips(records).held
        # anomalib decides by pred_score, which may be rounded otherwise where the raw score is not.
        records[3] = replace(records[3], reference_score=0.5, score=0.5 + 6e-8)
        assert self.flips(records).held

    def test_without_a_tie_nothing_is_said(self):
        assert self.flips(self.records(0.0)).line.endswith("limit 0.0%")

    def test_other_precisions_count_it(self):
        assert not self.flips(self.records(1e-6), "fp16").held

    def test_of_ties_alone_nothing_is_known(self):
        check = self.flips([self.records(1e-6)[3]])
        assert check.held
        assert check.line.startswith("0 of 0 decisions flipped (0.00%, at most 100% of such images")


class TestOrderOfFewImages:
    """Neighbours that change places by chance must not decide."""

    def swapped(self, images):
        scores = np.arange(float(images))
        moved = scores.copy()
        moved[:2] = moved[1::-1]
        records = [
            ImageRecord(str(n), None, a, b, None, None, None, None, None, consistent=True)
            for n, (a, b) in enumerate(zip(scores, moved, strict=True))
        ]
        return figures(records, 10.0)

    def verdict(self, found, limits, given=()):
        checks = {check.name: check for check in parity_checks(found, limits, given=given)}
        return checks["spearman"].held if "spearman" in checks else None

    @pytest.mark.parametrize(
        ("precision", "enough"), [("auto", 229), ("int8", 107), ("fp16", 107), ("fp32", 2)]
    )
    def test_is_judged_by_the_limit_alone_from_so_many_on(self, precision, enough):
        limits = Limits.of_precision(precision)
        below = replace(GOOD, spearman=limits.min_spearman - 1e-5)
        assert images_that_rank(limits) == enough
        assert self.verdict(replace(below, images=enough), limits) is False
        if enough > 2:
            assert self.verdict(replace(below, images=enough - 1), limits) is None
            assert self.verdict(replace(below, images=enough, not_finite=1), limits) is None

    def test_one_pair_among_twenty_leaves_auto_undecided(self):
        limits, found = Limits.of_precision("auto"), self.swapped(20)
        assert found.spearman == pytest.approx(0.9985, abs=1e-4)
        assert self.verdict(found, limits) is None
        assert self.verdict(found, limits, given=("min_spearman",)) is False
        assert self.verdict(replace(found, spearman=0.9991), limits) is True

    @pytest.mark.parametrize("images", [3, 5, 20, 60])
    def test_what_chance_does_not_explain_falls_short(self, images):
        limits = Limits.of_precision("int8")
        least = least_by_chance(limits, images)
        found = replace(GOOD, images=images, spearman=least - 1e-3)
        assert self.verdict(found, limits) is False
        lines = {check.name: check.line for check in parity_checks(found, limits)}
        assert lines["spearman"].endswith(
            f"limit 0.99; by chance {images} images give {least:.4f} at least"
        )
        assert self.verdict(replace(found, spearman=least), limits) is None

    def test_no_number_of_images_is_too_few_for_a_perfect_order(self):
        assert images_that_rank(Limits(min_spearman=1.0)) == 2

    @pytest.mark.parametrize("images", [4, 6, 8, 12, 20, 50, 80])
    @pytest.mark.parametrize("precision", ["int8", "auto"])
    def test_an_artifact_at_the_limit_seldom_falls_short_of_few(self, precision, images):
        limits = Limits.of_precision(precision)
        found = self.drawn(limits.min_spearman, images)
        assert np.mean(found < least_by_chance(limits, images)) < 0.03

    @pytest.mark.parametrize("precision", ["int8", "auto"])
    def test_one_that_loses_half_of_the_limit_seldom_falls_short_of_enough(self, precision):
        limits = Limits.of_precision(precision)
        found = self.drawn((1 + limits.min_spearman) / 2, images_that_rank(limits))
        assert np.mean(found < limits.min_spearman) < 0.06

    def drawn(self, truth, images, trials=2000):
        """Rank correlations of samples of normal scores, and of these with noise, that have it."""
        rng = np.random.default_rng(0)
        r = 2 * np.sin(np.pi * truth / 6)  # Pearson's, of two normal distributions
        scores = rng.normal(size=(trials, images))
        moved = scores + np.sqrt(1 / r**2 - 1) * rng.normal(size=scores.shape)
        return np.array([spearman(a, b) for a, b in zip(scores, moved, strict=True)])


def test_an_artifact_that_scores_all_alike_keeps_no_order():
    records = [
        ImageRecord(str(n), None, float(n), 1.0, None, None, None, None, None, consistent=True)
        for n in range(60)
    ]
    found = figures(records, 100.0)
    assert (found.spearman, found.settled_spearman) == (0.0, 0.0)
    assert not held(found, Limits.of_precision("int8"))["spearman"]
    alike = figures([replace(record, reference_raw=2.0) for record in records], 100.0)
    assert alike.spearman is None
    assert "spearman" not in held(alike, Limits.of_precision("int8"))


def test_a_line_never_shows_a_limit_as_what_was_measured_beyond_it():
    lines = {
        check.name: check.line for check in parity_checks(replace(GOOD, drift_max=0.5000004), EVERY)
    }
    assert lines["drift"] == "largest drift 0.5000004, limit 0.5"


def timed(median_ms, disturbed_calls=0.0, name="a"):
    execution = Execution("backend", "float32", "a processor", 2)
    return LatencyFigures(name, execution, median_ms, median_ms, 10 * (median_ms,), disturbed_calls)


class TestLatency:
    speedup = Speedup("a", "reference", Interval(3.0, 2.5, 3.5))
    both = (timed(10.0), timed(30.0, name="reference"))

    def test_the_lower_end_of_the_interval_must_reach_the_speedup(self):
        for limit, wanted in [(2.5, True), (2.51, False), (3.0, False)]:
            (check,) = latency_checks(*self.both, self.speedup, Limits(min_speedup=limit))
            assert (check.name, check.held) == ("speedup", wanted)
        assert "speed-up 3.000, 95% interval from 2.500, limit 3" in check.line

    def test_fewer_than_five_rounds_prove_nothing(self):
        limits = Limits(min_speedup=1.0, max_latency_ms=100.0)
        for rounds, wanted in [(1, False), (4, False), (5, True)]:
            artifact = replace(self.both[0], samples_ms=rounds * (10.0,))
            checks = latency_checks(artifact, self.both[1], self.speedup, limits)
            assert [check.held for check in checks] == [wanted, wanted]

    def test_the_interval_of_the_median_must_not_exceed_the_latency(self):
        samples = (8.0, 9.0, 9.5, 10.0, 10.0, 10.5, 11.0, 30.0, 31.0)
        artifact = replace(self.both[0], samples_ms=samples)
        (check,) = latency_checks(artifact, self.both[1], self.speedup, Limits(max_latency_ms=10.1))
        assert not check.held
        limits = Limits(max_latency_ms=31.0)
        assert latency_checks(artifact, self.both[1], self.speedup, limits)[0].held

    def test_the_median_must_not_exceed_the_latency(self):
        for limit, wanted in [(10.0, True), (9.99, False)]:
            (check,) = latency_checks(*self.both, self.speedup, Limits(max_latency_ms=limit))
            assert (check.name, check.held) == ("latency", wanted)

    @pytest.mark.parametrize(
        ("again", "floor"),
        [
            (Interval(1.0, 0.99, 1.04), 1.04),
            (Interval(1.0, 0.8, 1.1), 1.25),
            (Interval(0.98, 0.97, 0.99), 1 / 0.97),
            (Interval(1.0, 1.0, 1.0), 1.0),
        ],
    )
    def test_what_is_left_of_the_speedup_above_the_floor_must_reach_it(self, again, floor):
        artifact = replace(self.both[0], again=again)
        assert artifact.floor == pytest.approx(floor)
        for limit, wanted in [(2.499 / floor, True), (2.501 / floor, False)]:
            limits = Limits(min_speedup=limit)
            (check,) = latency_checks(artifact, self.both[1], self.speedup, limits)
            assert check.held == wanted
        assert f"interval from 2.500, divided by the A/A floor {floor:.3f}: " in check.line

    def test_what_differs_from_itself_is_called_disturbed(self):
        quiet = replace(self.both[0], again=Interval(1.0, 0.96, 1.05))
        loud = replace(self.both[0], again=Interval(1.0, 0.95, 1.04))
        assert instability(quiet, self.both[1]) is None
        assert "disturbed: timed against itself, a by up to 1.05 times" in instability(loud)

    def test_without_limits_nothing_is_checked(self):
        assert latency_checks(*self.both, self.speedup, Limits()) == []

    @pytest.mark.parametrize(
        ("calls", "wanted"), [(None, [True, True]), (0.1, [True, True]), (0.11, [True, False])]
    )
    def test_a_disturbed_reference_proves_no_speedup(self, calls, wanted):
        reference = timed(30.0, calls, "reference")
        limits = Limits(min_speedup=2.0, max_latency_ms=20.0)
        checks = latency_checks(timed(10.0), reference, self.speedup, limits)
        assert [check.held for check in checks] == wanted
        if not all(wanted):
            assert "other programs took the processors" in checks[1].line
            assert "11% of reference" in checks[1].line

    def test_a_disturbed_artifact_proves_nothing(self):
        limits = Limits(min_speedup=2.0, max_latency_ms=20.0)
        checks = latency_checks(timed(10.0, 0.5), self.both[1], self.speedup, limits)
        assert [check.held for check in checks] == [False, False]


class TestDefaults:
    @pytest.mark.parametrize("precision", sorted({p for ps in PRECISIONS.values() for p in ps}))
    def test_every_precision_has_all_parity_limits(self, precision):
        limits = Limits.of_precision(precision)
        assert None not in (
            limits.max_drift,
            limits.max_flips,
            limits.min_spearman,
            limits.max_map_drift,
            limits.min_auroc_delta,
        )
        assert (limits.min_speedup, limits.max_latency_ms) == (None, None)

    def test_float32_is_stricter_than_int8(self):
        fp32, int8 = Limits.of_precision("fp32"), Limits.of_precision("int8")
        assert fp32.max_flips == 0
        assert fp32.max_drift < int8.max_drift
        assert fp32.min_spearman > int8.min_spearman
        assert fp32.max_map_drift < int8.max_map_drift
        assert fp32.min_auroc_delta > int8.min_auroc_delta

    def test_a_rung_is_judged_by_the_drift_of_scores_and_maps(self):
        whole = Limits.of_precision("int8")
        wanted = Limits(max_drift=whole.max_drift, max_map_drift=whole.max_map_drift)
        assert Limits.of_rung("int8") == wanted

    def test_given_limits_take_the_place_of_defaults(self):
        given = {each.name: None for each in fields(Limits)} | {"max_flips": 0.0, "min_speedup": 2}
        limits = Limits.of_precision("int8").overridden(**given)
        assert limits == replace(Limits.of_precision("int8"), max_flips=0.0, min_speedup=2)


class TestSize:
    def latency(self, peak):
        execution = Execution("x", "float32", "a processor", 1)
        return LatencyFigures("x", execution, 1.0, 1.0, (1.0,), footprint=Footprint(5.0, 2.0, peak))

    @pytest.mark.parametrize(("megabytes", "held"), [(9.9, True), (10.0, True), (10.1, False)])
    def test_of_the_files(self, megabytes, held):
        (check,) = size_checks(megabytes, None, Limits(max_size_mb=10.0))
        assert (check.name, check.held) == ("size", held)
        assert "limit 10" in check.line

    @pytest.mark.parametrize(("peak", "held"), [(400.0, True), (401.0, False)])
    def test_of_memory(self, peak, held):
        (check,) = size_checks(1.0, self.latency(peak), Limits(max_memory_mb=400.0))
        assert (check.name, check.held) == ("memory", held)

    def test_memory_that_was_not_measured_is_not_checked(self):
        for latency in (None, self.latency(None)):
            assert size_checks(1.0, latency, Limits(max_memory_mb=400.0)) == []

    def test_without_limits_there_is_no_check(self):
        assert size_checks(1e9, self.latency(1e9), Limits()) == []


class TestAurocOfFewImages:
    """Two pairs of images of both labels may change places by chance."""

    def records(self, normal, anomalous, pairs=0):
        """Scores that are apart, but for so many pairs of the artifact's that change places."""
        made = [(False, n) for n in range(normal)]
        made += [(True, normal + n) for n in range(anomalous)]
        # Each of the first anomalous images falls below the highest normal one alone.
        moved = {normal + n: normal - 1.5 + n / 100 for n in range(pairs)}
        return [
            ImageRecord(str(n), label, score, moved.get(n, score), *([None] * 5), consistent=True)
            for n, (label, score) in enumerate(made)
        ]

    def verdict(self, records, limits, given=()):
        found = figures(records, 1e3)
        checks = {each.name: each for each in parity_checks(found, limits, records, given)}
        return checks["auroc"].held if "auroc" in checks else None

    @pytest.mark.parametrize(
        ("precision", "images", "pairs", "held"),
        [
            ("int8", (10, 10), 0, True),
            ("int8", (10, 10), 1, None),
            ("int8", (10, 10), 2, None),
            ("int8", (10, 10), 3, False),
            ("int8", (20, 20), 2, True),
            ("int8", (20, 20), 3, False),
            ("auto", (20, 20), 2, None),
            ("auto", (45, 45), 2, True),
            ("auto", (45, 45), 3, False),
            ("fp32", (10, 10), 1, False),
            ("int8", (5, 5), 1, False),
            ("int8", (1, 60), 1, None),
            ("int8", (1, 60), 2, False),
        ],
    )
    def test_what_two_pairs_explain_is_not_judged(self, precision, images, pairs, held):
        records, limits = self.records(*images, pairs), Limits.of_precision(precision)
        assert figures(records, 1e3).auroc == pytest.approx(1 - pairs / (images[0] * images[1]))
        assert self.verdict(records, limits) is held

    def test_a_limit_that_is_given_is_held_as_it_is(self):
        records, limits = self.records(10, 10, 1), Limits.of_precision("int8")
        assert self.verdict(records, limits, given=("min_auroc_delta",)) is False

    def test_a_gain_that_is_asked_for_is_judged(self):
        records = self.records(10, 10, 0)
        limits = Limits.of_precision("int8").overridden(min_auroc_delta=0.01)
        assert self.verdict(records, limits, given=("min_auroc_delta",)) is False

    def test_why_it_is_not_judged(self):
        records, limits = self.records(10, 10, 1), Limits.of_precision("int8")
        found = figures(records, 1e3)
        why = unjudged(limits, parity_checks(found, limits, records), found, timed=False)
        assert why["min_auroc_delta"].startswith("of 20 images two pairs")

    def test_what_is_beyond_chance_says_what_is_not(self):
        records, limits = self.records(10, 10, 3), Limits.of_precision("int8")
        lines = {
            each.name: each.line for each in parity_checks(figures(records, 1e3), limits, records)
        }
        assert lines["auroc"].endswith("limit -0.005; of few images -0.0200 says nothing")
