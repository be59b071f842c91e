"""The share of the peak of matrix products that artifacts reach: a part of benchmarks/peers.py.

The peak is what one large MatMul reaches in OpenVINO, in float32 and in INT8, measured on the spot.
Multiply-adds of an artifact are those of its convolutions and products; which of them run in INT8
is read from the graph that OpenVINO compiled. The share is the time that they would take at the
peak of their precision, by the time that the artifact takes.
"""

import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from peer_builds import place
from peer_rows import ROWS

from vadexport.backends.base import available_threads
from vadexport.machine import processor_name, tool_versions

TARGETS: Final = ("openvino:fp32", "openvino:int8", "openvino:auto")
_SIDE: Final = 4096
_CALLS: Final = 9
_INT8: Final = ("u8", "i8")


def run(work: Path, _rounds: int | None, *, quick: bool, again: bool) -> None:
    """Measure the peaks, if that is not done; and read the artifacts that were timed."""
    path = work / "peaks.json"
    side = 1024 if quick else _SIDE
    if path.exists() and not again:
        peaks = json.loads(path.read_text())["peaks"]
    else:
        peaks = {"float32": peak(side, int8=False), "INT8": peak(side, int8=True)}
    print("10⁹ multiply-adds a second:", peaks, flush=True)
    artifacts = []
    for row in ROWS:
        state = work / row / "found.json"
        found = json.loads(state.read_text()) if state.exists() else {}
        for target in TARGETS:
            timed = found.get("measured", {}).get("latency", {}).get(target)
            if timed:
                counts = multiply_adds(place(work / row, target) / "model.xml")
                seconds = (
                    counts["float"] / peaks["float32"] + counts["int8"] / peaks["INT8"]
                ) / 1e9
                artifacts.append(
                    {
                        "row": row,
                        "target": target,
                        "ms": timed["ms"],
                        "multiply_adds": sum(counts.values()),
                        "int8": counts["int8"],
                        "share": 1e3 * seconds / timed["ms"],
                    }
                )
    versions = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
    conditions = f"{processor_name()}, {available_threads()} threads; {versions}"
    found = {"conditions": conditions, "peaks": peaks, "artifacts": artifacts}
    path.write_text(json.dumps(found, indent=1) + "\n")


_PRODUCTS: Final = ("MatMul", "FullyConnected", "Convolution", "GroupConvolution")


def peak(side: int, *, int8: bool) -> float:
    """10⁹ multiply-adds a second of a square MatMul, the best of some calls."""
    import openvino
    from openvino import opset13 as operators

    rng = np.random.default_rng(0)
    given = operators.parameter([side, side], np.float32)
    weights = operators.constant(rng.uniform(-1, 1, (side, side)).astype(np.float32))
    left, right = given, weights
    if int8:
        left = quantised(given, 256)
        right = quantised(weights, 255)
    model = openvino.Model(
        [operators.matmul(left, right, transpose_a=False, transpose_b=False)], [given]
    )
    compiled = compile_pinned(model)
    precisions = [precision for kind, precision, _ in layers(compiled) if kind in _PRODUCTS]
    wanted = _INT8 if int8 else ("f32",)
    assert precisions, "no product in the compiled graph"
    assert all(each in wanted for each in precisions), precisions
    request = compiled.create_infer_request()
    call = rng.uniform(-1, 1, (side, side)).astype(np.float32)
    best = float("inf")
    for _ in range(_CALLS):
        started = time.perf_counter()
        request.infer([call], share_inputs=True)
        best = min(best, time.perf_counter() - started)
    return side**3 / best / 1e9


def quantised(node: Any, levels: int) -> Any:
    """A tensor in −1 … 1 in so many steps."""
    from openvino import opset13 as operators

    low = -1.0 if levels == 255 else -128 / 127
    ends = [operators.constant(np.float32(value)) for value in (low, 1.0, low, 1.0)]
    return operators.fake_quantize(node, *ends, levels)


def compile_pinned(model: Any) -> Any:
    """A model, compiled as vadexport's runner compiles it."""
    import openvino

    return openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": available_threads(),
        },
    )


def layers(compiled: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    """Of each layer that runs: kind, precision, and the layers of the model that it stands for."""
    found = []
    for layer in compiled.get_runtime_model().get_ops():
        info = layer.get_rt_info()
        names = info["originalLayersNames"].astype(str).split(",")
        precision = info["runtimePrecision"].astype(str)
        found.append((info["layerType"].astype(str), precision, tuple(names)))
    return found


def multiply_adds(path: Path) -> dict[str, int]:
    """Multiply-adds of a model's convolutions and products, `int8` and `float`.

    Those are INT8 whose weights are int8 in the file, and which no layer of floats stands for: what
    is fused into a layer may hide the name of the convolution in it.
    """
    import openvino

    model = openvino.Core().read_model(path)
    in_float = [
        f"{name}/"
        for kind, precision, names in layers(compile_pinned(model))
        if kind in _PRODUCTS and precision not in _INT8
        for name in names
    ]
    found = {"int8": 0, "float": 0}
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            # A layer may stand for what a rewrite made of a node, such as `name/WithoutBiases`.
            name = f"{node.get_friendly_name()}/"
            wide = any(each.startswith(name) for each in in_float)
            found["int8" if has_int8_weights(node) and not wide else "float"] += count_of(node)
    return found


def has_int8_weights(node: Any) -> bool:
    """Whether what a node multiplies with comes from an int8 constant."""
    weights = node.input_value(1).get_node()
    while weights.get_type_name() in ("Multiply", "Subtract", "Convert", "Reshape", "Transpose"):
        weights = weights.input_value(0).get_node()
    return weights.get_type_name() == "Constant" and "int8" in str(weights.get_element_type())


def count_of(node: Any) -> int:
    """Multiply-adds of one node: outputs times what each is summed over."""
    outputs = int(np.prod(node.output(0).get_shape()))
    if node.get_type_name() == "MatMul":
        shape = node.input_value(0).get_shape()
        transposed = node.get_attributes()["transpose_a"]
        return outputs * int(shape[-2] if transposed and len(shape) > 1 else shape[-1])
    weights = node.input_value(1).get_shape()
    # [O, C, kh, kw], and of groups [G, O, C, kh, kw].
    grouped = node.get_type_name() == "GroupConvolution"
    return outputs * int(np.prod(weights[2 if grouped else 1 :]))
