"""Which forms `auto` tries beside those of its search; compiling, judging and the clock made up."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vadexport.building.climbing import Graph
from vadexport.building.mixing import Mixing, _Candidate
from vadexport.calibration.judging import Judged
from vadexport.calibration.search import Frontier, Group, Point
from vadexport.targets import Target
from vadexport.verification.applied import AppliedPass
from vadexport.verification.statistics import Interval

GOOD = Judged(drift=0.1, rms=0.1, spearman=1.0, flips=0, maps=0.01)
LAYERS = tuple("abcdefgh")
#: The costliest first.
GROUPS = tuple(Group((name,), GOOD) for name in "hgfedcba")
WHOLE = Point("cost", 0, (), GOOD, holds=False)
COST = Point("cost", 2, ("h", "g"), GOOD, holds=True)
FRONT = Point("front", 3, ("a", "b", "c"), GOOD, holds=True)
FOUND = Frontier(GROUPS, (WHOLE, COST, FRONT), finished=True, images=(8, 16))
HELD = SimpleNamespace(held=True)


@dataclass
class Integers:
    """What `Mixing` needs of a build."""

    searched: tuple[bool, ...] = (False,)
    notes: list[str] = field(default_factory=list)
    base: Graph = field(
        default_factory=lambda: Graph(Path("float/m"), (HELD,), {"network": "fp32"})
    )
    plan: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            layers=[SimpleNamespace(node=name) for name in LAYERS]
        )
    )
    head: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            products=lambda _: frozenset(), written=lambda path, _: path
        )
    )
    climber: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            unit=SimpleNamespace(value=1.0), climb_graph=lambda *_: HELD
        )
    )

    def searches(self, _target):
        return self.searched

    def in_float(self, *, searched):
        return Path("float-bank/m") if searched else self.base.path

    def search_pass(self, *, searched):
        return AppliedPass("quantised-search", 1) if searched else None

    def precision(self, _target, network, _rung, *, searched):
        return {"network": network, "score head": "int8 search" if searched else "fp32"}


def interval(speed):
    """A speed-up that is as narrow as can be, or as it is given."""
    return speed if isinstance(speed, Interval) else Interval(speed, speed - 0.1, speed + 0.1)


@pytest.fixture
def mixing(monkeypatch):
    """A `Mixing` whose forms hold where `holds` says so, and are as fast as `speed` says."""

    def make(
        *,
        holds=lambda *_: True,
        speed=lambda _: 2.0,
        fast=True,
        found=FOUND,
        searched=False,
        short=(),
    ):
        made = Mixing(Integers((True, False) if searched else (False,)), Target("openvino", "auto"))
        made.integers.climber.climb_graph = lambda _, folder, __: SimpleNamespace(
            held=folder.name not in short
        )

        def judged(_self, order, count, kept, proof, float_type, full=()):
            good = holds(count, full)
            point = Point(order, count, kept, GOOD, good, float_type, full)
            path = Path(f"{proof.parent}-{float_type}/m")
            return _Candidate(point, path if good else None, proof)

        def timed(_self, candidates):
            numbers = [n for n, one in enumerate(candidates) if one.path]
            return {n: interval(speed(candidates[n].point)) for n in numbers}, 1.0

        def written(_self, point, *, searched):
            return Path(f"{point.order}-{point.float_groups}{'-bank' if searched else ''}/m")

        monkeypatch.setattr(Mixing, "_judged", judged)
        monkeypatch.setattr(Mixing, "_timed", timed)
        monkeypatch.setattr(Mixing, "_int8", written)
        monkeypatch.setattr(Mixing, "_searched", lambda *_: found)
        made.__dict__["_bfloat16"] = fast
        return made

    return make


def tried(graph):
    """The forms behind the search's own: layers not in INT8, type, and which stay in float32."""
    return [
        ("".join(point["float_layers"]), point["float_type"], "".join(point["full_layers"]))
        for point in graph.search["points"][3:]
    ]


def test_what_went_back_and_the_whole_network_in_bfloat16(mixing):
    made = mixing().graph(1.0)
    assert tried(made) == [("abcdefgh", "bf16", ""), ("hg", "bf16", ""), ("abc", "bf16", "")]
    # As fast as each other: what is known best goes first.
    assert made.precision["network"] == "int8, 6 of 8 layers, 2 fp32"


def test_the_front_in_float32_where_bfloat16_falls_short(mixing):
    def holds(count, full):
        return len(full) == 2 and count in {3, 8}

    made = mixing(holds=holds, speed=lambda point: 2.0 + len(point.full_layers)).graph(1.0)
    assert tried(made) == [
        *(("abcdefgh", "bf16", ""), ("abcdefgh", "bf16", "ab")),
        *(("hg", "bf16", ""), ("hg", "bf16", ""), ("abc", "bf16", "ab")),
    ]
    held = [point["holds"] for point in made.search["points"][3:]]
    assert held == [False, True, False, False, True]
    assert made.precision["network"] == "bf16, 6 of 8 layers, 2 fp32"


def test_no_front_is_long_enough(mixing):
    made = mixing(holds=lambda *_: False).graph(1.0)
    assert tried(made) == [("abcdefgh", "bf16", full) for full in ("", "ab", "abcd")]


@pytest.mark.parametrize(
    ("wins", "network", "path", "shipped"),
    [
        ((2, "bf16"), "int8, 6 of 8 layers, 2 bf16", "cost-2-bf16/m", "int8"),
        ((8, "bf16"), "bf16", "float-bf16/m", "bf16"),
        ((3, "fp32"), "int8, 5 of 8 layers, 3 fp32", "front-3/m", "int8"),
    ],
)
def test_the_fastest_is_shipped_and_named(mixing, wins, network, path, shipped):
    made = mixing(speed=lambda point: 2.0 + ((point.float_groups, point.float_type) == wins)).graph(
        1.0
    )
    assert (made.precision["network"], str(made.path)) == (network, path)
    assert made.search["shipped"] == shipped
    assert made.search["points"][made.search["chosen"]]["speedup"]["value"] == 3.0
    # ONNX Runtime proves what it can run: nothing but the float graph of a network in bfloat16.
    assert len(made.rungs) == (1 if shipped == "bf16" else 2)


def test_a_float_network_whose_bank_is_searched_in_int8(mixing):
    made = mixing(searched=True, speed=lambda point: 2.0 + (point.float_groups == 8)).graph(1.0)
    assert tried(made)[0] == ("abcdefgh", "fp32", "")
    assert made.precision == {"network": "fp32", "score head": "int8 search"}
    assert (made.search["shipped"], made.search["chosen"]) == ("fp32", 3)


def test_what_is_surely_faster_goes_before_what_seems_to_be(mixing):
    def speed(point):
        if point.float_type == "bf16":
            return Interval(3.0, 0.9, 5.0)
        return Interval(2.0, 1.8 if point.order == "front" else 1.7, 2.2)

    made = mixing(speed=speed).graph(1.0)
    assert (made.precision["network"], str(made.path)) == (
        "int8, 5 of 8 layers, 3 fp32",
        "front-3/m",
    )


def test_where_a_rung_falls_short_the_next_is_tried(mixing):
    def speed(point):
        return {"front": 3.0, "cost": 2.0}[point.order] if point.float_type == "fp32" else 1.0

    made = mixing(speed=speed, short=("front-3",))
    graph = made.graph(1.0)
    assert str(graph.path) == "cost-2/m"
    assert graph.search["chosen"] == 1
    assert graph.rungs[-1].held
    every = mixing(speed=speed, short=("front-3", "cost-2"))
    assert every.graph(1.0).search["chosen"] is None
    assert every.integers.notes == [
        "openvino:auto: float32, for INT8 but for 2 of 8 layers does not hold the limits"
    ]


def test_without_fast_bfloat16_it_is_as_it_was(mixing):
    made = mixing(fast=False).graph(1.0)
    assert tried(made) == []
    assert {point["float_type"] for point in made.search["points"]} == {"fp32"}


def test_bfloat16_alone_holds(mixing):
    made = mixing(found=replace(FOUND, points=(WHOLE,))).graph(1.0)
    assert (made.precision["network"], made.search["chosen"]) == ("bf16", 1)
    none = mixing(found=replace(FOUND, points=(), finished=False)).graph(1.0)
    assert (none.precision["network"], none.search["chosen"]) == ("bf16", 0)


def test_a_search_that_took_all_the_time_leaves_none_for_bfloat16(mixing):
    late = mixing()
    made = late.graph(0.0)
    assert tried(made) == []
    assert made.precision["network"].startswith("int8")
    assert late.integers.notes[0] == (
        "openvino:auto: not all forms in bfloat16 were tried in time (--search-minutes)"
    )
    assert len(late.integers.notes) == 2


def test_nothing_holds(mixing):
    short = mixing(found=replace(FOUND, points=(WHOLE,)), holds=lambda *_: False)
    made = short.graph(1.0)
    assert (made.path, made.search["shipped"], made.search["chosen"]) == (
        short.integers.base.path,
        *("fp32", None),
    )
    assert short.integers.notes == [
        "openvino:auto: float32, for no layer of its network can be INT8 within the limits"
    ]
