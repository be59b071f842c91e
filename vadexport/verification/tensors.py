"""Inner tensors of an ONNX graph."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport.contract import INPUT_NAME, PREPROCESSED, Call
from vadexport.passes.cutting import cut


def tensor_values(
    model: onnx.ModelProto,
    names: Sequence[str],
    call: Call,
    fed: Mapping[str, NDArray[np.float32]] | None = None,
) -> dict[str, np.ndarray]:
    """Compute float32 tensors of a graph, by name.

    To be run in a child process: ONNX Runtime runs the graph, and nothing in it is fused or
    folded, as what is gives no tensors of its own.

    Args:
        model: the graph.
        names: of the tensors.
        call: of the graph.
        fed: what its other inputs get: see `passes.isolating`.
    """
    if not names:
        return {}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    part = cut(model, names)
    session = onnxruntime.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    image = next(each for each in model.graph.input if each.name == INPUT_NAME)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type)
    feeds = {INPUT_NAME: call.astype(dtype, copy=False)}  # graphs for TensorRT take no uint16
    feeds.update(fed or {})
    taken = {each.name: feeds[each.name] for each in part.graph.input}
    return dict(zip(names, session.run(list(names), taken), strict=True))


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
