from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tests.passes.search_graphs import Search, run
from vadexport.passes import apply_passes, search_tiles
from vadexport.passes.nearest_neighbours import NearestNeighbours
from vadexport.passes.search_tiles import SearchTiles
from vadexport.passes.worst_neighbour import WorstNeighbour


@pytest.fixture(autouse=True, scope="module")
def small_tiles():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_tiles, "TILE", 32)
        yield


def rewritten(model):
    result, places = apply_passes(model, (NearestNeighbours(), WorstNeighbour(), SearchTiles()))
    onnx.checker.check_model(result, full_check=True)
    return result, places["search-tiles"]


@given(
    rows=st.integers(64, 200),
    batch=st.sampled_from([None, 1, 3, "N"]),
    keepdims=st.integers(0, 1),
    opset=st.integers(13, 20),
    form=st.sampled_from(["later", "cdist", "euclidean"]),
    seed=st.integers(0, 2**20),
)
@settings(deadline=None)
def test_outputs_stay_the_same(rows, batch, keepdims, opset, form, seed):
    search = Search(form, rows, batch=batch, keepdims=keepdims, opset=opset, index=False, seed=seed)
    model, queries = search.model(), search.queries()
    result, places = rewritten(model)
    assert places == 1
    assert Counter(node.op_type for node in result.graph.node)["MatMul"] == -(-rows // 32)
    expected = search.distances(queries).min(axis=-1, keepdims=bool(keepdims))
    for each in (model, result):
        found = run(each, queries)[search.values].astype(np.float64)
        assert found.shape == expected.shape
        assert np.abs(found**2 - expected**2).max() <= search.tolerance(queries)


class TestLeftAlone:
    def check(self, model):
        model, _ = apply_passes(model, (NearestNeighbours(),))
        before = model.SerializeToString(deterministic=True)
        assert SearchTiles().apply(model) == 0
        assert model.SerializeToString(deterministic=True) == before

    def test_a_bank_of_one_tile(self):
        self.check(Search(rows=63, index=False).model())

    def test_indices_of_all_patches(self):
        self.check(Search(rows=100).model())

    def test_rows_that_the_worst_patch_takes_out(self):
        search = Search(rows=100, patches=9)
        model = search.model()
        model.graph.node.extend(
            [
                helper.make_node("ArgMax", ["v"], ["far"], "far", axis=1, keepdims=1),
                helper.make_node("GatherElements", ["i", "far"], ["worst"], "worst", axis=1),
            ]
        )
        model.graph.output[1].CopyFrom(helper.make_tensor_value_info("worst", 7, [2, 1]))
        model, places = apply_passes(model, (NearestNeighbours(), WorstNeighbour()))
        assert places["worst-neighbour"] == 1
        assert SearchTiles().apply(model) == 0
        queries = search.queries()
        distances = search.distances(queries)
        far = distances.min(axis=2).argmax(axis=1)
        nearest = distances[[0, 1], far].argmin(axis=1)
        np.testing.assert_array_equal(run(model, queries)["worst"][:, 0], nearest)

    def test_several_neighbours(self):
        self.check(Search(rows=100, nearest=3).model())

    @pytest.mark.parametrize("tensor", ["d/product", "d/partial"])
    def test_distances_that_are_an_output(self, tensor):
        search = Search("later", rows=100, index=False)
        model, _ = apply_passes(search.model(), (NearestNeighbours(),))
        model.graph.output.append(helper.make_tensor_value_info(tensor, 1, [2, 7, 100]))
        assert SearchTiles().apply(model) == 0

    def test_distances_that_are_read_again(self):
        model, _ = apply_passes(Search("later", 100, index=False).model(), (NearestNeighbours(),))
        model.graph.node.append(helper.make_node("Abs", ["d/partial"], ["more"], "more"))
        model.graph.output.append(helper.make_tensor_value_info("more", 1, [2, 7, 100]))
        assert SearchTiles().apply(model) == 0

    def test_the_smallest_along_the_patches(self):
        model, _ = apply_passes(Search("later", 100, index=False).model(), (NearestNeighbours(),))
        axes = numpy_helper.from_array(np.array([1]), "patches")
        model.graph.initializer.append(axes)
        next(n for n in model.graph.node if n.op_type == "ReduceMin").input[1] = "patches"
        assert SearchTiles().apply(model) == 0

    def test_a_bank_that_is_an_input(self):
        model, _ = apply_passes(Search("later", 100, index=False).model(), (NearestNeighbours(),))
        model.graph.input.append(helper.make_tensor_value_info("d/weights", 1, [5, 100]))
        assert SearchTiles().apply(model) == 0
