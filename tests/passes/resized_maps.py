"""Graphs that resize, pad and blur a map, the rule of `MapAsMatrices` and almost the rule."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from scipy import ndimage, signal
from torch.nn import functional

from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.passes.map_as_matrices import MapAsMatrices

TAPS = np.array([0.1, 0.2, 0.4, 0.2, 0.1], np.float32)
#: How PyTorch exports `interpolate(mode="nearest")`.
REPEATED = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}


@dataclass
class Case:
    """Resize → Pad → Conv → Conv, as the exporter writes it unless told otherwise."""

    source: tuple[int, int] = (7, 5)
    target: tuple[int, int] = (28, 20)
    kernels: tuple[tuple[int, Any], ...] = ((0, TAPS), (1, TAPS))
    margins: tuple[int, int, int, int] = (2, 2, 2, 2)  # top, left, bottom, right
    opset: int = 20
    batch: int | str = 1
    channels: int = 1
    dtype: Any = np.float32
    scales: tuple[float, float] | None = None
    resize: dict[str, Any] = field(default_factory=dict)
    pad: dict[str, Any] = field(default_factory=dict)
    convs: dict[str, Any] = field(default_factory=dict)
    bias: bool = False
    outputs: tuple[str, ...] = ()
    read_again: str = ""
    static: bool = True

    def input_shape(self):
        return [self.batch, self.channels, *(self.source if self.static else ("h", "w"))]

    def model(self):
        resize = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", **self.resize}
        constants = {"pads": np.array([0, 0, *self.margins[:2], 0, 0, *self.margins[2:]])}
        if self.scales:
            constants["scales"] = np.array([1, 1, *self.scales], np.float32)
            inputs = ["x", "", "scales"]
        else:
            # With a dynamic batch, sizes need the batch: those cases are tested with scales.
            constants["sizes"] = np.array([self.batch, self.channels, *self.target], np.int64)
            inputs = ["x", "", "", "sizes"]
        nodes = [
            helper.make_node("Resize", inputs, ["big"], "resize", **resize),
            helper.make_node("Pad", ["big", "pads"], ["padded"], "pad", mode="reflect"),
        ]
        if self.pad:
            nodes[1] = helper.make_node("Pad", ["big", "pads"], ["padded"], "pad", **self.pad)
        names = ["padded", *["once", "twice"][: max(len(self.kernels) - 1, 0)], "y"]
        for number, (axis, taps) in enumerate(self.kernels):
            weights = np.asarray(taps, self.dtype)
            if weights.ndim == 1:
                weights = weights.reshape((-1, 1) if axis == 0 else (1, -1))
            weights = np.broadcast_to(weights, (self.channels, 1, *weights.shape))
            constants[f"w{number}"] = np.ascontiguousarray(weights)
            ends = [names[number], f"w{number}"]
            if self.bias:
                constants["bias"] = np.full(self.channels, 0.5, self.dtype)
                ends.append("bias")
            nodes.append(
                helper.make_node(
                    "Conv",
                    ends,
                    [names[number + 1]],
                    f"conv{number}",
                    group=self.channels,
                    **self.convs,
                )
            )
        outputs = ["y", *self.outputs]
        if self.read_again:
            nodes.append(helper.make_node("Neg", [self.read_again], ["again"], "neg"))
            outputs.append("again")
        element = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        graph = helper.make_graph(
            nodes,
            "map",
            [helper.make_tensor_value_info("x", element, self.input_shape())],
            [helper.make_tensor_value_info(name, element, [None] * 4) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )

    def image(self, count=1, seed=0):
        shape = (count, self.channels, *self.source)
        return np.random.default_rng(seed).normal(size=shape).astype(self.dtype)

    def gain(self):
        """Largest factor by which kernels amplify."""
        return float(np.prod([np.abs(taps).sum() for _, taps in self.kernels]))

    def expected(self, image):
        """In float64, with PyTorch's resize, numpy's padding and scipy's correlation."""
        repeated = self.resize.get("mode") == "nearest"
        mode = {"mode": "nearest"} if repeated else {"mode": "bilinear", "align_corners": False}
        big = functional.interpolate(torch.from_numpy(image).double(), self.target, **mode).numpy()
        top, left, bottom, right = self.margins
        result = np.pad(big, [(0, 0), (0, 0), (top, bottom), (left, right)], mode="reflect")
        for axis, taps in self.kernels:
            if np.ndim(taps) == 2:
                found = [signal.correlate2d(one[0], taps, mode="valid") for one in result]
                result = np.stack(found)[:, None]
                continue
            length = len(taps)
            full = ndimage.correlate1d(
                result, np.asarray(taps, np.float64), axis=2 + axis, mode="constant"
            )
            kept = np.arange(length // 2, full.shape[2 + axis] - (length - 1) // 2)
            result = full.take(kept, axis=2 + axis)
        return result


def run(model, image):
    opened = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(None, {"x": image}), strict=True))


def rewritten(model):
    copy, places = apply_passes(model, DEFAULT_PASSES)
    onnx.checker.check_model(copy, full_check=True)
    return copy, places["map-as-matrices"]


def assert_left_alone(model):
    before = model.SerializeToString(deterministic=True)
    assert MapAsMatrices().apply(model) == 0
    assert model.SerializeToString(deterministic=True) == before
