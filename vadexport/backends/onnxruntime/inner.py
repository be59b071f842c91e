"""Inner tensors of an artifact of ONNX Runtime, each part of it fed on its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport.backends.onnxruntime.compiler import MODEL_FILE, open_session, version
from vadexport.contract import INPUT_NAME
from vadexport.passes.cutting import cut
from vadexport.passes.isolating import isolated, made
from vadexport.targets import Target


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
