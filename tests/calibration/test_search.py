import json
import time
from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from tests.passes.half_graphs import graph, names
from vadexport.calibration import search as module
from vadexport.calibration.judging import (
    Bounds,
    Judged,
)
from vadexport.calibration.network import find_layers
from vadexport.calibration.qdq import Form, Plan, QuantisedWeight
from vadexport.calibration.search import MOST_GROUPS, Frontier, grouped, search

RANDOM = np.random.default_rng(31)
LAYERS = 6
BAD = "c3"
HEAD = {"squared", "anomaly_map", "raw_score"}
CALLS = [np.random.default_rng(n).normal(size=(2, 4, 6, 6)).astype(np.float32) for n in range(6)]
LOOSE = Bounds(drift=1e9, maps=1e9, spearman=-1, threshold=None)


def chain():
    """Layers one behind the other; the head squares, sums and takes the largest."""
    nodes = ["c0 = Conv(image, w0)"]
    nodes += [f"c{n} = Conv(c{n - 1}, w{n})" for n in range(1, LAYERS)]
    nodes += [
        f"squared = Mul(c{LAYERS - 1}, c{LAYERS - 1})",
        "anomaly_map = ReduceMean<keepdims = 1>(squared, channels)",
        "raw_score = ReduceMax<keepdims = 0>(anomaly_map, rest)",
    ]
    mixes = {f"w{n}": np.linalg.qr(RANDOM.normal(size=(4, 4)))[0] for n in range(LAYERS)}
    return graph(
        "float[2,4,6,6] image",
        "\n".join(nodes),
        "float[2] raw_score, float[2,1,6,6] anomaly_map",
        **{name: mix[:, :, None, None] for name, mix in mixes.items()},
        channels=np.array([1]),
        rest=np.array([1, 2, 3]),
    )


MODEL = chain()


def plan_for(bad=BAD):
    """Ranges wide enough for all; the bad layer's weights have half of their magnitude."""
    network = names(MODEL) - HEAD
    layers = find_layers(MODEL, network)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in MODEL.graph.initializer}
    weights = {}
    for layer in layers:
        weight = values[layer.weight]
        scales = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        whole = np.rint(weight / scales[:, None, None, None]) * (0.5 if layer.node == bad else 1)
        weights[layer.weight] = QuantisedWeight(np.rint(whole).astype(np.int8), scales)
    reach = dict.fromkeys((layer.activation for layer in layers), 8.0)
    return Plan(layers, reach, weights, {}, frozenset())


@pytest.fixture
def judged(monkeypatch):
    """How often a form was run."""
    runs = []
    judge = module._Judge.judge

    def count(self, float_nodes):
        runs.append(float_nodes)
        return judge(self, float_nodes)

    monkeypatch.setattr(module._Judge, "judge", count)
    return runs


@pytest.fixture
def searched(tmp_path):
    """Search the chain's plan."""

    def go(bounds, *, seconds=60.0, plan=None, form=None, folder=None, calls=CALLS, **more):
        correcting = more.get("correcting", CALLS[:2])
        onnx.save(MODEL, tmp_path / "model.onnx")
        return search(
            tmp_path / "model.onnx",
            plan or plan_for(),
            frozenset(names(MODEL) - HEAD),
            form or Form(),
            (calls, 4, correcting),
            bounds,
            (seconds, folder or tmp_path / "memory"),
            lambda *counts: more["told"].append(counts) if "told" in more else None,
        )

    return go


def tight(searched):
    """Bounds that the plan holds without its bad layer, and only then."""
    good = searched(LOOSE, plan=plan_for(bad=None)).points[0].judged
    bad = searched(LOOSE).points[0].judged
    assert bad.drift > 10 * good.drift
    return Bounds(drift=3 * good.drift, maps=3 * good.maps, spearman=0.9, threshold=None)


class TestSearch:
    def test_finds_the_layer_that_costs_scores(self, searched):
        bounds = tight(searched)
        told = []
        found = searched(bounds, told=told)
        assert found.groups[0].layers == (BAD,)
        assert found.finished
        # The costliest first, and, for layers at the front are the usual suspects, from there.
        reached = [(point.order, point.float_groups) for point in found.points]
        assert LAYERS == 6
        assert reached == [("cost", 0), ("cost", 1), ("front", 3), ("front", 4)]
        assert found.points[1].float_layers == (BAD,)
        assert found.points[-1].float_layers == ("c0", "c1", "c2", BAD)
        assert found.holding == (1, 3)
        for number, point in enumerate(found.points):
            assert point.holds == point.judged.holds(bounds) == (number in found.holding)
        assert not found.points[0].judged.holds(bounds)
        costs = [group.cost.rms for group in found.groups]
        assert costs == sorted(costs, reverse=True)
        assert costs[0] > 10 * costs[1]
        assert found.images == (8, 4)
        assert told[-1] == (LAYERS + 1, LAYERS + 1)
        assert [done for done, _ in told] == sorted(done for done, _ in told)

    def test_costs_are_of_the_group_alone(self, searched, judged):
        searched(tight(searched))
        every = {f"c{n}" for n in range(LAYERS)}
        alone = [every - set(nodes) for nodes in judged if len(nodes) == LAYERS - 1]
        assert sorted(map(tuple, alone)) == sorted((each,) for each in every)

    def test_figures_are_those_of_scores_by_hand(self, searched):
        from vadexport.calibration.observing import run_graph
        from vadexport.calibration.qdq import quantised

        calls = [*CALLS[:4], *(3 * call for call in CALLS[4:])]  # defects drift further
        found = searched(LOOSE, calls=calls).points[0].judged

        made = quantised(MODEL, plan_for(), frozenset(names(MODEL) - HEAD), Form())
        pairs = [
            [np.concatenate(each) for each in zip(*run_graph(model, calls), strict=True)]
            for model in (MODEL, made)
        ]
        (expected, expected_map), (scores, maps) = pairs
        assert found.drift == pytest.approx(np.abs(scores - expected)[:8].max(), rel=1e-5)
        assert found.rms == pytest.approx(np.sqrt(np.mean((scores - expected) ** 2)), rel=1e-5)
        # Drifts dealt anew among normal images, and among the others, as often as it takes.
        drifts, random = scores - expected, np.random.default_rng(99)
        dealt = [
            spearmanr(
                expected
                + np.concatenate([random.permutation(drifts[:8]), random.permutation(drifts[8:])]),
                expected,
            ).statistic
            for _ in range(2000)
        ]
        assert found.spearman == pytest.approx(np.mean(dealt), abs=0.02)
        spans = [np.ptp(each) for each in expected_map]
        assert found.maps == pytest.approx(np.abs(maps - expected_map).max() / np.mean(spans))

    def test_flips_are_counted_and_none_may_be(self, searched):
        from vadexport.calibration.observing import run_graph

        scores = np.sort(np.concatenate([values[0] for values in run_graph(MODEL, CALLS)]))
        bounds = replace(LOOSE, threshold=float(scores[5:7].mean()))
        found = searched(bounds)
        assert found.points[0].judged.flips > 0  # at half their magnitude scores are a quarter
        assert found.points[0].holds is False
        assert found.holding
        assert all(found.points[number].judged.flips == 0 for number in found.holding)

    def test_all_int8_where_that_holds(self, searched, judged):
        found = searched(LOOSE)
        assert (found.holding, found.finished, len(judged)) == ((0,), True, 1)
        assert [group.cost for group in found.groups] == [None] * LAYERS

    def test_no_int8_where_nothing_holds(self, searched):
        found = searched(replace(LOOSE, drift=-1.0))
        assert (found.holding, found.finished) == ((), True)
        counts = [(point.order, point.float_groups) for point in found.points]
        assert counts == [
            ("cost", 0),
            *((order, n) for order in ("cost", "front") for n in (3, 4, 5)),
        ]

    def test_without_a_map(self, tmp_path):
        bare = onnx.ModelProto.FromString(MODEL.SerializeToString())
        del bare.graph.output[1:]
        onnx.save(bare, tmp_path / "model.onnx")
        network = frozenset(names(MODEL) - HEAD)
        found = search(
            *(tmp_path / "model.onnx", plan_for(), network, Form(), (CALLS, 4, []), LOOSE),
            *((60.0, tmp_path / "memory"), lambda *_: None),
        )
        assert found.points[0].judged.maps == 0

    def test_counts_images_of_calls_of_any_size(self, searched):
        found = searched(LOOSE, calls=[*CALLS[:4], *CALLS])
        assert found.images == (8, 12)


class TestTime:
    def test_none_chooses_nothing(self, searched, judged):
        found = searched(replace(LOOSE, drift=-1.0), seconds=0.0)
        assert (found.holding, found.finished, found.points, judged) == ((), False, (), [])
        assert {group.cost for group in found.groups} == {None}
        assert sum(len(group.layers) for group in found.groups) == LAYERS

    def test_none_for_a_single_layer_is_not_finished(self, searched):
        plan = plan_for()
        one = replace(plan, layers=plan.layers[:1])
        found = searched(replace(LOOSE, drift=-1.0), seconds=0.0, plan=one)
        assert (found.holding, found.finished, len(found.groups)) == ((), False, 1)

    def test_that_runs_out_has_found_a_form_before_groups_are_judged(
        self, searched, judged, monkeypatch
    ):
        bounds = tight(searched)
        clock = iter([0.0, *[1.0] * 3, *[1e9] * 99])
        monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
        del judged[:]
        found = searched(bounds, seconds=10.0, form=Form(sums=True))
        assert not found.finished
        assert [found.points[number].order for number in found.holding] == ["front"]
        assert len(judged) == 3  # all, and in float the first three, then four: which holds
        assert {group.cost for group in found.groups} == {None}


class TestMemory:
    def test_a_search_that_is_repeated_runs_nothing(self, searched, judged):
        bounds = tight(searched)
        first = searched(bounds)
        del judged[:]
        assert searched(bounds) == first
        assert judged == []

    def test_a_search_that_was_killed_goes_on(self, searched, judged, monkeypatch, tmp_path):
        bounds = tight(searched)
        whole = searched(bounds, folder=None)
        count = len({frozenset(nodes) for nodes in judged})
        fresh = _fresh(searched, bounds, tmp_path, monkeypatch, stop_after=3)
        del judged[:]
        found = searched(bounds, folder=fresh)
        assert found == whole
        assert 0 < len(judged) <= count - 3

    @pytest.mark.parametrize(
        "damage",
        [
            "",
            "{",
            "[]",
            "null",
            "[1, 2]",
            '{"a": 3}',
            '{"a": {"drift": 1}}',
            '{"KEY": {"drift": "x", "rms": 1, "spearman": 1, "flips": 0, "maps": 0}}',
            '{"KEY": {"drift": null, "rms": 1, "spearman": 1, "flips": 0, "maps": 0}}',
            '{"KEY": {"drift": [1], "rms": 1, "spearman": 1, "flips": 0, "maps": 0}}',
            "\\udcff",
        ],
    )
    def test_that_is_damaged_is_made_again(self, searched, tmp_path, damage):
        bounds = tight(searched)
        first = searched(bounds)
        for path in (tmp_path / "memory").glob("*.json"):
            keys = json.loads(path.read_text())
            data = damage.replace("KEY", next(iter(keys)))
            path.write_bytes(data.encode("utf-8", "surrogateescape"))
        assert searched(bounds) == first

    def test_keeps_scores_that_are_not_finite(self, tmp_path):
        memory = module._Memory(tmp_path / "a.json")
        memory.put("k", Judged(float("nan"), float("inf"), 1.0, 2, 0.0))
        again = module._Memory(tmp_path / "a.json").get("k")
        assert np.isnan(again.drift)
        assert (again.rms, again.flips, type(again.flips)) == (float("inf"), 2, int)

    def test_a_folder_that_cannot_be_written_costs_the_memory_alone(self, searched, tmp_path):
        (tmp_path / "file").write_text("in the way")
        found = searched(LOOSE, folder=tmp_path / "file" / "memory")
        assert found.holding == (0,)

    @pytest.mark.parametrize(
        "what", ["reach", "weights", "shifts", "form", "bounds", "correcting", "images"]
    )
    def test_is_of_all_that_figures_hang_on(self, searched, judged, what):
        searched(LOOSE)
        plan = plan_for()
        more, given = {}, LOOSE
        if what == "reach":
            more["plan"] = replace(plan, reach={**plan.reach, "c1": 7.0})
        elif what == "weights":
            more["plan"] = plan_for(bad="c1")
        elif what == "shifts":
            more["plan"] = replace(plan, shifts={"c1": np.full((2, 4), 0.1)})
        elif what == "form":
            more["form"] = Form(sums=True)
        elif what == "bounds":
            given = replace(LOOSE, threshold=0.5)
        elif what == "correcting":
            more["correcting"] = CALLS[:1]
        else:
            more["calls"] = [*CALLS[:5], CALLS[5] + 1]
        del judged[:]
        searched(given, **more)
        assert judged != []


def _fresh(searched, bounds, tmp_path, monkeypatch, stop_after):
    """A folder with the memory of a search that ended in the middle."""
    folder = tmp_path / "killed"
    judge = module._Judge.judge
    count = 0

    def until(self, float_nodes):
        nonlocal count
        count += 1
        if count > stop_after:
            raise KeyboardInterrupt
        return judge(self, float_nodes)

    with monkeypatch.context() as patch:
        patch.setattr(module._Judge, "judge", until)
        with pytest.raises(KeyboardInterrupt):
            searched(bounds, folder=folder)
    (stored,) = folder.glob("*.json")
    assert len(json.loads(stored.read_text())) == stop_after
    return folder


class TestJudged:
    GOOD = Judged(drift=1.0, rms=1.0, spearman=0.99, flips=0, maps=0.1)
    BOUNDS = Bounds(drift=1.0, maps=0.1, spearman=0.99, threshold=0.0)

    def test_holds_at_its_bounds(self):
        assert self.GOOD.holds(self.BOUNDS)

    @pytest.mark.parametrize(
        "worse",
        [
            {"drift": 1.01},
            {"spearman": 0.98},
            {"flips": 1},
            {"maps": 0.11},
            {"drift": float("nan")},
            {"spearman": float("nan")},
            {"maps": float("nan")},
        ],
    )
    def test_falls_short_beyond_any(self, worse):
        assert not replace(self.GOOD, **worse).holds(self.BOUNDS)


def test_a_frontier_is_plain_values(searched):
    found = searched(tight(searched))
    again = json.loads(json.dumps(found.to_json()))
    assert again["finished"]
    assert again["points"][1]["float_layers"] == [BAD]
    assert again["groups"][0]["layers"] == [BAD]
    assert Judged(**again["points"][1]["judged"]) == found.points[1].judged
    assert asdict(found)["images"] == (8, 4)
    assert isinstance(found, Frontier)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=200))
def test_groups_are_of_neighbours_and_alike_in_size(layers):
    found = grouped(layers)
    assert [layer for group in found for layer in group] == layers
    assert len(found) == min(MOST_GROUPS, len(layers))
    sizes = {len(group) for group in found}
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= 1


def test_seconds_are_of_the_whole_search(searched, monkeypatch):
    bounds = replace(LOOSE, drift=-1.0)
    started = time.monotonic()
    slow = module._Judge.judge

    def judge(self, nodes):
        time.sleep(0.2)
        return slow(self, nodes)

    monkeypatch.setattr(module._Judge, "judge", judge)
    found = searched(bounds, seconds=0.5)
    assert not found.finished
    assert time.monotonic() - started < 5
