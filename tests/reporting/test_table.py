import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadexport.reporting import summary_table
from vadexport.reporting.wording import measured, percent, shown
from vadexport.verification.limits import Check, Limits
from vadexport.verification.parity import ParityFigures
from vadexport.verification.statistics import Interval

COUNTS = ("images", "flips", "not_finite")
SHARES = ("auroc", "auroc_reference", "spearman")


def values(name):
    if name in COUNTS:
        return st.integers(0, 10**6)
    return st.none() | (st.floats(-1, 1) if name in SHARES else st.floats())


FIGURES = st.builds(ParityFigures, **{one.name: values(one.name) for one in fields(ParityFigures)})


def lines(*verifications):
    found = summary_table(verifications).splitlines()
    assert all(len(line) <= 100 for line in found)
    assert all(line == line.rstrip() for line in found)
    return found


class TestTable:
    def test_one(self, make):
        reference, unit, more, empty, upper, lower, _, row = lines(make.verification())
        assert reference == (
            "reference detector.safetensors: AUROC 0.9912, 60.0 ms median, float32, 4 images"
        )
        assert f"{unit} {more.strip()}" == (
            "drift unit 0.5: interquartile range of its raw scores on "
            "the 40 normal images that set its thresholds"
        )
        assert empty == ""
        assert upper.split() == ["target", "AUROC", "drift", "map", "median", "speed-up"]
        assert lower.split()[-1] == "verdict"
        assert row.split() == [
            "openvino:int8",
            *("0.9912", "→", "0.9871"),
            *("0.6", "0.12", "0.98765", "1/4"),
            *("6.00", "10.0", "[9.25–10.5]"),
            "held",
        ]

    def test_what_a_latency_must_be_read_with(self, make):
        given = make.latency()
        latency = replace(given, artifact=replace(given.artifact, again=Interval(1.0, 0.98, 1.01)))
        found = lines(make.verification(latency=latency))
        assert " ".join(" ".join(found[-5:]).split()) == (
            "openvino:int8: images per second, call after call: 167, reference 16.7 "
            "openvino:int8: 90% of the calls within: 6.80 ms, reference 68.0 ms "
            "openvino:int8: 99% of the calls within: – (299 calls tell, 3 were timed), reference – "
            "(299 calls tell, 3 were timed) "
            "openvino:int8: A/A floor [95% interval against itself]: 1.020 [0.980–1.010]"
        )

    def test_figures_end_below_one_another(self, make):
        short = make.verification(
            target="a:b", figures=replace(make.verification().figures, flips=33)
        )
        first, second = lines(make.verification(), short)[-2:]
        assert first.index("1/4") + len("1/4") == second.index("33/4") + len("33/4")
        assert first.index("held") == second.index("held")

    def test_missing_values(self, make):
        v = make.verification(
            latency=None, limits=replace(make.verification().limits, min_speedup=None)
        )
        figures = replace(v.figures, auroc=None, auroc_reference=None, spearman=None)
        found = lines(replace(v, figures=figures))
        assert "ms median" not in found[0]
        assert found[-1].split()[1:] == ["–", "0.6", "0.12", "–", "1/4", "–", "–", "held"]

    def test_what_fell_short(self, make):
        checks = (
            Check("drift", held=False, line="largest drift 1.4, limit 1"),
            Check("flips", held=True, line="0 of 4 decisions flipped"),
            Check("speedup", held=False, line="speed-up 2.1, limit 3"),
        )
        found = lines(make.verification(checks=checks), make.verification(target="openvino:fp32"))
        assert found[-4:] == [
            "",
            "openvino:int8: largest drift 1.4, limit 1",
            "openvino:int8: 0 of 4 decisions flipped",
            "openvino:int8: speed-up 2.1, limit 3",
        ]
        assert [line.endswith("fell short") for line in found[-6:-4]] == [True, False]

    def test_a_limit_that_was_not_checked(self, make):
        v = make.verification(latency=None, checks=make.verification().checks[:2])
        assert lines(v)[-1] == (
            "openvino:int8: not checked: speed-up, lower end of its 95% interval: "
            "latency was not measured"
        )

    @pytest.mark.parametrize(
        ("images", "not_finite", "reason"),
        [
            (1, 0, "one image alone has no rank"),
            (3, 2, "one image alone has no rank"),
            (4, 0, "the reference gives all images the same score"),
        ],
    )
    def test_why_there_is_no_rank_correlation(self, make, images, not_finite, reason):
        v = make.verification(limits=Limits(min_spearman=0.9), checks=())
        found = replace(v.figures, images=images, not_finite=not_finite, spearman=None)
        shown = " ".join(" ".join(lines(replace(v, figures=found))).split())
        assert shown.endswith(f"raw scores: {reason}")

    def test_several_references(self, make):
        found = lines(make.verification(), make.verification(source_name="other.pt"))
        assert sum(line.startswith("reference ") for line in found) == 2
        found = lines(make.verification(), make.verification(target="onnxruntime:int8"))
        assert sum(line.startswith("reference ") for line in found) == 1

    def test_wide_figures_go_below(self, make):
        v = make.verification(target="onnxruntime:int8-and-x")
        found = lines(v, replace(v, figures=replace(v.figures, flips=10**8, images=10**9)))
        assert sum(line.startswith("onnxruntime:int8-and-x ") for line in found) == 4
        assert sum(line.split()[0] == "target" for line in found if line) == 2

    def test_nothing_reaches_the_terminal_as_a_command(self, make):
        assert "\x1b" not in summary_table([make.verification(source_name="a\x1b[31m.pt")])

    @given(FIGURES, st.text(max_size=300), st.tuples(*[st.floats(0, 1e12)] * 4))
    def test_never_wider_than_a_terminal(self, make, figures, name, speeds):
        latency = make.latency()
        latency = replace(
            latency,
            artifact=replace(latency.artifact, median_ms=speeds[3]),
            speedup=replace(latency.speedup, ratio=Interval(*speeds[:3])),
        )
        v = make.verification(figures=figures, latency=latency, target=name, source_name=name)
        found = summary_table([v, make.verification(target="onnxruntime:fp32")]).split("\n")
        assert max(map(len, found)) <= 100


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (98.76, "98.8"),
        (17, "17.0"),
        (1234.5, "1234"),
        (0.01234, "0.0123"),
        (-2.5, "-2.50"),
        (0, "0"),
        (1e-9, "1e-09"),
        (math.nan, "not finite"),
    ],
)
def test_measured(value, words):
    assert measured(value) == words


@pytest.mark.parametrize(
    ("fraction", "words"),
    [(0.031, "3.1%"), (1.23e-7, "1.23e-05%"), (None, "–"), (math.inf, "not finite")],
)
def test_percent(fraction, words):
    assert percent(fraction) == words


@pytest.mark.parametrize(
    ("value", "form", "words"),
    [
        (0.12345, ".3g", "0.123"),
        (8, "d", "8"),
        (8.0, "d", "8"),
        (10**400, "d", "1" + 400 * "0"),
        (math.inf, "d", "not finite"),
        (None, "d", "–"),
        ("NaN", ".3g", "NaN"),
        (["many"], ".3g", "['many']"),
    ],
)
def test_figures_from_files(value, form, words):
    assert shown(value, form) == words
