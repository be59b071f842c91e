from dataclasses import fields, replace

import numpy as np
import pytest

from vadexport.backends.base import Execution
from vadexport.targets import PRECISIONS
from vadexport.verification.latency import Footprint, LatencyFigures, Speedup
from vadexport.verification.limits import (
    Limits,
    instability,
    latency_checks,
    parity_checks,
    size_checks,
)
from vadexport.verification.parity import ImageRecord, ParityFigures, figures
from vadexport.verification.statistics import Interval

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
    return {check.name: check.held for check in parity_checks(found, limits)}


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
