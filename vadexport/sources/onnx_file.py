"""Read an ONNX file that nobody vouches for."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from vadexport.artifact import file_digest
from vadexport.errors import InputError
from vadexport.sources.checking import reason

#: What one protobuf message can hold.
_LIMIT: Final = 2**31 - 1
#: Sets of operators that every ONNX Runtime brings.
_KNOWN_DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_OLDEST_OPSET: Final = 7
_FLOATS: Final = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_WANTED: Final = "wanted is one input, images float32 [N, 3, h, w] or [N, 1, h, w]"


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file, all its weights in it.

    Attributes:
        model: local functions inlined; its graph's inputs are none of the initializers.
        input_name: of the images.
        channels: of the images.
        size: height and width of the images; None where both are dynamic.
        batch: images a call; None where that is dynamic.
        opset: of ONNX's own operators.
        sha256: of the file, and of those that hold its weights.
        bytes: of all of them.
    """

    model: onnx.ModelProto
    input_name: str
    channels: int
    size: tuple[int, int] | None
    batch: int | None
    opset: int
    sha256: str
    bytes: int


def read_onnx(path: Path) -> OnnxFile:
    """Read a file, and the files that its weights lie in, which must lie in its folder.

    Raises:
        InputError: it is damaged or no ONNX, too large, has operators that are not ONNX's, weights
            that are missing or elsewhere, or no images as its only input.
    """
    model = _parsed(path)
    _refuse_custom(model, path)
    files = sorted({_external(tensor, path) for tensor in _tensors(model) if tensor.external_data})
    size = path.stat().st_size + sum(file.stat().st_size for file in files)
    _refuse_large(path, size)
    _load_weights(model, path)
    _check(model, path)
    _refuse_nan(model, path)
    _inline(model)
    images = _images(model, path)
    shape = images.type.tensor_type.shape.dim
    batch, channels, height, width = (dim.dim_value or None for dim in shape)
    return OnnxFile(
        model=model,
        input_name=images.name,
        channels=channels or 3,
        size=None if height is None or width is None else (height, width),
        batch=batch,
        opset=_opset(model, path),
        sha256=_digest(path, files),
        bytes=size,
    )


def _parsed(path: Path) -> onnx.ModelProto:
    _refuse_large(path, path.stat().st_size)
    try:
        model: onnx.ModelProto = onnx.load_model(path, load_external_data=False)
    except Exception as error:
        raise InputError(f"{path} is truncated or no ONNX file: {reason(error)}") from error
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{path} is truncated or no ONNX file: it holds no graph")
    return model


def _refuse_large(path: Path, size: int) -> None:
    if size > _LIMIT:
        raise InputError(
            f"{path} with its weights has {size / 2**30:.1f} GB, more than the 2 GB that one ONNX "
            "file can hold, which every target needs"
        )


def _refuse_custom(model: onnx.ModelProto, path: Path) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    nodes = list(_nodes(model.graph.node))
    for function in model.functions:
        nodes.extend(_nodes(function.node))
    for node in nodes:
        if node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in own:
            raise InputError(
                f"{path} needs the operator {node.domain}.{node.op_type}, which is not ONNX's own: "
                "export it without custom operators"
            )


def _nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in bodies(node):
            yield from _nodes(graph.node)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node: those of loops and branches."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All constants of a model, wherever they stand."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in _nodes(function.node):
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)
        for body in bodies(node):
            yield from _graph_tensors(body)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def _external(tensor: onnx.TensorProto, path: Path) -> Path:
    """The file of a tensor's values, which must lie in the model's folder."""
    location = next((each.value for each in tensor.external_data if each.key == "location"), "")
    folder = path.parent.resolve()
    file = folder / location
    if not location or "\0" in location or not file.resolve().is_relative_to(folder):
        raise InputError(
            f"{path} takes weights from {location!r}, outside its own folder: refused; save it "
            "with its weights beside it"
        )
    if not file.is_file():
        raise InputError(f"{path} takes weights from {location}, which is not there: put it beside")
    return file


def _load_weights(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise InputError(f"the weights of {path} cannot be read: {reason(error)}") from error


def _check(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise InputError(f"{path} is no valid ONNX: {reason(error)}") from None


def _refuse_nan(model: onnx.ModelProto, path: Path) -> None:
    """One number may be NaN: it may say unset, as in PyTorch's modules."""
    for tensor in _tensors(model):
        if tensor.data_type in _FLOATS and math.prod(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor)
            if np.isnan(values).any():
                raise InputError(
                    f"the weights {tensor.name or 'of a constant'} of {path} hold NaN: they are "
                    "damaged; train or save again"
                )


def _inline(model: onnx.ModelProto) -> None:
    from onnx.inliner import inline_local_functions

    weights = {value.name for value in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)  # initializers were inputs too before IR version 4
    if model.functions:
        model.CopyFrom(inline_local_functions(model))


def _images(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    if len(model.graph.input) != 1:
        names = ", ".join(value.name for value in model.graph.input) or "none"
        raise InputError(f"{path} takes {len(model.graph.input)} inputs ({names}): {_WANTED}")
    images: onnx.ValueInfoProto = model.graph.input[0]
    kind = images.type.tensor_type
    sizes = [dim.dim_value or None for dim in kind.shape.dim]
    told = f"{_dtype(kind.elem_type)} [{', '.join(str(size or '?') for size in sizes)}]"
    if kind.elem_type != onnx.TensorProto.FLOAT:
        raise InputError(f"{path} takes {told}: {_WANTED}")
    if len(sizes) == 4 and sizes[1] not in (1, 3, None) and sizes[3] in (1, 3):
        raise InputError(f"{path} takes {told}, channels last (NHWC): {_WANTED}")
    if len(sizes) != 4 or sizes[1] not in (1, 3, None):
        raise InputError(f"{path} takes {told}: {_WANTED}")
    return images


def _dtype(kind: int) -> str:
    name = str(onnx.TensorProto.DataType.Name(kind)).lower()
    return "float32" if name == "float" else name


def _opset(model: onnx.ModelProto, path: Path) -> int:
    found = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if not found or found[0] < _OLDEST_OPSET:
        raise InputError(
            f"{path} is of opset {found[0] if found else 'none'}: export it again with opset "
            f"{_OLDEST_OPSET} or newer"
        )
    return int(found[0])


def _digest(path: Path, files: list[Path]) -> str:
    if not files:
        return file_digest(path)
    digest = hashlib.sha256(file_digest(path).encode())
    for file in files:
        digest.update(file_digest(file).encode())
    return digest.hexdigest()
