import math
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.reporting.plots import drift_plot, latency_plot, score_plot

SCORES = st.floats(width=32) | st.floats(0, 5)
RECORDS = st.lists(
    st.tuples(SCORES, SCORES, st.sampled_from([True, False, None])), min_size=1, max_size=25
)
NUMBERS = ("x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "width", "height")


def read(plot):
    """The drawing; every coordinate of it finite and inside the view box."""
    root = ET.fromstring(plot.svg)
    left, top, width, height = map(float, root.get("viewBox").split())
    assert (left, top) == (0, 0)
    for element in root.iter():
        for name in NUMBERS:
            if name in element.attrib:
                limit = width if name in ("x", "x1", "x2", "cx", "width", "r") else height
                assert 0 <= float(element.get(name)) <= limit
        for pair in element.get("points", "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    return root


def elements(root, css):
    return [one for one in root.iter() if css in one.get("class", "").split()]


def marks(root):
    """Marks of images by what is shown when the pointer is on them."""
    return {one.find("title").text: one for one in root.iter() if one.find("title") is not None}


def centre(mark):
    if mark.tag == "circle":
        return float(mark.get("cx")), float(mark.get("cy"))
    if mark.tag == "rect":
        half = float(mark.get("width")) / 2
        return float(mark.get("x")) + half, float(mark.get("y")) + half
    corners = [tuple(map(float, pair.split(","))) for pair in mark.get("points").split()]
    return corners[0][0], corners[0][1] + 3.4


def named(root):
    return {words.partition(":")[0]: mark for words, mark in marks(root).items()}


def coordinates(line):
    return [float(line.get(name)) for name in ("x1", "y1", "x2", "y2")]


class TestScorePlot:
    def test_equal_scores_lie_on_the_identity_line(self, make):
        records = [make.record(str(n), n / 3, n / 3) for n in range(7)]
        root = read(score_plot(records, 1.0))
        ((x1, y1, x2, y2),) = [coordinates(line) for line in elements(root, "identity")]
        assert len(marks(root)) == 7
        for mark in marks(root).values():
            x, y = centre(mark)
            assert y - y1 == pytest.approx((x - x1) * (y2 - y1) / (x2 - x1), abs=0.2)

    def test_places(self, make):
        values = {"a": (1, 2), "b": (2, 2), "c": (4, 6)}
        records = [make.record(name, *both) for name, both in values.items()]
        found = {name: centre(mark) for name, mark in named(read(score_plot(records, 3))).items()}
        # Both axes have the same scale; y points up.
        unit = found["b"][0] - found["a"][0]
        assert unit > 10
        assert found["c"][0] - found["b"][0] == pytest.approx(2 * unit, abs=0.3)
        assert found["b"][1] - found["c"][1] == pytest.approx(4 * unit, abs=0.3)

    def test_the_threshold(self, make):
        records = [make.record(name, value, value) for name, value in (("a", 1), ("b", 3))]
        root = read(score_plot(records, 2.0))
        upright, level = (coordinates(line) for line in elements(root, "limit"))
        places = [centre(mark) for mark in marks(root).values()]
        assert upright[0] == upright[2] == pytest.approx(np.mean([x for x, _ in places]), abs=0.2)
        assert level[1] == level[3] == pytest.approx(np.mean([y for _, y in places]), abs=0.2)

    def test_a_threshold_far_off(self, make):
        plot = score_plot([make.record("a", 1, 1), make.record("b", 2, 2)], 900.0)
        assert not elements(read(plot), "limit")
        assert plot.notes == ("The threshold, 900, lies outside the axes.",)

    def test_kinds_differ_in_class_and_shape(self, make):
        kinds = {"normal": False, "anomalous": True, "unknown": None}
        records = [make.record(name, anomalous=kind) for name, kind in kinds.items()]
        found = named(read(score_plot(records, 2.0)))
        assert {mark.tag for mark in found.values()} == {"circle", "polygon", "rect"}
        assert all(name in mark.get("class").split() for name, mark in found.items())

    def test_the_legend_names_what_is_there(self, make):
        records = [make.record("a"), make.record("b", 1.9, 2.1), make.record("c", anomalous=None)]
        root = read(score_plot(records, 2.0))
        words = [one.text for one in root.iter("text")]
        assert "normal (2)" in words
        assert "unknown (1)" in words
        assert "flips (1)" in words
        assert not any(word.startswith("anomalous") for word in words)

    def test_flips_are_ringed(self, make):
        records = [make.record("a"), make.record("flipped", 1.9, 2.1)]
        root = read(score_plot(records, 2.0))
        place = centre(named(root)["flipped"])
        ring, legend = elements(root, "ring")
        assert centre(ring) == pytest.approx(place, abs=0.1)
        assert centre(legend) != pytest.approx(place, abs=5)

    def test_far_off_images_are_on_the_border(self, make):
        records = [make.record(str(n), 1 + n / 50, 1 + n / 50) for n in range(50)]
        plot = score_plot([*records, make.record("far", 1.5, 1e6)], 2.0)
        root = read(plot)
        (far,) = elements(root, "outside")
        assert far.find("title").text.startswith("far: reference 1.5000 (normal), artifact 1000000")
        assert "Far-off images, drawn hollow on the border: 1." in plot.notes

    def test_not_finite(self, make):
        plot = score_plot([make.record("a"), make.record("b", raw=math.nan)], 2.0)
        assert list(named(read(plot))) == ["a"]
        assert "Images left out, as their scores are not finite: 1." in plot.notes

    def test_nothing_to_draw(self, make):
        plot = score_plot([make.record(raw=math.inf)], 2.0)
        assert plot.svg == ""
        assert plot.notes == ("None of the 1 images has finite scores to draw.",)

    def test_names_are_escaped(self, make):
        name = "测试/<script>alert('&')</script>.png"
        plot = score_plot([make.record(name)], 2.0)
        assert "<script" not in plot.svg
        assert any(words.startswith(name) for words in marks(read(plot)))

    def test_thousands(self, make):
        rng = np.random.default_rng(0)
        scores = rng.normal(1, 0.2, (20_000, 2))
        records = [make.record(str(n), *pair) for n, pair in enumerate(scores)]
        plot = score_plot(records, 2.0)
        found = marks(read(plot))
        more = sum(
            int(words.rpartition("(and ")[2].split()[0]) for words in found if "(and" in words
        )
        assert len(found) + more == len(records)
        assert len(plot.svg) < 3e6

    @given(RECORDS, st.floats())
    def test_any_scores(self, make, scores, threshold):
        records = [
            make.record(str(n), reference, raw, anomalous=anomalous)
            for n, (reference, raw, anomalous) in enumerate(scores)
        ]
        finite = sum(
            math.isfinite(raw) and math.isfinite(reference) for reference, raw, _ in scores
        )
        plot = score_plot(records, threshold)
        assert len(marks(read(plot))) == finite if plot.svg else finite == 0


class TestDriftPlot:
    def test_places(self, make):
        records = [make.record("a", 1, 1), make.record("b", 2, 2.5), make.record("c", 3, 2.5)]
        root = read(drift_plot(records, 2.0, 0.5, None))
        (zero,) = elements(root, "identity")
        found = {name: centre(mark) for name, mark in named(root).items()}
        y0 = coordinates(zero)[1]
        assert found["a"][1] == pytest.approx(y0, abs=0.2)
        assert y0 - found["b"][1] == pytest.approx(found["c"][1] - y0, abs=0.3)
        assert found["b"][1] < y0

    def test_ticks_are_in_drift_units(self, make):
        records = [make.record("a", 1, 1), make.record("b", 2, 4)]
        words = [one.text for one in read(drift_plot(records, 2.0, 0.5, None)).iter("text")]
        assert "4" in words
        assert "drift (drift units)" in words

    def test_a_shift_of_all_scores_shows_against_zero(self, make):
        records = [make.record(str(n), n, n + 100 + n / 1e3) for n in range(9)]
        root = read(drift_plot(records, 2.0, 1.0, None))
        (zero,) = elements(root, "identity")
        heights = [centre(mark)[1] for mark in marks(root).values()]
        assert coordinates(zero)[1] - max(heights) > 10 * (max(heights) - min(heights))

    def test_limits(self, make):
        records = [make.record("a", 1, 1.2), make.record("b", 2, 1.9)]
        near = drift_plot(records, 1.5, 0.5, 0.5)
        assert len(elements(read(near), "limit")) == 3
        far = drift_plot(records, 1.5, 0.5, 100.0)
        assert len(elements(read(far), "limit")) == 1
        assert far.notes == ("The limits, ±100, lie outside the axes.",)

    @settings(max_examples=50)
    @given(RECORDS, st.floats(1e-30, 1e30), st.none() | st.floats(0, 1e9))
    def test_any_scores(self, make, scores, unit, limit):
        records = [
            make.record(str(n), reference, raw) for n, (reference, raw, _) in enumerate(scores)
        ]
        plot = drift_plot(records, 2.0, unit, limit)
        assert not plot.svg or marks(read(plot))


class TestLatencyPlot:
    def test_faster_is_further_left(self, make):
        root = read(latency_plot(make.latency()))
        artifact, reference = elements(root, "artifact"), elements(root, "reference")
        assert len(artifact) == len(reference) == 3
        assert max(centre(one)[0] for one in artifact) < min(centre(one)[0] for one in reference)
        assert [one.find("title").text for one in artifact] == [
            "round 1: 5.00 ms",
            "round 2: 6.00 ms",
            "round 3: 7.00 ms",
        ]

    def test_medians_and_precision(self, make):
        root = read(latency_plot(make.latency()))
        words = [one.text for one in root.iter("text")]
        assert "artifact, INT8 network: median 6.00 ms" in words
        assert "reference, float32: median 60.0 ms" in words
        lines = [coordinates(line)[0] for line in elements(root, "median")]
        # Third mark of six is the reference's median, fifth the artifact's.
        assert lines[0] == pytest.approx(centre(elements(root, "reference")[1])[0], abs=0.2)
        assert lines[1] == pytest.approx(centre(elements(root, "artifact")[1])[0], abs=0.2)

    @settings(max_examples=50)
    @given(st.lists(st.tuples(st.floats(1e-4, 1e6), st.floats(1e-4, 1e6)), min_size=1, max_size=20))
    def test_any_samples(self, make, samples):
        artifact, reference = zip(*samples, strict=True)
        root = read(latency_plot(make.latency(artifact, reference)))
        assert len(elements(root, "artifact")) == len(elements(root, "reference")) == len(samples)

    def test_no_time_at_all(self, make):
        plot = latency_plot(make.latency((0.0, 5.0, 6.0), (9.0, 9.0, 9.0)))
        assert len(marks(read(plot))) == 5
        assert plot.notes == ("Calls left out, as their time is not positive: 1.",)
