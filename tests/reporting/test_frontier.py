import math
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.reporting.frontier import frontier_plot, search_section
from vadexport.verification.searched import FoundGroup, FoundPoint
from vadexport.verification.statistics import Interval

NUMBERS = ("x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "width", "height")


def read(plot):
    """The drawing; nothing of it outside of its view box."""
    root = ET.fromstring(plot.svg)
    _, _, width, height = map(float, root.get("viewBox").split())
    for element in root.iter():
        for name in NUMBERS:
            limit = width if "x" in name or name == "width" else height
            assert 0 <= float(element.get(name, 0)) <= limit
    return root


def elements(root, css):
    return [one for one in root.iter() if css in one.get("class", "").split()]


def marks(root):
    """Middle of each mark that has words, by the words."""
    found = {}
    for one in root.iter():
        if one.find("title") is not None:
            x, y = (
                (float(one.get("cx")), float(one.get("cy")))
                if one.tag == "circle"
                else (float(one.get("x")) + 2.6, float(one.get("y")) + 2.6)
                if one.tag == "rect"
                else (float(one.get("points").split(",")[0]), triangle(one))
            )
            found[one.find("title").text.split(" ")[0]] = (x, y)
    return found


def triangle(mark):
    """Height of its middle, from its tip."""
    return float(mark.get("points").split()[0].split(",")[1]) + 3.4


def on_axis(root, axis):
    """Coordinate of a value, from the ticks of an axis."""
    ticks = [
        (float(one.text.replace("−", "-")), float(one.get(axis)) - (4 if axis == "y" else 0))
        for one in elements(root, "tick")
        if one.get("text-anchor") == {"x": "middle", "y": "end"}[axis] and one.text[-1].isdigit()
    ]
    (low, start), (high, end) = ticks[0], ticks[-1]
    return lambda value: start + (value - low) / (high - low) * (end - start)


def labels(root):
    """Places of labels at points, by what they say."""
    return {
        one.text: (float(one.get("x")), float(one.get("y")))
        for one in root.iter("text")
        if one.text.isdigit() and not one.get("class")
    }


class TestPlot:
    def test_points_are_where_their_figures_say(self, make):
        root = read(frontier_plot(make.search()))
        x, y = on_axis(root, "x"), on_axis(root, "y")
        found = marks(root)
        # By layers in float32, of those that were timed.
        places = {"0": (2, 1.25), "3": (1.5, 0.125), "4": (1.25, 0.2), "float32": (1, 0)}
        assert found.keys() == places.keys()
        for name, (gain, drift) in places.items():
            assert found[name] == (
                pytest.approx(x(gain), abs=0.3),
                pytest.approx(y(drift), abs=0.3),
            )

    def test_bars_are_the_intervals(self, make):
        root = read(frontier_plot(make.search()))
        x = on_axis(root, "x")
        level = {y for _, y in marks(root).values()}
        bars = [
            (float(line.get("x1")), float(line.get("x2")))
            for line in elements(root, "axis")
            if line.get("y1") == line.get("y2") and float(line.get("y1")) in level
        ]
        assert bars == [
            pytest.approx((x(1.9), x(2.1)), abs=0.3),
            pytest.approx((x(1.25), x(1.75)), abs=0.3),
            pytest.approx((x(1.2), x(1.3)), abs=0.3),
        ]

    def test_the_limit_is_the_searchs(self, make):
        root = read(frontier_plot(make.search()))
        (line,) = elements(root, "limit")
        assert float(line.get("y1")) == pytest.approx(on_axis(root, "y")(0.25), abs=0.3)
        far = frontier_plot(make.search(max_drift=1e6))
        assert elements(read(far), "limit") == []
        assert "The search's limit of drift, 1000000, lies outside the axes." in far.notes
        assert elements(read(frontier_plot(make.search(max_drift=None))), "limit") == []

    def test_the_ring_is_at_what_was_built(self, make):
        for chosen, name in ((2, "3"), (3, "4"), (None, "float32")):
            root = read(frontier_plot(make.search(chosen=chosen)))
            ring, in_legend = [
                (float(one.get("cx")), float(one.get("cy"))) for one in elements(root, "ring")
            ]
            assert in_legend[1] < 34
            assert ring == pytest.approx(marks(root)[name], abs=0.1)

    def test_each_point_has_its_number_near_it(self, make):
        root = read(frontier_plot(make.search()))
        found = labels(root)
        assert found.keys() == {"0", "3", "4"}
        for name, at in found.items():
            assert 6 < math.dist(at, marks(root)[name]) < 25

    def test_each_order_has_its_way_from_int8_to_float32(self, make):
        root = read(frontier_plot(make.search()))
        found = marks(root)
        ways = [
            [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
            for line in elements(root, "route")
        ]
        for way, middle in zip(ways, ("3", "4"), strict=True):
            for at, name in zip(way, ("0", middle, "float32"), strict=True):
                assert at == pytest.approx(found[name], abs=0.2)
        assert [one.tag for one in elements(root, "front")] == ["polygon"] * 2  # and its legend's
        alone = read(frontier_plot(make.search(points=make.search().points[:3])))
        assert len(elements(alone, "route")) == 1
        assert elements(alone, "front") == []

    def test_numbers_of_near_points_do_not_cover_each_other(self, make):
        groups = tuple(FoundGroup((str(n),), make.cost(0.1)) for n in range(30))
        points = tuple(
            FoundPoint(
                "cost",
                tuple(map(str, range(n))),
                make.cost(0.5),
                holds=False,
                speedup=Interval(1.5, 1.5, 1.5),
            )
            for n in range(0, 29, 2)
        )
        root = read(frontier_plot(make.search(groups=groups, points=points, chosen=None)))
        places = list(labels(root).values())
        assert 1 <= len(places) < len(points)
        for number, (x, y) in enumerate(places):
            assert all(abs(a - x) >= 7 or abs(b - y) >= 11 for a, b in places[:number])

    def test_says_what_it_does_not_show(self, make):
        assert "Not timed, so only in the table: 1." in frontier_plot(make.search()).notes
        points = make.search().points
        points = (replace(points[0], cost=make.cost(math.nan)), *points[1:])
        notes = frontier_plot(make.search(points=points)).notes
        assert "Left out, as their drift is not finite: 1." in notes

    def test_says_that_other_limits_can_fall_short(self, make):
        words = "A form within the limit of drift may fall short of another: see the table."
        assert words not in frontier_plot(make.search()).notes
        points = tuple(replace(one, holds=False) for one in make.search().points)
        assert words in frontier_plot(make.search(points=points, chosen=None)).notes

    def test_nothing_was_timed(self, make):
        plot = frontier_plot(make.search(points=make.search().points[1:2], chosen=None))
        assert plot.svg == ""
        assert plot.notes[0] == "There is no form that was timed and can be drawn."
        assert frontier_plot(make.search(points=(), chosen=None)).svg == ""

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.floats() | st.floats(-1, 2),
                st.none() | st.lists(st.floats(1e-6, 1e6), min_size=3),
            ),
            min_size=1,
            max_size=4,
        ),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
    )
    def test_any_figures(self, make, values, limit):
        points = tuple(
            FoundPoint(
                "cost" if number % 2 else "front",
                tuple(map(str, range(number))),
                make.cost(drift),
                holds=False,
                speedup=gain and Interval(gain[0], min(gain[1:3]), max(gain[1:3])),
            )
            for number, (drift, gain) in enumerate(values)
        )
        plot = frontier_plot(make.search(points=points, chosen=None, max_drift=limit))
        assert plot.notes or plot.svg
        if plot.svg:
            read(plot)


class TestTables:
    def test_forms(self, make):
        rows = search_section(make.search()).points
        assert rows == (
            ("0", "2.00 [1.90–2.10]", "0.625", "1.25", "0.99900", "3/48", "0.05", "fell short"),
            (
                *("2 in float32, costliest first", "–", "0.25", "0.5", "0.99900", "0/48", "0.05"),
                "fell short",
            ),
            (
                *(
                    "3 in float32, costliest first",
                    "1.50 [1.25–1.75]",
                    "0.0625",
                    "0.125",
                    "0.99990",
                ),
                *("0/48", "0.05", "held, and was built"),
            ),
            (
                *("4 in float32, from the front", "1.25 [1.20–1.30]", "0.1", "0.2", "0.99900"),
                *("0/48", "0.05", "held"),
            ),
        )
        rows = search_section(make.search(chosen=None)).points
        assert [row[-1] for row in rows[2:]] == ["held, not surely faster", "held"]

    def test_layers_and_where_they_ended(self, make):
        rows = search_section(make.search()).layers
        # Without the folders that all names begin with.
        assert [row[0] for row in rows] == [
            "a/node_Conv_1, a/node_Conv_2",
            "b/node_Conv_3",
            "b/<b>",
            "c",
        ]
        assert rows[1][1:-1] == ("0.25", "0.5", "0.99900", "2/48", "0.05")
        assert rows[3][2] == "not finite"
        assert [row[-1] for row in rows] == ["float32", "float32", "INT8", "INT8"]
        ended = [row[-1] for row in search_section(make.search(chosen=3)).layers]
        assert ended == ["both", "float32", "float32", "float32"]
        rows = search_section(make.search(chosen=None)).layers
        assert {row[-1] for row in rows} == {"float32"}

    def test_forms_in_bfloat16(self, make):
        points = make.search().points
        every = tuple(name for group in make.search().groups for name in group.layers)
        some = replace(points[2], float_type="bf16")
        found = make.search(points=(points[0], some, replace(some, float_layers=every)), chosen=1)
        section = search_section(found)
        assert [row[0] for row in section.points] == [
            *("0", "3 in bfloat16, costliest first", "5 in bfloat16")
        ]
        assert [row[-1] for row in section.layers] == ["bfloat16", "bfloat16", "INT8", "INT8"]
        root = read(section.plot)
        assert [one.tag for one in elements(root, "narrow")] == ["rect"] * 3  # and its legend's
        (way,) = elements(root, "route")  # from all INT8 to float32, past them
        assert len(way.get("points").split()) == 2

    def test_layers_that_were_not_judged(self, make):
        groups = make.search().groups
        some = (replace(groups[0], cost=None), *groups[1:])
        assert search_section(make.search(groups=some)).layers[0][1:-1] == ("–",) * 5
        none = tuple(replace(group, cost=None) for group in groups)
        assert search_section(make.search(groups=none)).layers == ()

    def test_names_stay_short(self, make):
        many = FoundGroup(tuple(f"node_conv2d_{n}" for n in range(9)), None)
        long = FoundGroup(("a" * 200 + "z\n\u202e",), make.cost(0.1))
        rows = search_section(make.search(groups=(many, long), points=(), chosen=None)).layers
        assert rows[0][0] == "conv2d_0 … conv2d_8 (9 layers)"
        assert len(rows[1][0]) == 48
        assert rows[1][0].endswith("az��")


def test_no_search():
    assert search_section(None) is None


def test_what_had_to_hold(make):
    words = search_section(make.search()).judged
    assert "on 16 normal images and 32 with planted defects" in words
    held = "largest drift at most 0.250, Spearman to expect at least 0.9995, no decision flips"
    assert held in words
    assert "time was over" not in words
    open_ = search_section(make.search(max_drift=None, least_spearman=None, finished=False)).judged
    assert ": no decision flips." in open_
    assert "Its time was over before it was done." in open_
