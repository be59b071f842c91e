import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from vadexport.passes.half_precision import plan_half, to_half
from vadexport.verification.locating import locate

CALL = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)


def chain(seed=0):
    """Four convolutions with a ReLU each, and a score."""
    rng = np.random.default_rng(seed)
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20]>
        g (float[1, 3, 16, 16] image) => (float[1] raw_score) {
            [c0] a0 = Conv <pads = [1, 1, 1, 1]> (image, w0)
            [r0] b0 = Relu (a0)
            [c1] a1 = Conv <pads = [1, 1, 1, 1]> (b0, w1)
            [r1] b1 = Relu (a1)
            [c2] a2 = Conv <pads = [1, 1, 1, 1]> (b1, w2)
            [r2] b2 = Relu (a2)
            [c3] a3 = Conv <pads = [1, 1, 1, 1]> (b2, w3)
            [flat] f = Flatten (a3)
            [score] raw_score = ReduceMax <keepdims = 0> (f, axes)
        }
    """)
    for number, channels in enumerate((3, 8, 8, 8)):
        weight = rng.normal(size=(8, channels, 3, 3)).astype(np.float32) / 5
        model.graph.initializer.append(numpy_helper.from_array(weight, f"w{number}"))
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    model.graph.initializer.append(axes)
    return model


def changed(model, name, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            value = change(numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(value, name))
    return copy


@pytest.fixture
def located(tmp_path):
    def located(before, after):
        for name, model in (("before", before), ("after", after)):
            onnx.save(model, tmp_path / f"{name}.onnx")
        return locate(tmp_path / "before.onnx", tmp_path / "after.onnx", CALL)

    return located


def test_of_two_graphs_that_are_the_same_there_is_none(located):
    assert located(chain(), chain()) is None


def test_rounding_is_no_difference(located):
    model = chain()
    assert located(model, changed(model, "w1", lambda w: w * np.float32(1 + 2**-22))) is None


@pytest.mark.parametrize("layer", range(4))
def test_a_changed_weight_is_found_where_it_is(located, layer):
    model = chain()

    def zeroed(weight):
        weight[0] = 0
        return weight

    found = located(model, changed(model, f"w{layer}", zeroed))
    assert (found.first.node, found.first.operator) == (f"c{layer}", "Conv")


def test_a_small_fault_before_a_large_one(located):
    model = chain()
    small = changed(model, "w0", lambda w: w * np.float32(1.001))
    found = located(model, changed(small, "w3", lambda w: -w))
    assert found.first.node == "c0"
    assert found.steepest.node == "c3"
    assert str(found).startswith("the difference begins at c0 (Conv, ")
    assert " and grows most at c3 (Conv, " in str(found)


def test_values_that_are_no_numbers(located):
    model = chain()

    def broken(weight):
        weight[0, 0, 0, 0] = np.nan
        return weight

    found = located(model, changed(model, "w2", broken))
    assert found.first.node == "c2"


def test_nodes_that_only_one_graph_has_do_not_matter(located):
    model = chain()
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    relu = next(node for node in fused.graph.node if node.name == "r1")
    relu.op_type = "LeakyRelu"
    relu.output[0] = "other"
    next(node for node in fused.graph.node if node.name == "c2").input[0] = "other"
    found = located(model, fused)
    assert found.first.node == "c2"


def test_a_float16_graph_beside_its_float32_one(located):
    model = chain()
    whole = changed(model, "w0", lambda w: w * 1000)
    plan = plan_half(whole, frozenset({"c2", "r2"}), {})
    found = located(whole, to_half(whole, plan))
    assert (found.first.node, found.first.operator) == ("b2/cast", "Cast")
