import copy
import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.building.mixing import Mixing, _shipped
from vadexport.calibration.judging import Judged
from vadexport.calibration.search import Frontier, Group, Point
from vadexport.targets import Target
from vadexport.verification.searched import read_search
from vadexport.verification.statistics import Interval

UNIT = 2.0
COST = Judged(drift=3.0, rms=1.0, spearman=0.99, flips=1, maps=0.1)
HELD = Judged(drift=0.25, rms=0.125, spearman=0.9999, flips=0, maps=0.01)
GROUPS = (Group(("a", "b"), COST), Group(("c",), HELD), Group(("d",), None))
ALL = Point("cost", 0, (), COST, holds=False)
FEW = Point("cost", 1, ("a", "b"), HELD, holds=True)
FRONT = Point("front", 2, ("a", "b", "c"), HELD, holds=True)
FOUND = Frontier(GROUPS, (ALL, FEW, FRONT), finished=True, images=(16, 32))
GAINS = {0: Interval(2.0, 1.9, 2.1), 1: Interval(1.5, 1.25, 1.75), 2: Interval(1.25, 1.2, 1.5)}


def record(found=FOUND, gains=GAINS, chosen=1):
    """What a build writes of a search."""
    layers = [name for group in found.groups for name in group.layers]
    build = SimpleNamespace(
        plan=SimpleNamespace(layers=layers),
        climber=SimpleNamespace(unit=SimpleNamespace(value=UNIT)),
    )
    made = Mixing(build, Target("openvino", "auto"))._record(found, gains)
    shipped = "fp32" if chosen is None else _shipped(found.points[chosen], len(layers))
    return {**made, "shipped": shipped, "chosen": chosen}


@pytest.fixture
def read(tmp_path):
    """What is read of a record."""

    def read(value):
        path = tmp_path / "build.json"
        path.write_text(json.dumps({"schema_version": 1, "compiled": {"search": value}}))
        return read_search(path)

    return read


def test_what_a_build_writes_is_read(read):
    found = read(record())
    assert [group.layers for group in found.groups] == [("a", "b"), ("c",), ("d",)]
    assert found.groups[2].cost is None
    cost = found.groups[0].cost
    assert (cost.drift, cost.rms) == (1.5, 0.5)  # in drift units
    assert (cost.spearman, cost.flips, cost.maps) == (0.99, 1, 0.1)
    assert [one.speedup for one in found.points] == list(GAINS.values())
    assert [one.float_layers for one in found.points] == [(), ("a", "b"), ("a", "b", "c")]
    assert [(one.order, one.holds) for one in found.points[1:]] == [("cost", True), ("front", True)]
    assert found.points[1].cost.drift == 0.125
    assert (found.images, found.layers, found.finished) == ((16, 32), 4, True)
    assert found.built is found.best is found.points[1]
    # Half of what the limits of auto leave: 0.5 drift units, and 0.001 from one.
    assert found.max_drift == pytest.approx(0.25)
    assert found.least_spearman == pytest.approx(0.9995)


def test_figures_that_are_not_finite_are_read(read):
    broken = Judged(float("nan"), float("inf"), float("nan"), 0, float("nan"))
    point = Point("cost", 0, (), broken, holds=False)
    found = read(record(replace(FOUND, points=(point,)), {}, None))
    assert found.points[0].cost.drift != found.points[0].cost.drift
    assert found.points[0].speedup is None


class TestWords:
    def test_int8(self, read):
        line = "auto: INT8 but for 2 of 4 layers, 1.50 times as fast as float32 when built"
        assert read(record()).words == line
        every = replace(FOUND, points=(replace(ALL, holds=True),))
        words = "auto: INT8, 2.00 times as fast as float32 when built"
        assert read(record(every, chosen=0)).words == words

    def test_bfloat16(self, read):
        every = replace(FEW, float_layers=("a", "b", "c", "d"))
        for point, words, shipped in (
            (FEW, "INT8 but for 2 of 4 layers in bfloat16", "int8"),
            (every, "bfloat16", "bf16"),
        ):
            narrow = replace(point, float_type="bf16")
            found = read(record(replace(FOUND, points=(ALL, narrow))))
            assert found.words == f"auto: {words}, 1.50 times as fast as float32 when built"
            assert found.shipped == shipped
            some = replace(narrow, full_layers=("a",))
            found = read(record(replace(FOUND, points=(ALL, some))))
            rest = ", 1 of them in float32" if shipped == "int8" else " but for 1 of 4 layers"
            assert found.words == f"auto: {words}{rest}, 1.50 times as fast as float32 when built"
            wrong = replace(narrow, full_layers=("d", "x"))
            assert read(record(replace(FOUND, points=(ALL, wrong)))) is None
        searched = read(record(replace(FOUND, points=(ALL, every))))
        assert "auto: float32 with a faster score head, 1.50" in searched.words
        assert searched.shipped == "fp32"

    def test_float32(self, read):
        slow = read(record(chosen=None))
        assert slow.built is None
        # The fastest of those that held.
        assert slow.words == (
            "auto: float32, as INT8 but for 2 of 4 layers was not surely faster when built: 1.50 "
            "times as fast, 95% interval from 1.25, before the A/A floor"
        )
        swapped = {**GAINS, 2: Interval(1.75, 0.5, 2.0)}
        assert (
            "but for 3 of 4 layers was not surely faster"
            in read(record(FOUND, swapped, None)).words
        )
        for finished, reason in (
            (True, "no layer of its network can be INT8 within the limits"),
            (False, "the search found no INT8 layers in time (--search-minutes)"),
        ):
            none = replace(FOUND, points=(ALL,), finished=finished)
            assert read(record(none, {}, None)).words == f"auto: float32, as {reason}"


class TestDamaged:
    @pytest.mark.parametrize(
        "text",
        [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"compiled": 3}', b"9" * 9999],
    )
    def test_no_search(self, tmp_path, text):
        (tmp_path / "build.json").write_bytes(text)
        assert read_search(tmp_path / "build.json") is None

    def test_no_such_file(self, tmp_path):
        assert read_search(tmp_path / "build.json") is None
        assert read_search(tmp_path) is None

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "build.json")
        assert read_search(tmp_path / "build.json") is None

    def test_too_large(self, read, tmp_path):
        assert read(record()) is not None
        path = tmp_path / "build.json"
        path.write_text(path.read_text() + " " * 2**24)
        assert read_search(path) is None

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("drift_unit",), 0),
            (("drift_unit",), float("nan")),
            (("drift_unit",), 10**400),
            (("share",), 2),
            (("share",), None),
            (("layers",), 5),
            (("layers",), True),
            (("chosen",), 0),  # which fell short
            (("chosen",), 3),  # which was not tried
            (("chosen",), -1),
            (("chosen",), None),  # but INT8 was built
            (("finished",), 1),
            (("shipped",), "fp16"),
            (("images",), [16]),
            (("limits", "drift"), float("inf")),
            (("groups",), []),
            (("groups",), {}),
            (("groups", 0, "layers"), "ab"),
            (("groups", 0, "layers"), ["a", "c"]),  # in two groups
            (("groups", 0, "layers"), ["a", 3]),
            (("groups", 0, "layers"), ["a", "b" * 2000]),
            (("groups", 0, "cost"), 3),
            (("groups", 0, "cost", "flips"), -1),
            (("groups", 0, "cost", "flips"), 1.5),
            (("groups", 0, "cost", "rms"), "0.1"),
            (("points", 1, "float_layers"), ["a", "a"]),
            (("points", 1, "float_layers"), ["a", "x"]),  # which there is not
            (("points", 1, "float_layers"), ["a", "b", "c", "d"]),  # so that none was built in INT8
            (("points", 1, "float_type"), "fp16"),
            (("points", 1, "float_type"), ["bf16"]),
            (("points", 1, "full_layers"), ["a"]),  # where all that is float is float32
            (("points", 1, "full_layers"), "a"),
            (("points", 1, "float_layers"), "a"),
            (("points", 1, "order"), "back"),
            (("points", 1, "order"), ["cost"]),
            (("points", 1, "holds"), 1),
            (("points", 1, "speedup"), None),  # of what was built
            (("points", 0, "judged"), None),
            (("points", 0, "speedup"), 2),
            (("points", 0, "speedup", "low"), 3.0),  # above the upper end
            (("points", 0, "speedup", "low"), 0),
            (("points", 0, "speedup", "high"), float("inf")),
            (("points", 0, "speedup", "value"), float("nan")),
        ],
    )
    def test_a_part_of_it(self, read, place, value):
        changed = copy.deepcopy(json.loads(json.dumps(record())))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        assert place[-1] in inner or isinstance(inner, list)
        inner[place[-1]] = value
        assert read(changed) is None

    def test_a_part_is_missing(self, read):
        whole = record()
        for key in whole:
            assert read({name: value for name, value in whole.items() if name != key}) is None

    @settings(max_examples=200, deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from([*record(), "layers", "cost", "judged", "drift"]),
                    inner,
                    max_size=9,
                )
            ),
            max_leaves=12,
        )
    )
    def test_anything(self, tmp_path_factory, value):
        path = tmp_path_factory.getbasetemp() / "any-build.json"
        path.write_text(json.dumps({"compiled": {"search": value}}))
        assert read_search(path) is None
