"""Processors that add INT8 products in int16, where they saturate, and graphs that do."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vadexport.backends.openvino.compiler import MODEL_FILE, version
from vadexport.errors import MissingDeviceError
from vadexport.machine import MOST_WITHOUT_VNNI, has_vnni
from vadexport.targets import AVX2, Target

if TYPE_CHECKING:
    import openvino

_ROWS, _COLUMNS = 16, 64
_PRODUCTS: Final = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")
#: What stands between a layer and the integers of its weights.
_BETWEEN: Final = ("Convert", "Multiply", "Reshape", "Subtract", "Transpose")


@cache
def adds_exactly() -> bool:
    """Whether OpenVINO adds products of uint8 by int8 exactly on this processor.

    It does where the processor has instructions for it (VNNI and AMX of x86, those of Arm). On
    others with AVX2 or AVX-512 it adds two of them in an int16, which saturates: sums that come out
    smaller, and of which nothing warns. Where the system does not say, it is tried.

    Raises:
        MissingPackageError: OpenVINO is not installed.
    """
    version()
    return has_vnni() or adds_up()


def adds_up() -> bool:
    """Whether the largest products of uint8 by int8 that there are add up here: it is tried."""
    import openvino
    from openvino import opset13

    image = opset13.parameter([_ROWS, _COLUMNS], np.float32)
    ends = [np.float32(end) for end in (0, 255, 0, 255)]
    steps = opset13.fake_quantize(image, *ends, 256)
    weights = opset13.constant(np.full((_COLUMNS, _ROWS), 127, np.int8))
    scaled = opset13.multiply(opset13.convert(weights, "f32"), np.ones((1, _ROWS), np.float32))
    product = opset13.matmul(steps, scaled, transpose_a=False, transpose_b=False)
    compiled = openvino.Core().compile_model(
        openvino.Model([product], [image]),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1},
    )
    found = compiled([np.full((_ROWS, _COLUMNS), 255, np.float32)])[0]
    return bool(np.all(found == 255 * 127 * _COLUMNS))


def may_saturate(model: "openvino.Model") -> bool:
    """Whether a graph has INT8 weights whose products by uint8 could saturate in an int16."""
    return any(
        _largest(node.input_value(1)) > MOST_WITHOUT_VNNI
        for node in model.get_ops()
        if node.get_type_name() in _PRODUCTS and not _is_depthwise(node)
    )


def check_products(model: "openvino.Model", target: Target) -> None:
    """Raise MissingDeviceError where this processor would not compute a graph's INT8 exactly."""
    if may_saturate(model) and not adds_exactly():
        raise MissingDeviceError(
            f"{target}: this processor has no VNNI: OpenVINO adds INT8 products in int16 here, and "
            "the artifact's would saturate, which changes scores. Build it on this processor, or "
            f"for {Target(target.backend, 'int8', AVX2)}, from a model that is not quantised yet"
        )


def check_folder(folder: Path, target: Target) -> None:
    """Likewise for an artifact."""
    import openvino

    check_products(openvino.Core().read_model(folder / MODEL_FILE), target)


def _is_depthwise(node: "openvino.Node") -> bool:
    """Whether a layer has but one input channel and one output channel a group."""
    if node.get_type_name() != "GroupConvolution":
        return False
    shape = node.input_value(1).get_partial_shape()
    return all(shape[axis].is_static and shape[axis].get_length() == 1 for axis in (1, 2))


def _largest(weights: "openvino.Output") -> int:
    """Largest magnitude of the integers that a layer's weights are; 0 where they are none.

    Weights that are rounded in the graph, as other tools write them, take all there are.
    """
    import openvino

    node, levels = weights.get_node(), 0
    while node.get_type_name() in (*_BETWEEN, "FakeQuantize"):
        levels = max(levels, node.get_attributes().get("levels", 0))
        node = node.input_value(0).get_node()
    if node.get_type_name() == "Constant" and levels:
        return levels // 2
    if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.i8:
        return 0
    values = node.get_data()
    return max(int(values.max(initial=0)), -int(values.min(initial=0)))
