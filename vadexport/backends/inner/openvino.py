"""What goes on inside of an artifact of OpenVINO."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vadexport.backends.base import ExecutedLayer
from vadexport.backends.openvino.compiler import version
from vadexport.backends.openvino.runner import compiled, loaded
from vadexport.contract import INPUT_NAME
from vadexport.targets import Target

#: What a layer in INT8 reads must stay tied to it; outputs of the model are no parts.
_NO_ENDS: Final = ("FakeQuantize", "Result")
#: Layers that move or hold data and compute nothing.
_SILENT: Final = frozenset({"Input", "Output", "Const", "Reorder", "Reshape"})


def executed_layers(folder: Path, target: Target, threads: int) -> tuple[ExecutedLayer, ...]:
    """As the package says; from the graph that OpenVINO makes for this processor."""
    version()
    import openvino

    core = openvino.Core()
    model = compiled(core, loaded(core, folder, target), threads).get_runtime_model()
    told = []
    for layer in model.get_ordered_ops():
        info = layer.get_rt_info()
        kind, order = info["layerType"].astype(str), int(info["execOrder"].astype(str))
        if kind not in _SILENT:
            precision = info["runtimePrecision"].astype(str)
            told.append((order, ExecutedLayer(layer.get_friendly_name(), kind, precision)))
    return tuple(layer for _, layer in sorted(told, key=lambda pair: pair[0]))


def isolated_values(
    folder: Path,
    target: Target,
    threads: int,
    fed: Mapping[str, NDArray[np.float32]],
    call: NDArray[Any],
) -> dict[str, NDArray[np.float32]]:
    """As the package says."""
    version()
    import openvino
    from openvino import opset13

    core = openvino.Core()
    model = loaded(core, folder, target)
    ports = {}
    for layer in model.get_ordered_ops():
        for port in layer.outputs() if layer.get_type_name() not in _NO_ENDS else ():
            name = next((each for each in port.get_names() if each in fed), None)
            if name is not None and port.get_element_type() == openvino.Type.f32:
                ports[name] = port
    parameters = list(model.get_parameters())
    nowhere = opset13.constant(0.0, np.float32)
    for result in model.get_results():  # they would be outputs of no model
        result.input(0).replace_source_output(nowhere.output(0))
    alike = {
        name: port
        for name, port in ports.items()
        if port.get_partial_shape().compatible(openvino.PartialShape(fed[name].shape))
    }
    for name, port in alike.items():
        end = opset13.parameter(fed[name].shape, np.float32)
        end.output(0).get_tensor().set_names({f"{name}/fed"})
        parameters.append(end)
        for reader in port.get_target_inputs():
            reader.replace_source_output(end.output(0))
    parts = openvino.Model([opset13.result(port) for port in ports.values()], parameters)
    request = compiled(core, parts, threads).create_infer_request()
    feeds = {INPUT_NAME: call} | {f"{name}/fed": fed[name] for name in alike}
    found = request.infer(feeds)
    return {name: found[number].copy() for number, name in enumerate(ports)}
