"""Parts of vadexport's INT8, one by one, and NNCF on the same layers, on solar cells.

PatchCore with EfficientNet-Lite0 on intact monocrystalline cells of elpv-dataset (100 to fit, 64 to
calibrate), judged on 150 other intact and 150 defective ones, run by OpenVINO in float32 but for
what is quantised. All variants quantise the same layers, symmetric, score head in float32. Wants
the extras demo and dev, which bring NNCF.

    python benchmarks/int8_ranges.py [--rows 1444,4000]
"""

import argparse
import platform
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from cells import DEFECTIVE, INTACT, shuffled_cells

from vadexport.backends.base import available_threads
from vadexport.backends.openvino import compile_graph, open_runner
from vadexport.backends.openvino.saturation import adds_exactly
from vadexport.calibration import plan_int8
from vadexport.calibration.qdq import Form, quantised
from vadexport.calibration.quantisation import Choices
from vadexport.contract import RAW_SCORE, ImageInput
from vadexport.detectors.patchcore import PatchCoreConfig, fit
from vadexport.images import ImageFile, decode
from vadexport.machine import processor_name, tool_versions
from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.targets import Target
from vadexport.telemetry import forbid_telemetry
from vadexport.tracing.graph import TracedGraph, simplify, trace
from vadexport.verification.statistics import auroc, interquartile_range, spearman

INPUT = ImageInput(300, 300, 1)
PATCHES_AN_IMAGE = 38 * 38
FITTED, CALIBRATED, JUDGED = 100, 64, 150

Quantiser = Callable[[Path, Path, TracedGraph, list[ImageFile]], None]


def main() -> None:
    """Print a table for each size of the memory bank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1444,4000", help="sizes of the memory bank")
    sizes = [int(size) for size in parser.parse_args().rows.split(",")]
    forbid_telemetry()
    intact, defective = (cells(probability) for probability in (INTACT, DEFECTIVE))
    calibration = intact[FITTED : FITTED + CALIBRATED]
    normal = intact[FITTED + CALIBRATED :][:JUDGED]
    judged = [decode(file.path, 1) for file in normal + defective[:JUDGED]]
    anomalous = np.array([False] * JUDGED + [True] * JUDGED)
    print(f"{processor_name()}, {available_threads()} threads, {platform.system()}")
    print(", ".join(f"{name} {version}" for name, version in tool_versions().items()))
    for rows in sizes:
        config = PatchCoreConfig(coreset_ratio=rows / (FITTED * PATCHES_AN_IMAGE))
        detector = fit([decode(f.path, 1) for f in intact[:FITTED]], config, INPUT).eval()
        with torch.inference_mode():
            reference = np.array(
                [float(detector(torch.from_numpy(image)[None])[RAW_SCORE]) for image in judged]
            )
        unit = interquartile_range(detector.normal_scores.double().numpy())
        print(f"\nmemory bank of {len(detector.memory_bank)} rows; drift unit {unit:.3f}")
        print("variant                            AUROC  Spearman  drift  drift/s.d.   max  flips")
        show("reference, PyTorch", reference, reference, unit, detector.thresholds.image, anomalous)
        simplified = simplify(trace(detector, INPUT))
        model, _ = apply_passes(simplified.model, DEFAULT_PASSES)
        graph = TracedGraph(model, simplified.seams)
        for name, quantiser in VARIANTS.items():
            scores = run(graph, quantiser, calibration, judged)
            show(name, scores, reference, unit, detector.thresholds.image, anomalous)


def cells(probability: float) -> list[ImageFile]:
    """Monocrystalline cells of a defect probability, in a random order that stays."""
    paths = shuffled_cells("mono", probability, np.random.default_rng(0))
    return [ImageFile(path, path.name, None) for path in paths]


def ours(choices: Choices, form: Form = Form(signed=False)) -> Quantiser:  # noqa: B008 - frozen
    """What `vadexport build` does, or parts of it."""

    def quantiser(
        model: Path, destination: Path, graph: TracedGraph, images: list[ImageFile]
    ) -> None:
        equalised, network = model.with_stem("equalised"), graph.network_nodes()
        plan = plan_int8(
            *(model, equalised, network, images, INPUT),
            replace(choices, reduce_range=not adds_exactly()),
            lambda _done, _all: None,
        )
        onnx.save(quantised(onnx.load(equalised), plan, network, form), destination)

    return quantiser


def with_nncf(*, default_ranges: bool, bias_correction: bool) -> Quantiser:
    """NNCF on the same layers, with its own ranges or the images' full ones."""

    def quantiser(
        model: Path, destination: Path, graph: TracedGraph, images: list[ImageFile]
    ) -> None:
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        options = {"disable_bias_correction": not bias_correction}
        if not default_ranges:
            options["activations_range_estimator_params"] = RangeEstimatorParametersSet.MINMAX
        loaded, network = onnx.load(model), graph.network_nodes()
        found = nncf.quantize(
            loaded,
            nncf.Dataset(images, lambda file: {"image": decode(file.path, 1)[None]}),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(
                names=[node.name for node in loaded.graph.node if node.name not in network]
            ),
            advanced_parameters=AdvancedQuantizationParameters(**options),
        )
        onnx.save(found, destination)

    return quantiser


VARIANTS: dict[str, Quantiser | None] = {
    "float32, OpenVINO": None,
    "vadexport": ours(Choices()),
    "vadexport, all int8": ours(Choices(), Form()),
    "without equalised channels": ours(Choices(equalising=False)),
    "weights to the nearest": ours(Choices(rounding=False)),
    "ranges without planted defects": ours(Choices(planted=False)),
    "min-max of normal images alone": ours(
        Choices(equalising=False, rounding=False, planted=False)
    ),
    "NNCF, min-max, no correction": with_nncf(default_ranges=False, bias_correction=False),
    "NNCF, min-max, bias correction": with_nncf(default_ranges=False, bias_correction=True),
    "NNCF, its ranges, no correction": with_nncf(default_ranges=True, bias_correction=False),
    "NNCF, its defaults": with_nncf(default_ranges=True, bias_correction=True),
}


def run(
    graph: TracedGraph,
    quantiser: Quantiser | None,
    calibration: list[ImageFile],
    judged: list[np.ndarray],
) -> np.ndarray:
    """Raw scores of one variant."""
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model.onnx"
        onnx.save(graph.model, model)
        if quantiser is not None:
            quantiser(model, model.with_stem("int8"), graph, calibration)
            model = model.with_stem("int8")
        target = Target("openvino", "int8")
        compile_graph(model, Path(name), target)
        runner = open_runner(Path(name), target, available_threads())
        return np.array([float(runner.infer(image[None])[RAW_SCORE][0]) for image in judged])


def show(
    name: str,
    scores: np.ndarray,
    reference: np.ndarray,
    unit: float,
    threshold: float,
    anomalous: np.ndarray,
) -> None:
    """One row of the table."""
    drift = np.abs(scores - reference)
    flips = int(((scores > threshold) != (reference > threshold)).sum())
    print(
        f"{name:<34} {auroc(scores, anomalous):.4f}   {spearman(scores, reference):.5f}"
        f"  {drift.mean() / unit:.3f}       {drift.mean() / reference.std():.3f}"
        f"  {drift.max() / unit:.2f}  {flips}/{len(scores)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
