from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.search_graphs import Search, run
from vadexport.passes import apply_passes, quantised_search, search_plan
from vadexport.passes.nearest_neighbours import CentredBank
from vadexport.passes.quantised_search import (
    PrincipalSearch,
    QuantisedSearch,
    search_inputs,
)
from vadexport.passes.search_plan import (
    STEPS,
    QuantisedBank,
    SearchPlan,
    plan_search,
)


@pytest.fixture(autouse=True, scope="module")
def small_tiles():
    with pytest.MonkeyPatch.context() as patch:
        for module in (search_plan, quantised_search):
            patch.setattr(module, "TILE", 16)
        patch.setattr(search_plan, "_BLOCKS", (16, 4))
        patch.setattr(search_plan, "_LEAST_BLOCK", 4)
        yield


def planned(search, limit=np.inf, queries=None, *, kind=QuantisedSearch):
    """The rewritten model, and the plan."""
    model = search.model()
    ((name, found),) = search_inputs(model).items()
    assert found.queries == "x"
    queries = search.queries() if queries is None else queries
    row_steps = STEPS if kind is QuantisedSearch else None
    plan = plan_search(found.bank, queries.reshape(-1, search.width), limit, row_steps)
    result, places = apply_passes(model, (kind({name: plan}),))
    assert places == {kind.name: 1}
    onnx.checker.check_model(result, full_check=True)
    return result, plan


def distances_of(search, found, queries):
    shape = search.distances(queries).shape[:-1]
    values = found[search.values].reshape(shape).astype(np.float64)
    return values if search.rooted else np.sqrt(values)


searches = st.builds(
    Search,
    form=st.sampled_from(["later", "euclidean", "cdist"]),
    rows=st.integers(1, 120),
    width=st.integers(2, 24),
    batch=st.sampled_from([None, 1, 3, "N"]),
    opset=st.integers(13, 20),
    rooted=st.booleans(),
    clipped=st.booleans(),
    keepdims=st.integers(0, 1),
    index=st.booleans(),
    shift=st.sampled_from([0.0, 5.0]),
    seed=st.integers(0, 2**20),
)


@given(search=searches)
@settings(deadline=None)
def test_distances_grow_by_no_more_than_the_plan_says(search):
    queries = search.queries()
    model, plan = planned(search)
    assert plan.shortlist == 1  # with no limit
    found = run(model, queries)
    expected = search.distances(queries)
    if not search.rooted:
        expected = np.sqrt(expected)
    got = distances_of(search, found, queries)
    assert found[search.values].shape == run(search.model(), queries)[search.values].shape
    # Rounding may turn a tie of two candidates the other way than the plan's numpy did.
    room = 1e-5 * np.abs(queries).max() + 0.01 * plan.error
    assert (got >= expected.min(axis=-1) - room).all()
    assert np.quantile(got - expected.min(axis=-1), 0.9) <= plan.error + room
    if search.index:
        assert found["i"].dtype == np.int64
        chosen = np.take_along_axis(expected, found["i"].reshape(got.shape)[..., None], axis=-1)
        np.testing.assert_allclose(chosen[..., 0], got, atol=room)


@given(search=searches)
@settings(deadline=None)
def test_with_a_limit_of_nothing_distances_are_exact(search):
    # Where no block's candidate is another than its nearest row.
    queries = search.queries()
    ((_, found),) = search_inputs(search.model()).items()
    if plan_search(found.bank, queries.reshape(-1, search.width), 0.0) is None:
        return
    model, plan = planned(search, 0.0)
    assert (plan.error, plan.recall) == (0.0, 1.0)
    expected = search.distances(queries).min(axis=-1)
    got = distances_of(search, run(model, queries), queries)
    expected = expected if search.rooted else np.sqrt(expected)
    close = np.isclose(got, expected, rtol=1e-5, atol=1e-5)
    assert close.mean() >= 0.9  # ties that rounding turns


@given(factor=st.sampled_from([10.0, 1e4]), seed=st.integers(0, 2**20))
@settings(deadline=None)
def test_a_query_far_beyond_all_others_has_a_distance_to_some_row(factor, seed):
    search = Search(rows=90, width=8, seed=seed)
    model, _ = planned(search)
    queries = search.queries() * np.float32(factor)
    found = run(model, queries)
    assert ((found["i"] >= 0) & (found["i"] < 90)).all()
    expected = search.distances(queries)
    chosen = np.take_along_axis(expected, found["i"][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found["v"], chosen, rtol=1e-4)


class TestPlan:
    def bank(self, rows=200, width=6):
        rows = np.random.default_rng(0).normal(size=(rows, width)) + 4
        return CentredBank.of(rows)

    def queries(self, count=300, width=6):
        random = np.random.default_rng(1)
        return (random.normal(size=(count, width)) + 4).astype(np.float32)

    def test_figures_are_those_of_brute_force(self):
        bank, queries = self.bank(), self.queries()
        plan = plan_search(bank, queries, np.inf)
        rows = bank.rows.astype(np.float64) + bank.mean
        true = np.sqrt(np.square(queries[:, None] - rows).sum(axis=2))
        centred = (queries - bank.mean).astype(np.float64)
        rounded = np.clip(np.rint(centred / plan.step), -128, 127) * plan.step
        steps = np.abs(bank.rows).max(axis=1, keepdims=True) / 127
        seeming = np.square(rounded[:, None] - np.rint(bank.rows / steps) * steps).sum(axis=2)
        chosen = true[np.arange(300), seeming.argmin(axis=1)]
        # A level is finer than what INT8 rounds, but may turn a few that are next to ties.
        assert plan.error == pytest.approx((chosen - true.min(axis=1)).max(), rel=0.2)
        assert plan.recall == pytest.approx((chosen == true.min(axis=1)).mean(), abs=0.02)
        assert plan.queries == 300

    def test_the_shortlist_grows_until_the_limit_is_held(self):
        bank, queries = self.bank(2000, 3), self.queries(500, 3)
        plans = [plan_search(bank, queries, limit) for limit in (1.0, 1e-2, 3e-3)]
        held = [plan for plan in plans if plan is not None]
        assert len(held) >= 2
        for plan, limit in zip(held, (1.0, 1e-2, 3e-3), strict=False):
            assert plan.error <= limit
        assert (held[0].shortlist, -held[0].block) < (held[-1].shortlist, -held[-1].block)
        assert held[0].recall < held[-1].recall

    def test_a_limit_that_cannot_be_held(self, monkeypatch):
        monkeypatch.setattr(search_plan, "_SHORTLISTS", (1,))
        bank, queries = self.bank(2000, 2), self.queries(2000, 2)
        assert plan_search(bank, queries, 0.0) is None

    def test_ranges_are_of_all_queries(self, monkeypatch):
        monkeypatch.setattr(search_plan, "_MOST_QUERIES", 10)
        queries = self.queries(100)
        queries[1] += 50
        plan = plan_search(self.bank(), queries, np.inf)
        assert plan.queries == 10
        assert plan.step == pytest.approx((queries[1] - self.bank().mean).max() / 127)

    def test_queries_that_are_all_the_mean(self):
        bank = self.bank()
        plan = plan_search(bank, np.tile(bank.mean, (3, 1)), np.inf)
        assert np.isfinite([plan.step, plan.levels, plan.error]).all()

    def test_a_bank_of_one_row(self):
        plan = plan_search(self.bank(1), self.queries(), 0.0)
        assert (plan.shortlist, plan.recall) == (1, 1.0)


class TestFewDirections:
    """Banks that vary in few directions, or in all."""

    def cloud(self, rows=300, width=96, rank=6, noise=0.02, seed=0):
        """Rows [n, D] of few sources, and of a little noise in all directions."""
        random = np.random.default_rng(seed)
        mix = random.normal(size=(rank, width))
        points = random.normal(size=(rows, rank)) @ mix + noise * random.normal(size=(rows, width))
        return points + random.normal(size=width)

    def test_those_that_the_bank_varies_in_are_enough(self):
        points = self.cloud(600)
        bank, queries = CentredBank.of(points[:300]), points[300:].astype(np.float32)
        plan = plan_search(bank, queries, 0.05)
        assert plan.directions.shape == (96, 32)
        product = plan.directions.T @ plan.directions
        np.testing.assert_allclose(product, np.eye(32), atol=1e-5)
        seen = np.abs((queries - bank.mean) @ plan.directions)
        assert plan.step == pytest.approx(seen.max() / 127, rel=1e-5)
        # Turned at random, all of them reach about as far: the first of six would reach alone.
        assert seen.max(axis=0).min() > 0.2 * seen.max()

    def test_two_plans_are_the_same_to_the_byte(self):
        points = self.cloud(600)
        bank, queries = CentredBank.of(points[:300]), points[300:].astype(np.float32)
        one, other = (plan_search(bank, queries, 0.05) for _ in range(2))
        assert one == other
        assert one.directions.tobytes() == other.directions.tobytes()

    @pytest.mark.parametrize("kind", [QuantisedSearch, PrincipalSearch])
    @pytest.mark.parametrize("seed", range(5))
    def test_distances_grow_by_no_more_than_the_plan_says(self, seed, kind):
        points = self.cloud(600, seed=seed, noise=0.1)
        bank, queries = points[:300].astype(np.float32), points[300:].astype(np.float32)
        search = Search(rows=300, width=96, patches=300, batch=1)
        search.bank = bank
        model, plan = planned(search, 0.1, queries[None], kind=kind)
        assert plan.directions is not None
        rounds = "QuantizeLinear" in {node.op_type for node in model.graph.node}
        assert rounds == (plan.step is not None) == (kind is QuantisedSearch)
        found = run(model, queries[None])
        expected = search.distances(queries[None])
        got = distances_of(search, found, queries[None])
        grown = got - expected.min(axis=-1)
        room = 1e-4 * np.abs(queries).max()
        assert grown.min() >= -room
        assert grown.max() <= plan.error + room <= 0.1 + room
        assert plan.recall == pytest.approx((grown <= room).mean(), abs=0.02)
        chosen = np.take_along_axis(expected, found["i"].reshape(got.shape)[..., None], axis=-1)
        np.testing.assert_allclose(chosen[..., 0], got, atol=room)

    def test_where_it_varies_in_all_of_them_none_is_left_out(self):
        random = np.random.default_rng(2)
        bank = CentredBank.of(random.normal(size=(300, 96)))
        queries = random.normal(size=(200, 96)).astype(np.float32)
        plan = plan_search(bank, queries, 0.2)
        assert plan.directions is None
        assert plan_search(bank, queries, 0.2, None) is None

    def test_without_rounding_a_few_directions_find_what_lies_in_them(self):
        points = self.cloud(600, noise=0.0)
        bank, queries = CentredBank.of(points[:300]), points[300:].astype(np.float32)
        plan = plan_search(bank, queries, 1e-5, None)
        assert (plan.step, plan.shortlist, plan.recall) == (None, 1, 1.0)

    def test_what_lies_outside_of_them_counts(self):
        # Rows that differ from each other only there: norms alone tell near from far.
        points = self.cloud(300, noise=0.0)
        outside = np.linalg.svd(points - points.mean(axis=0))[2][-1]
        points[::2] += 50 * outside
        bank = QuantisedBank.of(CentredBank.of(points), np.eye(96, 32, dtype=np.float32))
        exact = np.square(CentredBank.of(points).rows.astype(np.float64)).sum(axis=1)
        np.testing.assert_allclose(bank.norms, exact, rtol=0.02)

    def test_a_narrow_or_a_small_bank_has_none(self):
        for rows, width in ((2000, 24), (40, 96)):
            bank = CentredBank.of(self.cloud(rows, width))
            plan = plan_search(bank, self.cloud(50, width).astype(np.float32), np.inf)
            assert plan.directions is None


class TestLeftAlone:
    plan = SearchPlan(0.1, 16, 10.0, 1, 1, 1.0, 0.0)

    @pytest.mark.parametrize("search", [Search(nearest=2), Search(nearest=1)])
    def test_several_neighbours(self, search):
        model = search.model()
        assert search_inputs(model) == {}
        names = {node.output[0]: self.plan for node in model.graph.node}
        assert QuantisedSearch(names).apply(model) == 0

    def test_no_plan(self):
        model = Search().model()
        before = model.SerializeToString(deterministic=True)
        assert QuantisedSearch({"another": self.plan}).apply(model) == 0
        assert model.SerializeToString(deterministic=True) == before

    def test_distances_that_are_an_output(self):
        assert search_inputs(Search(outputs=("d",)).model()) == {}


def test_openvino_multiplies_in_int8():
    openvino = pytest.importorskip("openvino")
    search = Search(rows=60, width=32, patches=40, batch=1)
    model, plan = planned(search)
    del plan
    core = openvino.Core()
    if "INT8" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no INT8 instructions that OpenVINO uses")
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)
    products = [
        layer.get_rt_info()["runtimePrecision"].astype(str)
        for layer in compiled.get_runtime_model().get_ops()
        if layer.get_rt_info()["layerType"].astype(str) in ("FullyConnected", "MatMul")
    ]
    assert products == ["i8"] * 4
    queries = search.queries()
    results = compiled(queries)
    got = results[compiled.output("v")]
    np.testing.assert_allclose(got, run(model, queries)["v"], rtol=1e-4)


def test_plans_are_values():
    plan = TestLeftAlone.plan
    assert replace(plan, shortlist=2) != plan
