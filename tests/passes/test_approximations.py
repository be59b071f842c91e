"""Rewrites that move distances: by how much they may, and where they must not apply."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.search_graphs import FORMS, Search, run
from tests.passes.test_mahalanobis import Case
from tests.passes.test_mahalanobis import run as run_distance
from vadexport.passes import BEFORE_APPROXIMATIONS, FLOAT_SEARCH, Mahalanobis, apply_passes
from vadexport.passes.bank_projection import BankProjection
from vadexport.passes.bank_pruning import BankPruning, kept_rows
from vadexport.passes.mahalanobis_rank import MahalanobisRank


def rewritten(model, *passes):
    """A graph behind `NearestNeighbours` and these; in how many places they applied."""
    result, places = apply_passes(model, (*BEFORE_APPROXIMATIONS, *passes))
    onnx.checker.check_model(result, full_check=True)
    return result, [places[each.name] for each in passes]


def distances(rows, others):
    return np.sqrt(np.square(rows[:, None] - others).sum(axis=2))


@st.composite
def searches(draw, *, rows=0, width=0):
    form = draw(st.sampled_from(FORMS))
    return Search(
        form=form,
        rows=rows + draw(st.integers(20, 90)),
        width=width + draw(st.integers(2, 12)),
        batch=None if form == "addmm" else draw(st.sampled_from([None, 1, 2, "N"])),
        keepdims=draw(st.integers(0, 1)),
        index=draw(st.booleans()),
        shift=draw(st.floats(-4, 4)),
        seed=draw(st.integers(0, 2**20)),
    )


# ------------------------------------------------------------------------------ pruning
@given(
    rows=st.integers(1, 680),  # with copies less than 2,048
    width=st.integers(1, 6),
    copies=st.integers(1, 3),
    fraction=st.floats(0, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_every_row_is_near_one_that_stays(rows, width, copies, fraction, seed):
    bank = np.random.default_rng(seed).normal(size=(rows, width))
    bank = np.tile(bank, (copies, 1))
    kept = kept_rows(bank, fraction)
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(kept, kept_rows(bank, fraction))
    between = distances(bank[:rows], bank[:rows])
    np.fill_diagonal(between, np.inf)
    radius = fraction * np.median(between.min(axis=1)) if rows > 1 else 0.0
    slack = 1e-5 * (1 + np.abs(bank).max())
    assert distances(bank, bank[kept]).min(axis=1).max() <= radius + slack
    apart = distances(bank[kept], bank[kept])
    np.fill_diagonal(apart, np.inf)
    assert apart.min(initial=np.inf) >= radius - slack
    if fraction == 0 and width > 2:  # on a line, two may be as close as rounding
        assert len(kept) == rows


@given(search=searches(), fraction=st.floats(0.5, 3))
@settings(deadline=None, max_examples=40)
def test_pruned_distances_are_those_to_the_rows_that_stay(search, fraction):
    model, queries = search.model(), search.queries()
    result, places = rewritten(model, BankPruning(fraction))
    kept = kept_rows(search.bank.astype(np.float64), fraction)
    assert places == [int(len(kept) < search.rows)]
    found, every = run(result, queries), search.distances(queries)
    squared = every**2 if search.rooted else every
    nearest = squared[..., kept].min(axis=-1)
    values = found[search.values].reshape(nearest.shape).astype(np.float64)
    values = values**2 if search.rooted else values
    np.testing.assert_allclose(values, nearest, atol=search.tolerance(queries))
    if search.index:
        rows = found["i"].reshape(nearest.shape)
        assert np.isin(rows, kept).all()
        named = np.take_along_axis(squared, rows[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(named, nearest, atol=2 * search.tolerance(queries))


def test_copies_go_and_nothing_changes():
    search = Search(form="later", rows=40)
    search.bank[20:] = search.bank[:20]
    queries = search.queries()
    result, places = rewritten(search.model(), BankPruning(0.0))
    assert places == [1]
    assert BankPruning(0.0).words(rewritten(search.model())[0], result) == (
        "20 of 40 rows of the memory bank"
    )
    expected, found = run(rewritten(search.model())[0], queries), run(result, queries)
    np.testing.assert_allclose(found["y"] ** 2, expected["y"] ** 2, atol=search.tolerance(queries))


# ------------------------------------------------------------------------------ projection
@given(search=searches(rows=100, width=8), share=st.floats(0.05, 0.5))
@settings(deadline=None, max_examples=40)
def test_projected_distances_lack_only_the_product_outside(search, share):
    rank = max(1, int(share * search.width))
    queries = search.queries()
    result, places = rewritten(search.model(), BankProjection(rank))
    assert places == [1]
    mean = search.bank.mean(axis=0, dtype=np.float64)
    bank, centred = search.bank - mean, queries - mean
    basis = np.linalg.svd(bank, full_matrices=False)[2][:rank]
    inside = distances(
        (centred @ basis.T).reshape(-1, rank),
        bank @ basis.T,
    )
    outside = [np.square(each - each @ basis.T @ basis).sum(axis=-1) for each in (centred, bank)]
    every = inside**2 + outside[0].reshape(-1, 1) + outside[1]
    found = run(result, queries)
    values = found[search.values].reshape(-1).astype(np.float64)
    assert (values >= 0).all()
    values = values**2 if search.rooted else values
    np.testing.assert_allclose(values, every.min(axis=1), atol=search.tolerance(queries))


def test_a_bank_of_few_directions_is_searched_exactly():
    search = Search(form="euclidean", rows=200, width=24)
    search.bank[:, 8:] = 0.5
    queries = search.queries()
    result, places = rewritten(search.model(), BankProjection(8))
    assert places == [1]
    found = run(result, queries)["v"].reshape(2, -1)
    expected = search.distances(queries).min(axis=-1)
    np.testing.assert_allclose(found**2, expected**2, atol=search.tolerance(queries))


def test_behind_both_come_the_passes_of_a_float_search():
    search = Search(form="later", rows=700, width=32, index=False)
    search.bank[350:] = search.bank[:350]
    rewrites = (BankPruning(0.0), BankProjection(16))
    result, places = rewritten(search.model(), *rewrites, *FLOAT_SEARCH)
    assert places == [1, 1, 0, 0]  # 350 rows are less than two tiles
    result, places = rewritten(search.model(), BankProjection(16), *FLOAT_SEARCH)
    assert places == [1, 0, 1]
    queries = search.queries()
    plain = rewritten(search.model(), BankProjection(16))[0]
    np.testing.assert_allclose(
        run(result, queries)["y"] ** 2,
        run(plain, queries)["y"] ** 2,
        atol=search.tolerance(queries),
    )


@pytest.mark.parametrize(
    ("search", "rewrite"),
    [
        pytest.param(Search(nearest=3, rows=60), BankPruning(3.0), id="several neighbours"),
        pytest.param(Search(outputs=("d",)), BankPruning(3.0), id="all distances are read"),
        pytest.param(
            Search(rows=60, width=12, outputs=("d",)), BankProjection(2), id="and in fewer"
        ),
        pytest.param(Search(rows=60, width=12), BankProjection(10), id="no fewer products"),
    ],
)
def test_searches_left_alone(search, rewrite):
    before = rewritten(search.model())[0].SerializeToString(deterministic=True)
    result, places = rewritten(search.model(), rewrite)
    assert places == [0]
    assert result.SerializeToString(deterministic=True) == before


def test_a_search_that_is_not_written_yet_is_left_alone():
    model = Search(rows=60, width=12, form="cdist").model()
    before = model.SerializeToString(deterministic=True)
    for rewrite in (BankPruning(3.0), BankProjection(2)):
        assert rewrite.apply(model) == 0
    assert model.SerializeToString(deterministic=True) == before


# ------------------------------------------------------------------------------ rank
@given(
    form=st.sampled_from(["inverse", "lower", "upper"]),
    width=st.integers(32, 60),
    rank=st.integers(1, 20),
    keepdims=st.integers(0, 1),
    seed=st.integers(0, 2**20),
)
@settings(deadline=None, max_examples=40)
def test_all_but_the_largest_eigenvalues_become_one(form, width, rank, keepdims, seed):
    case = Case(form, width=width, images=90, keepdims=keepdims, scale=0.3, seed=seed)
    result, places = rewritten(case.model(), MahalanobisRank(rank), Mahalanobis())
    assert places == [1, 0]
    matrices = case.matrices().astype(np.float64)
    if form != "inverse":
        matrices = matrices @ matrices.transpose(0, 2, 1)
    values, vectors = np.linalg.eigh(matrices)
    values[:, :-rank] = np.exp(np.log(values[:, :-rank]).mean(axis=1, keepdims=True))
    offsets = case.offsets()
    expected = (np.square(offsets @ vectors) * values[:, None]).sum(axis=2)
    expected = expected.reshape(case.expected(offsets).shape)
    found = run_distance(result, offsets)
    assert found.shape == expected.shape
    lengths = np.square(offsets.astype(np.float64)).sum(axis=2, keepdims=bool(keepdims))
    allowed = 2.0**-24 * (width * (1 + 2 * rank**0.5) + rank + 8) * values.max() * lengths
    assert (np.abs(found - expected) <= allowed).all()


def test_of_few_images_the_smallest_stay_and_nothing_moves():
    case = Case(width=64, images=10, scale=0.3)
    result, places = rewritten(case.model(), MahalanobisRank(12))
    assert places == [1]
    assert any(node.op_type == "Sub" for node in result.graph.node)
    expected = case.expected(case.offsets())
    found = run_distance(result, case.offsets())
    assert np.abs(found - expected).max() <= 1e-5 * expected.max()


@pytest.mark.parametrize(
    ("case", "rank"),
    [
        pytest.param(Case(definite=False), 8, id="not positive definite"),
        pytest.param(Case("full"), 8, id="not triangular"),
        pytest.param(Case(other=True), 8, id="another factor"),
        pytest.param(Case(again="m"), 8, id="the product is read again"),
        pytest.param(Case(width=40), 32, id="no gain"),
    ],
)
def test_distances_left_alone(case, rank):
    model = case.model()
    before = model.SerializeToString(deterministic=True)
    assert MahalanobisRank(rank).apply(model) == 0
    assert model.SerializeToString(deterministic=True) == before


# ------------------------------------------------------------------------------ candidates
def test_candidates_save_less_and_less():
    search, _ = rewritten(Search(rows=300, width=64).model())
    fractions = [each.fraction for each in BankPruning.candidates(search)]
    assert fractions == sorted(fractions, reverse=True)
    ranks = [each.rank for each in BankProjection.candidates(search)]
    assert ranks == [8, 16, 24, 32, 40]
    assert MahalanobisRank.candidates(search) == ()
    distance = Case(width=64).model()
    ranks = [each.rank for each in MahalanobisRank.candidates(distance)]
    assert ranks == [4, 8, 12, 16, 20, 24, 32, 40]
    assert BankPruning.candidates(distance) == BankProjection.candidates(distance) == ()
