import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vadexport.passes.base import GraphView, apply_passes, sort_nodes


def looping():
    """x + step, three times, where `step` is computed outside the loop and read inside it."""
    one, trips = (np.array(value) for value in (2.0, 3))
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["old", "step"], ["new"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("old", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("new", TensorProto.FLOAT, []),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Neg", ["two"], ["step"]),
            helper.make_node("Neg", ["two"], ["unread"]),
            helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body),
        ],
        "looping",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [
            numpy_helper.from_array(one.astype(np.float32), "two"),
            numpy_helper.from_array(trips.astype(np.int64), "trips"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_what_only_a_loop_reads_stays():
    rewritten, _ = apply_passes(looping(), [])
    assert [node.output[0] for node in rewritten.graph.node] == ["step", "y"]
    session = onnxruntime.InferenceSession(
        rewritten.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": np.array(1, np.float32)})
    assert found == 1 - 3 * 2


def test_a_loop_that_reads_a_tensor_is_its_consumer():
    model = looping()
    onnx.checker.check_model(model)
    model.graph.node.append(helper.make_node("Abs", ["step"], ["also"]))
    assert GraphView(model).only_consumer("step", "Abs") is None


def chain(nodes, constants=()):
    """A graph from `x` [2, N, 3] to the last node's output."""
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, "N", 3])],
        [helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [numpy_helper.from_array(value, name) for name, value in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_a_pass_sees_nothing_that_the_pass_before_made_unread():
    class Bypass:
        name = "bypass"

        def apply(self, model):
            model.graph.node[-1].input[0] = "x"
            return 1

    class Count:
        name = "count"

        def apply(self, model):
            return len(model.graph.node)

    model = chain([helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])])
    _, places = apply_passes(model, (Count(), Bypass(), Count()))
    assert places == {"count": 1, "bypass": 1}


def test_nodes_are_sorted_and_a_loop_comes_behind_what_it_reads():
    model = looping()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[2], nodes[1], nodes[0]])
    sort_nodes(model.graph)
    assert [node.output[0] for node in model.graph.node] == ["unread", "step", "y"]
    onnx.checker.check_model(model)


def test_a_cycle_is_no_graph():
    model = chain([helper.make_node("Abs", ["b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])])
    with pytest.raises(ValueError, match="cycle"):
        sort_nodes(model.graph)


def test_lookups():
    large = np.zeros((3, 2000), np.float32)
    model = chain(
        [
            helper.make_node("MatMul", ["x", "large"], ["product"]),
            helper.make_node("ReduceMax", ["product"], ["old"], axes=[-1]),
            helper.make_node("ReduceMax", ["product", "axes"], ["new"], keepdims=0),
            helper.make_node("Shape", ["new"], ["size"]),
            helper.make_node("Expand", ["one", "size"], ["ones"]),
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("Expand", ["axes", "size"], ["y"]),
        ],
        [("large", large), ("axes", np.array([2])), ("one", np.ones(1, np.float32))],
    )
    view = GraphView(model)
    # The shapes behind a constant that is too large to be copied, and the constant's own.
    assert view.dimensions("product") == (2, "N", 2000)
    assert view.shape("product") == (2, None, 2000)
    assert (view.shape("large"), view.rank("new"), view.shape("nothing")) == ((3, 2000), 2, None)
    assert view.dtype("large") == TensorProto.FLOAT
    assert [view.axes(view.producer(name)) for name in ("old", "new")] == [(-1,), (2,)]
    assert [view.filled(name) for name in ("ones", "zeros", "x", "product")] == [1, 0, None, None]
    assert view.is_output("y")
    assert [node.output[0] for node in view.consumers("product")] == ["old", "new"]
