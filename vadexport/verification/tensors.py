"""Inner tensors of an ONNX graph."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from vadexport.contract import INPUT_NAME, PREPROCESSED, Call
from vadexport.passes.cutting import cut


def tensor_values(
    model: onnx.ModelProto, names: Sequence[str], call: Call
) -> dict[str, np.ndarray]:
    """Compute float32 tensors of a graph, by name.

    To be run in a child process: ONNX Runtime runs the graph, and nothing in it is fused or
    folded, as what is gives no tensors of its own.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        cut(model, names).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (given,) = model.graph.input
    dtype = onnx.helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
    fed = {INPUT_NAME: call.astype(dtype, copy=False)}  # graphs for TensorRT take no uint16
    return dict(zip(names, session.run(list(names), fed), strict=True))


def preprocessed_by(graph: Path, call: Call) -> np.ndarray | None:
    """What the preprocessing of an ONNX file gives its network; None where no tensor is called so.

    To be run in a child process, like `tensor_values`.
    """
    model = onnx.load(graph)
    if not any(PREPROCESSED in node.output for node in model.graph.node):
        return None
    return tensor_values(model, [PREPROCESSED], call)[PREPROCESSED]


def largest_difference(expected: np.ndarray, found: np.ndarray) -> float:
    """As a fraction of the largest magnitude of `expected`; infinite for another shape."""
    if expected.shape != found.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(expected.astype(np.float64) - found).max()) / scale
