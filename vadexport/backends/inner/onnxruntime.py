"""What goes on inside of an artifact of ONNX Runtime."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport.backends.base import ExecutedLayer
from vadexport.backends.onnxruntime.compiler import MODEL_FILE, open_session, version
from vadexport.contract import INPUT_NAME
from vadexport.passes.cutting import cut
from vadexport.passes.isolating import isolated, made
from vadexport.targets import Target

#: Operators that move data and compute nothing.
_SILENT: Final = frozenset(
    {"Concat", "Constant", "Expand", "Flatten", "Gather", "Identity", "ReorderInput"}
    | {"ReorderOutput", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose"}
    | {"Unsqueeze"}
)
#: What operators give whatever they read; all others give the type of what they read first.
_GIVES: Final = {
    **dict.fromkeys(("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN"), "bool"),
    **dict.fromkeys(("Less", "LessOrEqual", "Not", "Or"), "bool"),
    **dict.fromkeys(("ArgMax", "ArgMin", "NonZero", "Shape", "Size"), "int64"),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), "int32"),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul"), "float32"),
}
#: Inputs that come before those whose type an operator gives.
_BEHIND: Final = {"Where": 1, "If": 1, "Loop": 2, "OneHot": 2, "DequantizeLinear": 1}
_UNKNOWN: Final = "unknown"
_ERRORS: Final = 3
#: What ONNX Runtime puts behind a node's name as it takes it over into INT8.
_NUMBERED: Final = re.compile(r"_token_\d+$")


def executed_layers(folder: Path, _target: Target, _threads: int) -> tuple[ExecutedLayer, ...]:
    """As the package says; from the graph that ONNX Runtime makes for this processor.

    It says no precision itself: a node computes in INT8 where its operator says so, else in the
    type of the values that it reads. Without one where that is not known.
    """
    version()
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="vadexport-") as work:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(work) / MODEL_FILE)
        options.log_severity_level = _ERRORS  # it warns that the file is for this machine alone
        # Weights beside the graph are not read again.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights"
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
        open_session(folder / MODEL_FILE, options, ["CPUExecutionProvider"])
        graph = onnx.load(Path(work) / MODEL_FILE, load_external_data=False).graph
    types = {tensor.name: _word(tensor.data_type) for tensor in graph.initializer}
    types |= {each.name: _word(each.type.tensor_type.elem_type) for each in graph.input}
    told = []
    for node in graph.node:
        found = _type_of(node, types)
        types.update(dict.fromkeys(node.output, found))
        if node.op_type not in _SILENT:
            name = _NUMBERED.sub("", node.name)
            told.append(ExecutedLayer(name, node.op_type, _computes_in(node, types)))
    return tuple(told)


def _type_of(node: onnx.NodeProto, types: Mapping[str, str]) -> str:
    """Of what a node gives, as far as its operator and what it reads tell."""
    kind = node.op_type
    if kind in _GIVES:
        return _GIVES[kind]
    if kind == "Cast":
        return next(_word(each.i) for each in node.attribute if each.name == "to")
    if kind == "QuantizeLinear":
        return types.get(node.input[2], _UNKNOWN) if len(node.input) > 2 else "uint8"
    read = (name for name in node.input[_BEHIND.get(kind, 0) :] if name)
    return types.get(next(read, ""), _UNKNOWN)


def _computes_in(node: onnx.NodeProto, types: Mapping[str, str]) -> str:
    """The precision of a node's arithmetic."""
    kind = node.op_type
    if kind.startswith("QLinear") or kind == "QGemm" or "Integer" in kind or "Dynamic" in kind:
        return "int8"
    given = "float32" if kind == "QuantizeLinear" else types[node.output[0]]
    return types.get(node.input[0], given) if given == "bool" and node.input else given


def _word(kind: int) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(kind))


def isolated_values(
    folder: Path,
    _target: Target,
    threads: int,
    fed: Mapping[str, NDArray[np.float32]],
    call: NDArray[Any],
) -> dict[str, NDArray[np.float32]]:
    """As the package says. Between what is fed and what is told, no layer is in INT8."""
    version()
    import onnxruntime

    model = onnx.load(folder / MODEL_FILE)
    known = {name for node in model.graph.node for name in node.output}
    names = [name for name in fed if name in known]

    def run(graph: onnx.ModelProto, tensors: list[str], feeds: Mapping[str, Any]) -> list[Any]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        part = cut(graph, tensors).SerializeToString()
        session = open_session(part, options, ["CPUExecutionProvider"])
        taken = {each.name: feeds[each.name] for each in session.get_inputs()}
        return list(session.run(tensors, taken))

    found = dict(zip(names, run(model, names, {INPUT_NAME: call}), strict=True))
    ends = {name: fed[name] for name in names if found[name].shape == fed[name].shape}
    apart = run(isolated(model, ends), [made(name) for name in ends], {INPUT_NAME: call, **ends})
    return found | dict(zip(ends, apart, strict=True))
