"""One Q/DQ graph, run by ONNX Runtime and by OpenVINO: how far their scores are apart."""

import tempfile
from pathlib import Path

import numpy as np
import onnx

from vadexport.backends import onnxruntime, openvino
from vadexport.backends.base import available_threads
from vadexport.backends.openvino.saturation import adds_exactly
from vadexport.calibration import plan_int8
from vadexport.calibration.qdq import Form
from vadexport.calibration.quantisation import Choices
from vadexport.calibration.repair import Corrector
from vadexport.contract import RAW_SCORE
from vadexport.images import decode, test_images, training_images
from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.sources import SourceSpec, open_source
from vadexport.targets import Target
from vadexport.telemetry import forbid_telemetry
from vadexport.tracing.graph import simplify, trace
from vadexport.verification.statistics import interquartile_range


def agreement(checkpoint: Path, images: Path) -> dict[str, float]:
    """Mean and largest difference of raw scores on the test images, in drift units.

    Args:
        checkpoint: of a detector of `vadexport fit`.
        images: category folder; the graph's ranges are set by its calibration images.
    """
    forbid_telemetry()
    detector = open_source(SourceSpec(str(checkpoint))).detector
    unit = interquartile_range(detector.normal_scores.double().numpy())
    graph = simplify(trace(detector, detector.image_input))
    model, _ = apply_passes(graph.model, DEFAULT_PASSES)
    network = graph.network_nodes()
    files = training_images(str(images / "calibration"))
    pixels = [
        decode(file.path, detector.image_input.channels)
        for file in test_images(str(images / "test"))
    ]
    with tempfile.TemporaryDirectory() as temporary:
        base, equalised = (Path(temporary) / f"{word}.onnx" for word in ("base", "equalised"))
        onnx.save(model, base)
        choices = Choices(reduce_range=not adds_exactly())
        inputs = (network, files, detector.image_input)
        plan = plan_int8(base, equalised, *inputs, choices, lambda _d, _a: None)
        calls = [decode(f.path, detector.image_input.channels)[None] for f in files[::5]]
        made = Corrector(onnx.load(equalised), plan, network, calls).form(Form(signed=False))
        found = []
        for backend in (onnxruntime, openvino):
            target = Target(backend.PACKAGE, "int8")
            into = Path(temporary) / backend.PACKAGE
            into.mkdir()
            onnx.save(made, into / "graph.onnx")
            backend.compile_graph(into / "graph.onnx", into, target)
            runner = backend.open_runner(into, target, available_threads())
            found.append([float(runner.infer(image[None])[RAW_SCORE][0]) for image in pixels])
    apart = np.abs(np.subtract(*found)) / unit
    return {"mean": float(apart.mean()), "max": float(apart.max())}
