import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tests.passes.search_graphs import FORMS, Search, run
from vadexport.passes import apply_passes
from vadexport.passes.nearest_neighbours import NearestNeighbours
from vadexport.tracing.graph import export_module


def rewritten(model):
    result, places = apply_passes(model, (NearestNeighbours(),))
    onnx.checker.check_model(result, full_check=True)
    return result, places["nearest-neighbours"]


@st.composite
def searches(draw):
    form = draw(st.sampled_from(FORMS))
    rows = draw(st.integers(1, 12))
    return Search(
        form,
        rows=rows,
        width=draw(st.integers(1, 20)),
        patches=draw(st.integers(1, 9)),
        batch=None if form == "addmm" else draw(st.sampled_from([None, 1, 3, "N"])),
        opset=draw(st.integers(13, 20)),
        rooted=draw(st.booleans()),
        clipped=draw(st.booleans()),
        keepdims=draw(st.integers(0, 1)),
        nearest=draw(st.integers(0, min(rows, 4))),
        index=draw(st.booleans()),
        shift=draw(st.sampled_from([0.0, 1.0, 10.0])),
        seed=draw(st.integers(0, 2**20)),
    )


def check(search, found, queries):
    """Compare with all distances in float64: values, and that indices point to rows as near."""
    expected = search.distances(queries)
    count = max(search.nearest, 1)
    values = np.sort(expected, axis=-1)[..., :count]
    power = 2 if search.rooted else 1
    kept = search.nearest > 0 or search.keepdims
    got = found[search.values]
    assert got.shape == (values if kept else values[..., 0]).shape
    got = got.reshape(values.shape).astype(np.float64)
    assert np.abs(got**power - values**power).max() <= search.tolerance(queries)
    if search.index:
        chosen = np.take_along_axis(expected, found["i"].reshape(values.shape), axis=-1)
        assert np.abs(chosen**power - values**power).max() <= 2 * search.tolerance(queries)


class TestRule:
    @given(search=searches())
    @settings(deadline=None, max_examples=150)
    def test_outputs_stay_the_same(self, search):
        model, queries = search.model(), search.queries()
        result, places = rewritten(model)
        assert places == 1
        check(search, run(result, queries), queries)
        if search.clipped or not search.rooted:  # else rounding makes the graph itself NaN
            check(search, run(model, queries), queries)

    @given(search=searches())
    @settings(deadline=None, max_examples=50)
    def test_only_a_product_and_a_sum_are_done_for_each_pair(self, search):
        result, _ = rewritten(search.model())
        described = onnx.shape_inference.infer_shapes(result).graph.value_info
        rank = 2 if search.batch is None else 3
        if search.rows in (1, search.width, search.nearest):
            return  # sizes alone do not tell what is as large as the bank
        large = [
            value.name
            for value in described
            if len(value.type.tensor_type.shape.dim) == rank
            and value.type.tensor_type.shape.dim[-1].dim_value == search.rows
        ]
        assert len(large) == 2

    def test_applies_twice_without_harm(self):
        search = Search()
        once, _ = rewritten(search.model())
        twice, places = rewritten(once)
        assert places == 1  # it is the rule's own form, and stays one
        check(search, run(twice, search.queries()), search.queries())

    def test_centring_keeps_what_cancels(self):
        # A bank far from the origin: the graph as it was loses nearly all of a distance.
        search = Search(shift=1000.0, width=16, rows=40)
        model, queries = search.model(), search.queries()
        expected = search.distances(queries).min(axis=-1)
        before, after = (run(each, queries)["v"] for each in (model, rewritten(model)[0]))
        assert np.abs(after - expected).max() < 1e-5 * expected.max()
        assert np.abs(before - expected).max() > 1e-2 * expected.max()

    def test_a_query_that_is_a_row_has_distance_zero_and_no_nan(self):
        search = Search(clipped=False, shift=10.0, batch=None, patches=11)
        result, places = rewritten(search.model())
        assert places == 1
        values = run(result, search.bank)["v"]
        assert np.isfinite(values).all()
        assert values.max() < 1e-2

    def test_two_searches(self):
        merged = onnx.compose.merge_models(
            onnx.compose.add_prefix(Search().model(), "a/"),
            onnx.compose.add_prefix(Search("cdist", rows=4).model(), "b/"),
            io_map=[],
        )
        assert rewritten(merged)[1] == 2


class Exported(torch.nn.Module):
    def __init__(self, search):
        super().__init__()
        self.search = search
        self.register_buffer("bank", torch.from_numpy(Search().bank))

    def forward(self, x):
        return self.search(x, self.bank)


class TestExporter:
    @pytest.mark.parametrize("dynamic", [False, True])
    @pytest.mark.parametrize(
        "search",
        [
            lambda x, bank: torch.cdist(x, bank).min(dim=-1),
            lambda x, bank: torch.cdist(x, bank).topk(3, largest=False),
            lambda x, bank: torch.cdist(x, bank, compute_mode="use_mm_for_euclid_dist").amin(-1),
        ],
        ids=["min", "topk", "amin"],
    )
    def test_cdist_as_torch_exports_it(self, search, dynamic):
        import onnxsim

        module = Exported(search).eval()
        queries = torch.from_numpy(Search(batch=None, patches=30).queries())
        found = module(queries)
        expected, outputs = (found[0], ["y", "i"]) if isinstance(found, tuple) else (found, ["y"])
        model = export_module(module, (queries,), ["x"], outputs, dynamic=dynamic)
        result, places = rewritten(onnxsim.simplify(model)[0])
        assert places == 1
        found = run(result, queries.numpy())["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    @pytest.mark.parametrize(("name", "batch"), [("plain", 1), ("resizing", None)])
    def test_applies_to_our_own_graphs(self, graph_of, name, batch):
        _, graph = graph_of(name, batch)
        assert rewritten(graph.model)[1] == 1


def changed(model, name, value):
    """The model with another constant."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return model


class TestLeftAlone:
    def check(self, model):
        before = model.SerializeToString(deterministic=True)
        result, places = rewritten(model)
        assert places == 0
        assert len(result.graph.node) == len(model.graph.node)
        assert model.SerializeToString(deterministic=True) == before

    def test_norms_of_another_kind(self):
        search = Search()
        self.check(changed(search.model(), "own", np.abs(search.bank).sum(axis=1)[None]))

    @pytest.mark.parametrize("factor", [-1.0, -2.01, 0.0])
    def test_another_factor_of_the_product(self, factor):
        self.check(changed(Search().model(), "m2", factor))

    def test_norms_of_the_queries_scaled(self):
        model = Search().model()
        squares = next(node for node in model.graph.node if node.output[0] == "n_squares")
        squares.input[1] = "x3"
        three = helper.make_node("Mul", ["x", "m2"], ["x3"], "x3")
        model.graph.node.insert(0, three)
        self.check(model)

    def test_norms_of_other_queries(self):
        model = Search().model()
        squares = next(node for node in model.graph.node if node.output[0] == "n_squares")
        squares.input[:] = ["z", "z"]
        model.graph.node.insert(0, helper.make_node("Abs", ["x"], ["z"], "z"))
        self.check(model)

    def test_norms_over_another_axis(self):
        # As many patches as rows: the norms broadcast along the wrong axis.
        model = Search(batch=None, patches=11, rows=11).model()
        node = next(node for node in model.graph.node if node.output[0] == "n")
        node.attribute[0].i = 0
        self.check(model)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_the_smallest_along_another_axis(self, axis):
        model = Search(index=False).model()
        axes = numpy_helper.from_array(np.array([axis]), "other")
        model.graph.initializer.append(axes)
        node = next(node for node in model.graph.node if node.op_type == "ReduceMin")
        node.input[1] = "other"
        sizes = [size for place, size in enumerate((2, 7, 11)) if place != axis]
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("v", 1, sizes))
        self.check(model)

    @pytest.mark.parametrize("op", ["ReduceMax", "ReduceMean"])
    def test_not_the_smallest(self, op):
        model = Search(index=False).model()
        node = next(node for node in model.graph.node if node.op_type == "ReduceMin")
        node.op_type = op
        self.check(model)

    def test_the_farthest(self):
        model = Search(nearest=2).model()
        node = next(node for node in model.graph.node if node.op_type == "TopK")
        next(each for each in node.attribute if each.name == "largest").i = 1
        self.check(model)

    @pytest.mark.parametrize("tensor", ["p", "q", "s", "d", "e", "e_0"])
    def test_an_intermediate_result_is_an_output(self, tensor):
        self.check(Search(outputs=(tensor,)).model())

    @pytest.mark.parametrize("tensor", ["d", "e", "e_0"])
    def test_an_intermediate_result_is_read_again(self, tensor):
        model = Search().model()
        model.graph.node.append(
            helper.make_node("ReduceMax", [tensor], ["more"], "more", keepdims=0)
        )
        model.graph.output.append(helper.make_tensor_value_info("more", 1, []))
        self.check(model)

    def test_the_value_is_read_before_its_norm_is_added(self):
        self.check(Search("later", outputs=("v",)).model())

    def test_a_bank_that_is_an_input(self):
        model = Search().model()
        model.graph.input.append(helper.make_tensor_value_info("w", 1, [5, 11]))
        self.check(model)
        del model.graph.initializer[[t.name for t in model.graph.initializer].index("w")]
        self.check(model)

    def test_queries_of_unknown_rank(self):
        model = Search(index=False).model()
        model.graph.input[0].type.tensor_type.ClearField("shape")
        assert NearestNeighbours().apply(model) == 0

    def test_an_old_opset(self):
        model = Search().model()
        model.opset_import[0].version = 12
        assert NearestNeighbours().apply(model) == 0

    def test_cosines(self):
        model = Search("later").model()
        self.check(changed(model, "own", np.ones(11)))

    def test_differences_without_a_product(self):
        nodes = [
            helper.make_node("Unsqueeze", ["x", "at"], ["u"], "u"),
            helper.make_node("Sub", ["u", "bank"], ["d"], "d"),
            helper.make_node("ReduceL1", ["d", "last"], ["n"], "n", keepdims=0),
            helper.make_node("ReduceMin", ["n", "last"], ["y"], "y", keepdims=0),
        ]
        constants = {"at": np.array([1]), "last": np.array([-1]), "bank": Search().bank}
        graph = helper.make_graph(
            nodes,
            "taxi",
            [helper.make_tensor_value_info("x", 1, [4, 5])],
            [helper.make_tensor_value_info("y", 1, [4])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        self.check(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
