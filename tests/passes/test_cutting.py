import numpy as np
import pytest
from onnx import numpy_helper

from tests.passes.half_graphs import graph, residual_network, run
from tests.passes.test_base import looping
from vadexport.passes.cutting import cut

RANDOM = np.random.default_rng(5)
IMAGE = RANDOM.normal(size=(2, 3, 16, 16)).astype(np.float32)


def shown(model, names):
    """The graph with these outputs, and all else as it was."""
    made = type(model)()
    made.CopyFrom(model)
    del made.graph.output[:]
    made.graph.output.extend(cut(model, names).graph.output)
    return made


@pytest.mark.parametrize("names", [["r1"], ["c3", "r1"], ["pooled"], ["heat", "score"]])
def test_tensors_are_the_same_to_the_bit(names):
    model = residual_network()
    before = model.SerializeToString()
    found, expected = (run(each, image=IMAGE) for each in (cut(model, names), shown(model, names)))
    assert list(found) == names
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name])
    assert model.SerializeToString() == before


def test_what_the_tensors_do_not_need_is_gone():
    made = cut(residual_network(), ["r1"]).graph
    assert [node.name for node in made.node] == ["c1", "r1"]
    assert sorted(tensor.name for tensor in made.initializer) == ["b1", "w1"]
    assert [each.name for each in made.input] == ["image"]


def test_what_only_the_body_of_a_loop_reads_stays():
    model = looping()
    made = cut(model, ["y"])
    assert [node.output[0] for node in made.graph.node] == ["step", "y"]
    feed = {"x": np.array(1, np.float32)}
    assert run(made, **feed)["y"] == run(model, **feed)["y"]


def test_an_optional_input_without_a_name_keeps_no_other_node():
    nodes = "a, = Dropout(x)\n y = Clip(x, , high)"
    model = graph("float[2] x", nodes, "float[2] a, float[2] y", high=np.array(1.0))
    model.graph.node[0].output.append("")
    assert [node.op_type for node in cut(model, ["y"]).graph.node] == ["Clip"]


def test_defaults_of_inputs_go_with_their_readers():
    model = residual_network()
    for name in ("w1", "w2"):
        tensor = next(each for each in model.graph.initializer if each.name == name)
        value = model.graph.input.add(name=name)
        value.type.tensor_type.elem_type = tensor.data_type
        for size in numpy_helper.to_array(tensor).shape:
            value.type.tensor_type.shape.dim.add(dim_value=size)
    made = cut(model, ["r1"])
    assert [each.name for each in made.graph.input] == ["image", "w1"]
    np.testing.assert_array_equal(run(made, image=IMAGE)["r1"].min(), 0)
