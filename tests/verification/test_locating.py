import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from vadexport.backends.registry import get_backend
from vadexport.passes.half_precision import plan_half, to_half
from vadexport.targets import Target
from vadexport.verification.locating import locate, locate_compiled
from vadexport.verification.tensors import tensor_values

CALL = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)


def chain(seed=0):
    """Four convolutions with a ReLU each, and a score."""
    rng = np.random.default_rng(seed)
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20]>
        g (float[1, 3, 16, 16] image) => (float[1] raw_score, float[1, 2048] f) {
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
    assert found.first.size == pytest.approx(1e-3, rel=1e-3)
    assert found.largest.node == "c3"
    assert found.largest.size == pytest.approx(2, rel=1e-5)
    assert str(found).startswith("the difference begins at c0 (Conv, 0.001 of its magnitude; ")
    assert str(found).endswith("channels scaled by -1) adds most")


def test_what_a_fault_does_to_those_behind_it_is_not_theirs(located):
    model = chain()
    found = located(model, changed(model, "w1", lambda w: -w))
    assert found.first == found.largest
    assert found.first.node == "c1"


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


def halved(model, named):
    return to_half(model, plan_half(model, frozenset(named), {}))


def test_float16_rounds_as_it_may(located):
    whole = changed(chain(), "w0", lambda w: w * 1000)
    found = located(whole, halved(whole, {"c2", "r2"}))
    assert found.first is None
    assert found.largest.node == "c2"
    assert 1e-4 < found.largest.size < 2e-2
    assert str(found).startswith("no part adds more than rounding, and c2 (Conv, ")


def test_a_fault_in_a_float16_graph(located):
    model = chain()
    wrong = changed(model, "w2", lambda w: w * np.float32(1.1))
    found = located(model, halved(wrong, {"c1", "r1", "c2", "r2"}))
    assert (found.first.node, found.first.size) == ("c2", pytest.approx(0.1, rel=0.05))


def int8(model, reaches=(1.0, 1.0, 1.0, 1.0)):
    """Layers in INT8: weights of 7 bits per tensor, activations over a part of what they reach."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    activations = [f"b{number}" for number in range(3)]
    values = tensor_values(model, activations, CALL) | {"image": CALL}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    nodes, constants = [], []

    def scale(name, value):
        constants.append(numpy_helper.from_array(np.float32(value), name))
        constants.append(numpy_helper.from_array(np.int8(0), f"{name}/zero"))
        return [name, f"{name}/zero"]

    for node in made.graph.node:
        if node.op_type == "Conv":
            number = int(node.name[1])
            read, weight = node.input
            reach = np.abs(values[read]).max() * reaches[number]
            step = scale(f"{read}/scale", reach / 127)
            size = np.abs(weights[weight]).max() / 63
            each = scale(f"{weight}/scale", size)
            integers = np.rint(weights[weight] / size).astype(np.int8)
            constants.append(numpy_helper.from_array(integers, f"{weight}/q"))
            nodes += [
                helper.make_node("QuantizeLinear", [read, *step], [f"{read}/q"], f"{read}/q"),
                helper.make_node(
                    "DequantizeLinear", [f"{read}/q", *step], [f"{read}/d"], f"d{number}"
                ),
                helper.make_node(
                    "DequantizeLinear", [f"{weight}/q", *each], [f"{weight}/d"], weight
                ),
            ]
            node.input[:] = [f"{read}/d", f"{weight}/d"]
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(constants)
    return made


def test_int8_rounds_as_it_may(located):
    found = located(chain(), int8(chain()))
    assert found.first is None
    assert found.largest.size < 0.1


@pytest.mark.parametrize("layer", range(4))
def test_a_range_that_ends_too_early_is_found_where_it_is(located, layer):
    found = located(chain(), int8(chain(), [0.25 if n == layer else 1.0 for n in range(4)]))
    assert (found.first.node, found.first.operator) == (f"d{layer}", "DequantizeLinear")
    assert found.first == found.largest
    assert "its range ends too early: " in str(found)


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda w: 3 * w, "weights in another scale: channels scaled by "),
        (lambda w: np.roll(w, 1, 2), None),
    ],
)
def test_wrong_weights_in_int8_are_found_where_they_are(located, layer, change, cause):
    wrong = int8(changed(chain(), f"w{layer}", change))
    found = located(chain(), wrong)
    assert (found.first.node, found.first.operator) == (f"c{layer}", "Conv")
    if cause is None:
        assert found.first.cause is None
    else:
        assert found.first.cause.startswith(cause)


def test_rows_that_were_dropped_are_another_shape(located):
    model = chain()
    fewer = changed(model, "w3", lambda w: w[:6])
    found = located(model, fewer)
    assert found.first.node == "c3"
    assert "another shape; likely: 1x6x16x16 where it was 1x8x16x16" in str(found)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_in_both_is_no_fault(located, value):
    def masked(model):
        bias = np.zeros(8, np.float32)
        bias[0] = value
        model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
        layer = next(node for node in model.graph.node if node.name == "c1")
        layer.input.append("bias")
        return model

    model = masked(chain())
    assert located(model, model) is None
    found = located(model, changed(model, "w0", lambda w: w * np.float32(1.5)))
    assert (found.first, found.largest.node) == (found.largest, "c0")


def test_nodes_without_names(located):
    def bare(model):
        for node in model.graph.node:
            node.name = ""
        return model

    found = located(bare(chain()), bare(int8(chain(), [1, 1, 0.25, 1])))
    assert found.first.node == "b1/d"
    assert located(bare(chain()), bare(int8(chain()))).first is None


def test_tensors_in_place_of_the_step_before(tmp_path):
    model = chain()
    onnx.save(changed(model, "w2", lambda w: -w), tmp_path / "after.onnx")
    values = tensor_values(model, ["b0", "a3", "raw_score"], CALL)
    found = locate(values, tmp_path / "after.onnx", CALL)
    assert found.first.node == "c3"  # what it makes of b0; what is before it was not told
    onnx.save(model, tmp_path / "same.onnx")
    assert locate(values, tmp_path / "same.onnx", CALL) is None


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
class TestCompiled:
    def located(self, backend, folder, graph, compiled, precision="fp32"):
        for name, model in (("graph", graph), ("compiled", compiled)):
            onnx.save(model, folder / f"{name}.onnx")
        target = Target(backend, precision)
        (folder / "artifact").mkdir()
        get_backend(backend).compile_graph(folder / "compiled.onnx", folder / "artifact", target)
        return locate_compiled(folder / "graph.onnx", (folder / "artifact", target), 1, CALL)

    def test_the_same_is_the_same(self, backend, tmp_path):
        assert self.located(backend, tmp_path, chain(), chain()) is None

    @pytest.mark.parametrize("layer", range(4))
    def test_other_weights_are_found_where_they_are(self, backend, tmp_path, layer):
        wrong = changed(chain(), f"w{layer}", lambda w: w * np.float32(1.01))
        found = self.located(backend, tmp_path, chain(), wrong)
        assert (found.first.node, found.first) == (f"c{layer}", found.largest)
        assert found.first.size == pytest.approx(0.01, rel=1e-3)

    def test_int8_layers_are_fed_apart_too(self, backend, tmp_path):
        wrong = int8(changed(chain(), "w2", lambda w: np.roll(w, 1, 2)))
        found = self.located(backend, tmp_path, int8(chain()), wrong, "int8")
        assert found.first.node == "c2"
