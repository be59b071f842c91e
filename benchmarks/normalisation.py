"""What it brings to write an image's normalisation otherwise, or to fold it away.

Graphs of one detector: as traced; with a gray image repeated to three channels before the mean is
subtracted (the pass `gray-channels`; of RGB it is the same graph again); with 1/255 and 1/std in
the weights of the first convolutions, so that only the mean is left to subtract; with the mean
folded as well, and the three equal channels of a gray camera summed into one: what the mean does,
which differs where the convolution pads, is then a constant map that is added; and with no
normalisation at all, a wrong graph that shows what there is to gain. Whole detectors, and the
graphs cut behind their first convolution. Float32, batch 1, solar cells of elpv-dataset; each graph
is called once a round, in random order, each after an untimed call of the same; ratios are medians
of paired ones.

    python benchmarks/normalisation.py [--seconds 10] [--document docs/passes.md]
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from cells import INTACT, shuffled_cells
from documents import replace_table
from onnx import numpy_helper

from vadexport.backends import onnxruntime as ort_backend
from vadexport.backends import openvino as openvino_backend
from vadexport.backends.base import available_threads
from vadexport.contract import INPUT_NAME, PREPROCESSED, ImageInput
from vadexport.detectors import patchcore, student_teacher
from vadexport.detectors.exportable import Exportable
from vadexport.images import decode
from vadexport.machine import processor_name, tool_versions
from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.passes.base import drop_unread
from vadexport.passes.gray_channels import GrayChannels
from vadexport.targets import Target
from vadexport.telemetry import forbid_telemetry
from vadexport.tracing.graph import simplify, trace
from vadexport.verification.statistics import median_interval

BACKENDS = {"OpenVINO": openvino_backend, "ONNX Runtime": ort_backend}
CORESET = patchcore.PatchCoreConfig()
FITTED, TIMED = 16, 8
AS_TRACED = "as traced"
Fit = Callable[[list[np.ndarray], ImageInput], Exportable]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of measuring, for each row pair")
    parser.add_argument("--document", type=Path, help="whose table is replaced")
    options = parser.parse_args()
    forbid_telemetry()
    torch.manual_seed(0)
    paths = shuffled_cells("mono", INTACT, np.random.default_rng(0))[: FITTED + TIMED]
    one_step = student_teacher.StudentTeacherConfig(steps=1)
    fits: dict[str, tuple[int, Fit]] = {
        "PatchCore, gray": (1, lambda images, size: patchcore.fit(images, CORESET, size)),
        "PatchCore, RGB": (3, lambda images, size: patchcore.fit(images, CORESET, size)),
        "STFPM, gray": (1, lambda images, size: student_teacher.fit(images, one_step, size)),
    }
    versions = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
    lines = [
        f"{processor_name()}, {available_threads()} threads; {versions}",
        "",
        "| Lite0 | backend | traced, ms | `gray-channels` | scale folded | mean as well | none |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (channels, fit) in fits.items():
        images = [decode(path, channels) for path in paths]
        image_input = ImageInput(300, 300, channels)
        model = simplify(trace(fit(images[:FITTED], image_input).eval(), image_input)).model
        others = [each for each in DEFAULT_PASSES if each.name != GrayChannels.name]
        model, _ = apply_passes(model, others)
        for part, cut in (("", False), (", first layer", True)):
            found = measure(variants(model, cut=cut), images[FITTED:], options.seconds)
            for backend, samples in found.items():
                traced = np.array(samples.pop(AS_TRACED))
                gains = [median_interval(traced / np.array(each)) for each in samples.values()]
                shown = " | ".join(f"{g.value:.3f} ({g.low:.3f}–{g.high:.3f})" for g in gains)
                lines.append(f"| {name}{part} | {backend} | {np.median(traced):.2f} | {shown} |")
    table = "\n".join([*lines, ""])
    print(table)
    if options.document is not None:
        replace_table(options.document, table, "normalisation")


def variants(model: onnx.ModelProto, *, cut: bool) -> dict[str, onnx.ModelProto]:
    """The graphs, each whole or up to the first convolution that reads the image."""
    found = {
        AS_TRACED: model,
        GrayChannels.name: apply_passes(model, [GrayChannels()])[0],
        "scale folded": _folded(model),
        "all folded": _with_map(model),
        "none": _without(model),
    }
    return {name: _to_first_layer(each) if cut else each for name, each in found.items()}


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """`(x/255 − mean)/std` before convolutions becomes `x − 255·mean`, the scale in their weights.

    Padding is with zeros, which stay zeros whatever the scale.
    """
    copy, (divided, subtracted, scaled) = _normalisation(model)
    values = {tensor.name: tensor for tensor in copy.graph.initializer}
    white, mean, std = (
        numpy_helper.to_array(values[node.input[1]]).astype(np.float64)
        for node in (divided, subtracted, scaled)
    )
    values[subtracted.input[1]].CopyFrom(
        numpy_helper.from_array((white * mean).astype(np.float32), subtracted.input[1])
    )
    for layer in _readers(copy):
        weight = values[layer.input[1]]
        folded = numpy_helper.to_array(weight) / (white * std)
        weight.CopyFrom(numpy_helper.from_array(folded.astype(np.float32), weight.name))
        layer.input[0] = subtracted.output[0]
    subtracted.input[0] = divided.input[0]
    drop_unread(copy.graph)
    return copy


def _with_map(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convolutions read the gray image itself, and a constant map is added for the mean."""
    copy, (divided, subtracted, scaled) = _normalisation(model)
    values = {tensor.name: tensor for tensor in copy.graph.initializer}
    white, mean, std = (
        numpy_helper.to_array(values[node.input[1]]).astype(np.float64)
        for node in (divided, subtracted, scaled)
    )
    for number, layer in enumerate(_readers(copy)):
        weight = numpy_helper.to_array(values[layer.input[1]]).astype(np.float64)
        bias = numpy_helper.to_array(values[layer.input[2]]).astype(np.float64)
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in layer.attribute}
        top, left, bottom, right = attributes["pads"]
        height, width = (
            dim.dim_value for dim in copy.graph.input[0].type.tensor_type.shape.dim[1:3]
        )
        shift = np.broadcast_to(-mean / std, (1, 3, height, width)).copy()
        padded = np.pad(shift, ((0, 0), (0, 0), (top, bottom), (left, right)))
        added = torch.conv2d(
            torch.from_numpy(padded),
            torch.from_numpy(weight),
            torch.from_numpy(bias),
            attributes["strides"],
        )
        folded = weight / (white * std)
        if copy.graph.input[0].type.tensor_type.shape.dim[3].dim_value == 1:
            folded = folded.sum(axis=1, keepdims=True)
        for name, array in ((f"folded{number}", folded), (f"map{number}", added.numpy())):
            copy.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        output = layer.output[0]
        layer.output[0] = f"before_map{number}"
        layer.input[:] = [divided.input[0], f"folded{number}"]
        place = list(copy.graph.node).index(layer) + 1
        summed = onnx.helper.make_node("Add", [layer.output[0], f"map{number}"], [output])
        copy.graph.node.insert(place, summed)
    drop_unread(copy.graph)
    return copy


def _without(model: onnx.ModelProto) -> onnx.ModelProto:
    """The camera's values, a gray camera's three times, go into the convolutions."""
    copy, (divided, _, scaled) = _normalisation(model)
    place = list(copy.graph.node).index(scaled)
    channels = copy.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    given = (3 // channels) * [divided.input[0]]
    copy.graph.node.insert(place, onnx.helper.make_node("Concat", given, ["three"], axis=1))
    for layer in _readers(copy):
        layer.input[0] = "three"
    drop_unread(copy.graph)
    return copy


def _normalisation(
    model: onnx.ModelProto,
) -> tuple[onnx.ModelProto, tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]]:
    """A copy, and its division by 255, subtraction of the mean, and division by the deviation."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    producers = {node.output[0]: node for node in copy.graph.node}
    scaled = producers[PREPROCESSED]
    subtracted = producers[scaled.input[0]]
    divided = producers[subtracted.input[0]]
    kinds = [node.op_type for node in (divided, subtracted, scaled)]
    if kinds != ["Div", "Sub", "Div"]:
        raise ValueError(f"the normalisation is not what it was: {kinds}")
    return copy, (divided, subtracted, scaled)


def _readers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The convolutions that read the preprocessed image."""
    found = [node for node in model.graph.node if PREPROCESSED in node.input]
    if any(node.op_type != "Conv" for node in found):
        raise ValueError("something else than convolutions reads the preprocessed image")
    return found


def _to_first_layer(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    first = next(node for node in copy.graph.node if node.op_type == "Conv")
    behind = next(node for node in copy.graph.node if first.output[0] in node.input)
    end = behind if behind.op_type == "Add" else first
    del copy.graph.output[:]
    copy.graph.output.append(
        onnx.helper.make_tensor_value_info(end.output[0], onnx.TensorProto.FLOAT, None)
    )
    drop_unread(copy.graph)
    return copy


def measure(
    models: dict[str, onnx.ModelProto], images: list[np.ndarray], seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of every graph in every backend, round by round."""
    found = {}
    for backend, module in BACKENDS.items():
        calls: dict[str, Callable[[np.ndarray], Any]] = {}
        with TemporaryDirectory() as work:
            for name, model in models.items():
                folder = Path(work) / name
                folder.mkdir()
                onnx.save(model, folder / "graph.onnx")
                target = Target(backend.replace(" ", "").lower(), "fp32")
                module.compile_graph(folder / "graph.onnx", folder, target)
                calls[name] = _caller(module, folder, backend)
        samples: dict[str, list[float]] = {name: [] for name in calls}
        until = time.monotonic() + seconds / len(BACKENDS)
        while time.monotonic() < until:
            image = images[len(samples[AS_TRACED]) % len(images)][None]
            for name in random.sample(list(calls), len(calls)):
                calls[name](image)
                started = time.perf_counter()
                calls[name](image)
                samples[name].append((time.perf_counter() - started) * 1e3)
        found[backend] = samples
    return found


def _caller(module: Any, folder: Path, backend: str) -> Callable[[np.ndarray], Any]:
    """Runs a compiled graph, whatever its outputs."""
    threads = available_threads()
    if backend == "OpenVINO":
        import openvino

        wanted = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(
            folder / "model.xml", "CPU", {**wanted, "INFERENCE_NUM_THREADS": threads}
        )
        request = compiled.create_infer_request()
        return lambda image: request.infer({INPUT_NAME: image}, share_inputs=True)
    runner = module.open_runner(folder, Target("onnxruntime", "fp32"), threads)
    return runner.infer


if __name__ == "__main__":
    main()
