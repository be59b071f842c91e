"""What TensorRT cannot build, or would silently misread, found before it is asked to.

The parser takes a uint8 zero point for int8 with a warning and gives wrong numbers; what else is
here it refuses late, and in words that name no way out.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto

from vadexport.errors import BackendError
from vadexport.passes.base import GraphView, attributes

_LARGEST_TOPK: Final = 3840
_LARGEST_TENSOR: Final = 2**31 - 1
_DOMAINS: Final = ("", "ai.onnx")
#: Types that it knows; of others it has none, or rounds them without a word (float64).
_TYPES: Final = frozenset(
    getattr(TensorProto, name)
    for name in ("FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "INT8", "UINT8", "BOOL")
)
_QUANTISERS: Final = ("QuantizeLinear", "DequantizeLinear")


def check_limits(model: onnx.ModelProto, largest_batch: int) -> None:
    """Find the first thing that TensorRT would refuse or misread.

    Args:
        model: a graph as `prepared` gives it.
        largest_batch: that the engine is built for, where the graph's is dynamic.

    Raises:
        BackendError: node, limit, and what to do.
    """
    faults = chain.from_iterable(_faults(part) for part in _parts(_filled(model, largest_batch)))
    fault = next(chain(_dynamic_inputs(model), faults), None)
    if fault is not None:
        raise BackendError(f"TensorRT: {fault}")


def _filled(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy in which the batch, where it is open, is `batch`: sizes are then known numbers."""
    filled = onnx.ModelProto()
    filled.CopyFrom(model)
    inputs = [value.type.tensor_type.shape.dim for value in filled.graph.input]
    opened = [dims for dims in inputs if dims and not dims[0].HasField("dim_value")]
    if opened:
        del filled.graph.value_info[:]  # they hold the open batch
        for value in filled.graph.output:
            value.type.tensor_type.ClearField("shape")
    for dims in opened:
        dims[0].dim_value = batch
    return filled


def _parts(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """The graph, and those inside of its nodes (the body of a Loop), each as a model."""
    yield model
    for node in model.graph.node:
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                if graph.node:
                    inner = onnx.ModelProto()
                    inner.ir_version = model.ir_version
                    inner.opset_import.extend(model.opset_import)
                    inner.graph.CopyFrom(graph)
                    yield from _parts(inner)


def _faults(model: onnx.ModelProto) -> Iterator[str]:
    view = GraphView(model)
    for node in model.graph.node:
        if node.domain not in _DOMAINS:
            yield (
                f"node {node.name} is the custom operator {node.domain}::{node.op_type}; export "
                "the model with ONNX's own operators"
            )
    for node in model.graph.node:
        if node.op_type == "TopK":
            yield from _topk(node, view)
        if node.op_type in _QUANTISERS:
            yield from _quantiser(node, view)
        for name in node.output:
            dtype = view.dtype(name)
            if dtype is not None and dtype not in _TYPES:
                yield (
                    f"node {node.name} ({node.op_type}) gives {_words(dtype)}, which it has not; "
                    "let the model compute in float32"
                )
            yield from _size(node, view.shape(name))


def _dynamic_inputs(model: onnx.ModelProto) -> Iterator[str]:
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if any(not dim.HasField("dim_value") for dim in dims[1:]):
            yield (
                f"input {value.name} leaves more open than the batch, and no profile says which "
                "sizes come; give --image-size"
            )


def _topk(node: onnx.NodeProto, view: GraphView) -> Iterator[str]:
    shape = view.shape(node.input[0])
    axis = attributes(node).get("axis", -1)
    count = view.constant(node.input[1])
    wanted: int | None = None
    if count is not None:
        wanted = int(np.ravel(count)[0])
    elif shape is not None:  # as many as there are, at most
        wanted = shape[axis]
    if wanted is not None and wanted > _LARGEST_TOPK:
        yield (
            f"node {node.name} (TopK) takes the {wanted} largest values, its limit is "
            f"{_LARGEST_TOPK}; sort less, or use another target (onnxruntime:fp16@cuda)"
        )


def _quantiser(node: onnx.NodeProto, view: GraphView) -> Iterator[str]:
    zero = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    source, scale = view.constant(node.input[0]), view.constant(node.input[1])
    dtype = None if zero is None else zero.dtype
    if node.op_type == "DequantizeLinear" and source is not None:
        dtype = source.dtype
    if dtype == np.int32:
        yield (
            f"node {node.name} ({node.op_type}) holds an int32 bias, which it refuses; leave "
            "biases in float32"
        )
    elif dtype == np.uint8 or (zero is None and source is None and _default_is_uint8(node, view)):
        yield (
            f"node {node.name} ({node.op_type}) has uint8 values, which it takes for int8: scores "
            "would be wrong; quantise symmetrically, to int8 with zero point 0"
        )
    elif scale is not None and not np.all(np.asarray(scale, np.float64) > 0):
        yield (
            f"node {node.name} ({node.op_type}) has a scale that is not positive: a layer whose "
            "values are all zero cannot be quantised; leave it in float32"
        )
    elif zero is not None and np.any(zero != 0):
        yield (
            f"node {node.name} ({node.op_type}) has zero point {int(np.ravel(zero)[0])}, it knows "
            "0 only; quantise symmetrically"
        )


def _default_is_uint8(node: onnx.NodeProto, view: GraphView) -> bool:
    """ONNX's default, where a quantiser names no zero point."""
    name = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
    return view.dtype(name) in (None, TensorProto.UINT8)


def _size(node: onnx.NodeProto, shape: tuple[int | None, ...] | None) -> Iterator[str]:
    known = [size or 1 for size in shape or ()]
    if math.prod(known) > _LARGEST_TENSOR:
        sizes = "×".join(map(str, known))
        yield (
            f"node {node.name} ({node.op_type}) gives {sizes} values, its limit is 2^31; a smaller "
            "--batch (of a dynamic one: --tensorrt batches=…), --image-size or memory bank may do"
        )


def _words(dtype: int) -> str:
    return str(TensorProto.DataType.Name(dtype)).lower().replace("double", "float64")


def unsupported(parser: Any, model: onnx.ModelProto) -> Mapping[str, str]:
    """Operators that the library's parser does not know, each with the first node that has it."""
    found: dict[str, str] = {}
    for node in chain.from_iterable(part.graph.node for part in _parts(model)):
        if node.op_type not in found and not parser.supports_operator(node.op_type):
            found[node.op_type] = node.name
    return found
