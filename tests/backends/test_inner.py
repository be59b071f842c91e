"""What ONNX Runtime's optimised graph is told to compute in."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from vadexport.backends.inner import executed_layers, isolated_values
from vadexport.targets import Target

ORT = Target("onnxruntime", "fp32")


def layers_of(text, folder, **constants):
    model = parser.parse_model(text)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.save(model, folder / "model.onnx")
    return {each.operator: each.precision for each in executed_layers(folder, ORT, 1)}


def test_what_is_behind_a_comparison_is_float(tmp_path):
    found = layers_of(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[2, 3] image) => (float[2, 3] y) {
            mask = Greater (image, zero)
            chosen = Where (mask, image, one)
            y = Sqrt (chosen)
        }""",
        tmp_path,
        zero=np.float32(0),
        one=np.float32(1),
    )
    assert found == {"Greater": "float32", "Where": "float32", "Sqrt": "float32"}


def test_integer_products_are_int8_and_what_is_behind_them_is_not(tmp_path):
    found = layers_of(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[2, 8] image) => (float[2, 4] y) {
            q, scale, zero = DynamicQuantizeLinear (image)
            products = MatMulInteger (q, weight, zero)
            f = Cast <to = 1> (products)
            y = Sin (f)
        }""",
        tmp_path,
        weight=np.ones((8, 4), np.int8),
    )
    assert found["Sin"] == "float32"
    products = [kind for name, kind in found.items() if "MatMul" in name or "Dynamic" in name]
    assert products
    assert set(products) == {"int8"}


def test_a_quantiser_without_a_zero(tmp_path):
    found = layers_of(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[2, 8] image) => (float[2, 8] y) {
            q = QuantizeLinear (image, step)
            f = DequantizeLinear (q, step)
            y = Sin (f)
        }""",
        tmp_path,
        step=np.float32(0.1),
    )
    assert found["QuantizeLinear"] == found["Sin"] == "float32"


def test_indices_are_whole_numbers(tmp_path):
    found = layers_of(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[2, 8] image) => (float[2, 1] y) {
            n = ArgMin <axis = 1> (image)
            f = Cast <to = 1> (n)
            y = Sin (f)
        }""",
        tmp_path,
    )
    assert found["ArgMin"] == "int64"
    assert found["Sin"] == "float32"


@pytest.mark.parametrize("target", ["tensorrt-rtx:int8@sm86", "onnxruntime:fp32@cuda"])
def test_of_a_gpu_nothing_is_told(target, tmp_path):
    assert executed_layers(tmp_path, Target.parse(target), 1) == ()
    artifact = tmp_path, Target.parse(target), 1
    assert isolated_values(artifact, {}, np.zeros((1, 4, 4, 3), np.uint8)) == {}
