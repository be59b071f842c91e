from dataclasses import fields, replace

import pytest

from vadexport.verification.limits import Check, Limits
from vadexport.verification.parity import NO_FIGURES
from vadexport.verification.unjudged import CHECKS, flag_of, given_checks, unjudged

FOUND = replace(NO_FIGURES, images=20, spearman=0.99)
EVERY = Limits(**dict.fromkeys(CHECKS, 0.5))


def test_every_limit_has_the_name_of_its_check():
    assert set(CHECKS) == {each.name for each in fields(Limits)} - {"rounding"}


def test_what_was_judged_or_has_no_limit_is_not_listed():
    checks = [Check(name, held=True, line="") for name in CHECKS.values()]
    assert unjudged(EVERY, checks, FOUND, timed=True) == {}
    assert unjudged(Limits(), [], FOUND, timed=True) == {}


@pytest.mark.parametrize(
    ("name", "timed", "reason"),
    [
        ("max_flips", True, "the detector makes no decisions"),
        ("max_map_drift", True, "the detector gives no map"),
        ("min_auroc_delta", True, "there are no images of both labels"),
        ("max_latency_ms", False, "latency was not measured"),
        ("max_memory_mb", False, "latency was not measured"),
        ("max_memory_mb", True, "this system does not tell how much memory a process takes"),
    ],
)
def test_the_reason(name, timed, reason):
    assert unjudged(EVERY, [], FOUND, timed=timed)[name] == reason


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (replace(FOUND, images=1), "one image alone has no rank"),
        (replace(FOUND, spearman=None), "the reference gives all images the same score"),
        (replace(FOUND, not_finite=20), "no image has a finite score under both"),
        (
            FOUND,
            "20 images tell too little, for neighbours change places by chance: 229 would do",
        ),
    ],
)
def test_why_order_was_not_judged(found, reason):
    limits = Limits.of_precision("auto")
    assert unjudged(limits, [], found, timed=True)["min_spearman"].startswith(reason)


class TestLimitsThatSomebodySet:
    def checks(self, *given, made=()):
        why = unjudged(EVERY, made, FOUND, timed=True)
        return given_checks(why, EVERY, given, made)

    def test_fall_short(self):
        (check,) = self.checks("max_memory_mb")
        assert (check.name, check.held, check.judged) == ("memory", False, False)
        assert check.line == (
            "--max-memory-mb 0.5 cannot be judged: this system does not tell how much memory a "
            "process takes"
        )

    def test_others_stay_unchecked(self):
        assert self.checks() == []

    def test_what_was_judged_is_left_alone(self):
        assert self.checks("max_memory_mb", made=[Check("memory", held=True, line="")]) == []

    def test_planted_defects_are_held_against_the_limit_on_auroc(self):
        assert [check.name for check in self.checks("min_auroc_delta")] == ["auroc"]
        planted = [Check("synthetic", held=True, line="")]
        assert self.checks("min_auroc_delta", made=planted) == []


def test_flags():
    assert flag_of("max_memory_mb") == "--max-memory-mb"
