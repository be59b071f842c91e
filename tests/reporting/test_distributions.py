import math
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.reporting.distributions import distribution_plot

SCORES = st.floats(width=32) | st.floats(0, 5)
RECORDS = st.lists(
    st.tuples(SCORES, SCORES, st.sampled_from([True, False, None])), min_size=1, max_size=25
)


def read(plot):
    """The drawing; nothing of it outside of its view box."""
    root = ET.fromstring(plot.svg)
    _, _, width, height = map(float, root.get("viewBox").split())
    for element in root.iter():
        for names, end in ((("x", "x1", "x2"), width), (("y", "y1", "y2"), height)):
            assert all(0 <= float(element.get(name, 0)) <= end for name in names)
        for pair in element.get("points", "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    return root


def elements(root, css):
    return [one for one in root.iter() if css in one.get("class", "").split()]


def bars(root, label):
    """Left, right, count of the artifact, count of the reference of each bar."""
    found = []
    for bar in elements(root, label):
        if "bar" in bar.get("class").split():
            left, words = float(bar.get("x")), bar.find("title").text
            counts = [int(part.split()[0]) for part in words.split(": ")[1].split(", ")]
            found.append((left, left + float(bar.get("width")), *counts))
    return found


def records_of(make, normal, anomalous=(), shift=0.0):
    labelled = [(one, False) for one in normal] + [(one, True) for one in anomalous]
    return [
        make.record(str(n), score, score + shift, anomalous=anomalous)
        for n, (score, anomalous) in enumerate(labelled)
    ]


def test_every_image_is_in_a_bar_of_its_label(make):
    rng = np.random.default_rng(0)
    records = records_of(make, rng.normal(1, 0.2, 700), rng.normal(3, 0.5, 300))
    root = read(distribution_plot(records, 2.0))
    for label, count in (("normal", 700), ("anomalous", 300)):
        assert sum(bar[2] for bar in bars(root, label)) == count
        assert sum(bar[3] for bar in bars(root, label)) == count
    assert not bars(root, "unknown")
    words = [one.text for one in root.iter("text")]
    assert {"normal (700)", "anomalous (300)", "reference", "artifact"} <= set(words)


def test_bars_are_as_high_as_their_counts(make):
    root = read(distribution_plot(records_of(make, [1, 1, 1, 2, 2, 3]), None))
    heights = [
        float(bar.get("height")) for bar in elements(root, "bar") if bar.find("title") is not None
    ]
    assert heights == pytest.approx([80, 80 * 2 / 3, 80 / 3], abs=0.1)


@pytest.mark.parametrize(("most", "ticks"), [(1, {"0", "1"}), (2, {"0", "1", "2"})])
def test_images_are_counted_in_whole_numbers(make, most, ticks):
    root = read(distribution_plot(records_of(make, most * [1.0]), None))
    upright = [one.text for one in elements(root, "tick") if one.get("text-anchor") == "end"]
    assert set(upright) == ticks


def test_no_bar_crosses_the_threshold(make):
    rng = np.random.default_rng(1)
    scores = np.append(rng.normal(1, 0.5, 400), 1.2345)
    root = read(distribution_plot(records_of(make, scores), 1.2345))
    (line,) = elements(root, "limit")
    at = float(line.get("x1"))
    found = bars(root, "normal")
    # A tenth of a unit is how finely places are written.
    assert not any(left + 0.1 < at < right - 0.1 for left, right, *_ in found)
    right_of_it = sum(bar[2] for bar in found if bar[0] > at - 0.1)
    assert right_of_it == np.count_nonzero(scores > 1.2345)


def test_the_outline_is_the_references(make):
    records = records_of(make, [1.0, 1.0, 1.0, 4.0], shift=0.0)
    records.append(make.record("moved", 1.0, 4.0, anomalous=False))
    root = read(distribution_plot(records, None))
    assert [bar[2:] for bar in bars(root, "normal")] == [(3, 4), (2, 1)]
    (outline,) = [one for one in elements(root, "outline") if one.tag == "polyline"]
    tops = sorted({float(pair.split(",")[1]) for pair in outline.get("points").split()})
    # Four images are the highest place of the panel, one a quarter of it, none its bottom.
    assert tops == pytest.approx([34, 94, 114], abs=0.1)


def test_in_words(make):
    records = [make.record("a", 1.0, 1.5), make.record("b", 2.0, 2.5), make.record("c", 1.5, 1.7)]
    records.append(make.record("d", 4.0, 5.0, anomalous=True))
    assert distribution_plot(records, 2.0).notes == (
        "Normal: median 1.500 → 1.700, above the threshold 0 → 1 of 3.",
        "Anomalous: median 4.000 → 5.000, above the threshold 1 → 1 of 1.",
    )
    assert distribution_plot(records[:3], None).notes == ("Normal: median 1.500 → 1.700.",)


def test_what_is_not_shown_is_said(make):
    records = records_of(make, [1 + n / 50 for n in range(50)])
    records += [make.record("far", 1.5, 1e6), make.record("none", 1.5, math.nan)]
    plot = distribution_plot(records, 2.0)
    assert sum(bar[2] for bar in bars(read(plot), "normal")) == 50
    assert plot.notes[1:] == (
        "Far-off scores of both together, beyond the axis: 1.",
        "Images left out, as their scores are not finite: 1.",
    )


def test_nothing_to_draw(make):
    plot = distribution_plot([make.record(raw=math.inf)], 2.0)
    assert plot.svg == ""
    assert plot.notes == ("None of the 1 images has finite scores to draw.",)


@pytest.mark.parametrize("count", [1, 5, 20_000])
def test_any_number_of_images(make, count):
    scores = np.random.default_rng(2).normal(1, 0.3, count)
    plot = distribution_plot(records_of(make, scores), 1.5)
    assert 1 <= len(bars(read(plot), "normal")) <= 42
    assert len(plot.svg) < 20_000


@settings(max_examples=100)
@given(RECORDS, st.none() | st.floats())
def test_any_scores(make, scores, threshold):
    records = [
        make.record(str(n), reference, raw, anomalous=anomalous)
        for n, (reference, raw, anomalous) in enumerate(scores)
    ]
    plot = distribution_plot(records, threshold)
    finite = sum(math.isfinite(raw) and math.isfinite(reference) for reference, raw, _ in scores)
    assert bool(plot.svg) == bool(finite)
    if plot.svg:
        root = read(plot)
        shown = sum(
            bar[2] for label in ("normal", "anomalous", "unknown") for bar in bars(root, label)
        )
        assert shown <= finite
        assert shown == finite or any("Far-off" in note for note in plot.notes)
