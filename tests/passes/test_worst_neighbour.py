from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vadexport.passes import apply_passes
from vadexport.passes.worst_neighbour import WorstNeighbour


@dataclass
class Case:
    """Indices of the smallest of each patch, read at a few patches of each image."""

    patches: int = 16
    rows: int = 5
    asked: int = 1
    images: int | str = 2
    asked_of: int | str | None = None
    flat: bool = False
    opset: int = 20
    op: str = "ArgMin"
    axis: int = -1
    keepdims: int = 0
    last: int = 0
    gather_axis: int = 1
    outputs: tuple[str, ...] = ()
    again: str = ""

    def model(self):
        many = self.images if isinstance(self.images, str) else self.images * self.patches
        scores = ["rows" if isinstance(many, str) else many, self.rows]
        if not self.flat:
            scores = [self.images, self.patches, self.rows]
        options = {"axis": self.axis, "keepdims": self.keepdims}
        options["select_last_index"] = self.last
        first = "found" if self.flat else "indices"
        nodes = [helper.make_node(self.op, ["s"], [first], "search", **options)]
        constants = {"sizes": np.array([-1, self.patches])}
        if self.flat:
            nodes.append(helper.make_node("Reshape", [first, "sizes"], ["indices"], "reshape"))
        inputs = ["indices", "i"]
        nodes.append(helper.make_node("GatherElements", inputs, ["y"], "g", axis=self.gather_axis))
        outputs = ["y", *self.outputs]
        if self.again:
            nodes.append(helper.make_node("Abs", [self.again], ["again"], "again"))
            outputs.append("again")
        asked_of = self.images if self.asked_of is None else self.asked_of
        graph = helper.make_graph(
            nodes,
            "worst",
            [
                helper.make_tensor_value_info("s", TensorProto.FLOAT, scores),
                helper.make_tensor_value_info("i", TensorProto.INT64, [asked_of, self.asked]),
            ],
            [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        if self.flat and isinstance(self.images, str):  # the exporter notes it
            shape = [self.images, self.patches]
            graph.value_info.append(helper.make_tensor_value_info("indices", 7, shape))
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9)
        return onnx.shape_inference.infer_shapes(model)

    def feed(self, seed, images=2):
        random = np.random.default_rng(seed)
        count = images if isinstance(self.images, str) else self.images
        # Few values: most rows have ties.
        scores = random.integers(0, 3, (count, self.patches, self.rows)).astype(np.float32)
        index = random.integers(-self.patches, self.patches, (count, self.asked))
        return {"s": scores.reshape(-1, self.rows) if self.flat else scores, "i": index}

    def expected(self, feed):
        scores = feed["s"].reshape(-1, self.patches, self.rows)
        if self.last:
            found = self.rows - 1 - scores[:, :, ::-1].argmin(axis=2)
        else:
            found = scores.argmin(axis=2)
        return np.take_along_axis(found, feed["i"] % self.patches, axis=1)


def rewritten(model):
    result, places = apply_passes(model, (WorstNeighbour(),))
    onnx.checker.check_model(result, full_check=True)
    return result, places["worst-neighbour"]


def run(model, feed):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]


@given(
    case=st.builds(
        Case,
        asked=st.integers(1, 2),
        images=st.sampled_from([1, 3, "N"]),
        rows=st.integers(1, 7),
        flat=st.booleans(),
        opset=st.integers(13, 20),
        last=st.integers(0, 1),
    ),
    seed=st.integers(0, 2**20),
)
@settings(deadline=None)
def test_the_same_indices_from_less(case, seed):
    model, feed = case.model(), case.feed(seed)
    result, places = rewritten(model)
    assert places == 1
    assert "GatherElements" not in [node.op_type for node in result.graph.node]
    found = run(result, feed)
    np.testing.assert_array_equal(found, run(model, feed))
    np.testing.assert_array_equal(found, case.expected(feed))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(asked=3), id="many are asked for"),
        pytest.param(Case(outputs=("indices",)), id="an output"),
        pytest.param(Case(flat=True, outputs=("found",)), id="an output before its shape"),
        pytest.param(Case(again="indices"), id="read again"),
        pytest.param(Case(flat=True, again="found"), id="read again before its shape"),
        pytest.param(Case(op="ArgMax"), id="the largest"),
        pytest.param(Case(rows=16, axis=1), id="along the patches"),
        pytest.param(Case(gather_axis=0), id="of the images"),
        pytest.param(Case(images=2, asked_of=1), id="of some images"),
        pytest.param(Case(images="N", asked_of="M"), id="of as many images as nobody knows"),
        pytest.param(Case(opset=11), id="an old opset"),
    ],
)
def test_left_alone(case):
    if case.opset == 11:
        case.opset = 13
        model = case.model()
        model.opset_import[0].version = 11
    else:
        model = case.model()
    before = model.SerializeToString(deterministic=True)
    assert WorstNeighbour().apply(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_unknown_patches():
    model = Case().model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "P"
    del model.graph.value_info[:]
    assert WorstNeighbour().apply(model) == 0


def test_applies_to_a_graph_with_re_weighting(graph_of):
    _, graph = graph_of("resizing", None)
    assert "ArgMin" in [node.op_type for node in graph.model.graph.node]
    assert rewritten(graph.model)[1] == 1
