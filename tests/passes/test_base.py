import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from vadexport.passes.base import GraphView, apply_passes


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
