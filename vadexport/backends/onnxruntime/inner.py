"""What goes on inside of an artifact of ONNX Runtime."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from vadexport.backends.base import ExecutedLayer
from vadexport.backends.onnxruntime.compiler import MODEL_FILE, open_session, version
from vadexport.contract import INPUT_NAME
from vadexport.passes.cutting import cut
from vadexport.passes.isolating import isolated, made
from vadexport.targets import Target

#: Operators that move data and compute nothing.
_SILENT: Final = frozenset(
    {"Concat", "Constant", "Flatten", "Identity", "Reshape", "ReorderInput", "ReorderOutput"}
    | {"Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
_COMPARING: Final = ("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not")
_ERRORS: Final = 3
#: What ONNX Runtime puts behind a node's name as it takes it over into INT8.
_NUMBERED: Final = re.compile(r"_token_\d+$")


def executed_layers(folder: Path, target: Target, _threads: int) -> tuple[ExecutedLayer, ...]:
    """See the base class; from the graph that ONNX Runtime makes for this processor.

    It says no precision itself: a node computes in INT8 where its operator does, else in the type
    that its largest inputs have. Of a GPU's it is not told.
    """
    if target.device:
        return ()
    version()
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="vadexport-") as work:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(work) / MODEL_FILE)
        options.log_severity_level = _ERRORS  # it warns that the file is for this machine alone
        open_session(folder / MODEL_FILE, options, ["CPUExecutionProvider"])
        graph = onnx.load(Path(work) / MODEL_FILE).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {each.name: each.type.tensor_type.elem_type for each in graph.input}
    told = []
    for node in graph.node:
        found = _type_of(node, types)
        types.update(dict.fromkeys(node.output, found))
        if node.op_type not in _SILENT:
            name = _NUMBERED.sub("", node.name)
            told.append(ExecutedLayer(name, node.op_type, _in_words(node, found)))
    return tuple(told)


def _type_of(node: onnx.NodeProto, types: Mapping[str, int]) -> int:
    """Of what a node gives, as far as its operator or what it reads tells."""
    if node.op_type == "Cast":
        return next(int(each.i) for each in node.attribute if each.name == "to")
    if node.op_type in _COMPARING:
        return int(TensorProto.BOOL)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return types.get(node.input[2 if node.op_type[0] == "Q" else 1], TensorProto.FLOAT)
    return next((types[name] for name in node.input if name in types), TensorProto.FLOAT)


def _in_words(node: onnx.NodeProto, found: int) -> str:
    if node.op_type.startswith("Q") and node.op_type != "QuantizeLinear":
        return "int8"
    return str(onnx.helper.tensor_dtype_to_np_dtype(found))


def isolated_values(
    folder: Path,
    _target: Target,
    threads: int,
    fed: Mapping[str, NDArray[np.float32]],
    call: NDArray[Any],
) -> dict[str, NDArray[np.float32]]:
    """See the base class. On the processor, whatever the target: that is where graphs are told."""
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
