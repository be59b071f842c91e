"""Parts of vadexport's INT8, one by one, and NNCF on the same layers, on solar cells.

PatchCore with EfficientNet-Lite0 on intact monocrystalline cells of elpv-dataset (100 to fit, 64 to
calibrate), judged on 150 other intact and 150 defective ones, run by OpenVINO in float32 but for
what is quantised. All variants quantise the same layers, symmetric, score head in float32. Wants
the extras demo and dev, which bring NNCF.

    python benchmarks/int8_ranges.py [--rows 1444] [--document docs/int8.md]
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import torch
from cells import DEFECTIVE, INTACT, shuffled_cells
from documents import replace_table

from vadexport.backends.base import available_threads
from vadexport.backends.openvino import compile_graph, open_runner
from vadexport.backends.openvino.saturation import adds_exactly
from vadexport.calibration import plan_int8
from vadexport.calibration.observing import run_graph
from vadexport.calibration.qdq import Form, quantised
from vadexport.calibration.quantisation import Choices
from vadexport.calibration.synthetic_defects import with_defect
from vadexport.contract import INPUT_NAME, RAW_SCORE, ImageInput
from vadexport.detectors.patchcore import PatchCore, PatchCoreConfig, fit, nearest_neighbour
from vadexport.images import ImageFile, decode
from vadexport.machine import processor_name, tool_versions
from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.passes.cutting import cut
from vadexport.targets import Target
from vadexport.telemetry import forbid_telemetry
from vadexport.tracing.graph import TracedGraph, simplify, trace
from vadexport.verification.statistics import auroc, interquartile_range, spearman

INPUT = ImageInput(300, 300, 1)
PATCHES_AN_IMAGE = 38 * 38
FITTED, CALIBRATED, JUDGED = 100, 64, 150

TARGET = Target("openvino", "int8")
BINS = 2048

Quantiser = Callable[[Path, Path, TracedGraph, list[ImageFile]], None]


def main() -> None:
    """Print a table, and put it into a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1444, help="of the memory bank")
    parser.add_argument("--document", type=Path, help="whose table `parts` it becomes")
    options = parser.parse_args()
    forbid_telemetry()
    bench = Bench.of(options.rows)
    lines = [HEAD, RULE, bench.line("reference, PyTorch", bench.reference)]
    for name, quantiser in VARIANTS.items():
        lines.append(bench.line(name, run(bench, quantiser)))
    again = run(embedded_anew(bench), ours(Choices()))
    lines.append(bench.line("memory bank embedded anew by the INT8 network", again))
    if options.document:
        replace_table(options.document, "\n".join([bench.words(), "", *lines]) + "\n", "parts")


HEAD = "| | AUROC | Spearman | drift, mean | largest | flips |"
RULE = "|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Bench:
    """A detector, its graph, and what it is calibrated with and judged on.

    Attributes:
        detector: in PyTorch.
        fitted: intact cells that it was fitted on.
        graph: behind the passes of a build.
        calibration: intact cells that set ranges.
        judged: cells, intact ones first, as arrays.
        reference: raw scores of the judged by PyTorch.
        unit: of drift.
        threshold: of decisions.
        rows: of the memory bank.
    """

    detector: PatchCore
    fitted: list[ImageFile]
    graph: TracedGraph
    calibration: list[ImageFile]
    judged: list[np.ndarray]
    reference: np.ndarray
    unit: float
    threshold: float
    rows: int

    @classmethod
    def of(cls, rows: int) -> "Bench":
        """Fit a detector with a memory bank of so many rows."""
        intact, defective = (cells(probability) for probability in (INTACT, DEFECTIVE))
        normal = intact[FITTED + CALIBRATED :][:JUDGED]
        judged = [decode(file.path, 1) for file in normal + defective[:JUDGED]]
        config = PatchCoreConfig(coreset_ratio=rows / (FITTED * PATCHES_AN_IMAGE))
        detector = fit([decode(f.path, 1) for f in intact[:FITTED]], config, INPUT).eval()
        with torch.inference_mode():
            reference = np.array(
                [float(detector(torch.from_numpy(image)[None])[RAW_SCORE]) for image in judged]
            )
        found = cls(
            detector,
            intact[:FITTED],
            graph_of(detector),
            intact[FITTED : FITTED + CALIBRATED],
            judged,
            reference,
            interquartile_range(detector.normal_scores.double().numpy()),
            detector.thresholds.image,
            len(detector.memory_bank),
        )
        print(found.words(), f"\n{HEAD}\n{RULE}", sep="\n", flush=True)
        return found

    def save(self, path: Path) -> None:
        """Write the float graph."""
        onnx.save(self.graph.model, path)

    def words(self) -> str:
        """What was measured on what, for above the table."""
        tools = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
        exact = "with" if adds_exactly() else "without"
        return (
            f"{processor_name()} {exact} VNNI, {available_threads()} threads; {tools}; memory bank "
            f"of {self.rows} rows"
        )

    def line(self, name: str, scores: np.ndarray) -> str:
        """One row of the table, printed as well."""
        drift = np.abs(scores - self.reference) / self.unit
        anomalous = np.arange(len(scores)) >= JUDGED
        flips = int(((scores > self.threshold) != (self.reference > self.threshold)).sum())
        made = (
            f"| {name} | {auroc(scores, anomalous):.4f} | {spearman(scores, self.reference):.5f} "
            f"| {drift.mean():.3f} | {drift.max():.2f} | {flips}/{len(scores)} |"
        )
        print(made, flush=True)
        return made


def graph_of(detector: PatchCore) -> TracedGraph:
    """The graph that a build quantises."""
    simplified = simplify(trace(detector, INPUT))
    model, _ = apply_passes(simplified.model, DEFAULT_PASSES)
    return TracedGraph(model, simplified.seams)


def embedded_anew(bench: Bench) -> Bench:
    """Rows of the memory bank as the INT8 network embeds the patches that they are of."""
    patches = {}
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model.onnx"
        bench.save(model)
        ours(Choices())(model, model.with_stem("int8"), bench.graph, bench.calibration)
        calls = [decode(file.path, 1)[None] for file in bench.fitted]
        seams = bench.graph.seams[1:]
        for stem in ("model", "int8"):
            graph = cut(onnx.load(model.with_stem(stem)), seams)
            patches[stem] = torch.cat(
                [
                    bench.detector.embed([torch.from_numpy(each) for each in features])
                    for features in run_graph(graph, calls, seams)
                ]
            )
            patches[stem] = patches[stem].permute(0, 2, 3, 1).flatten(0, 2)
    bank = bench.detector.memory_bank
    _, rows = nearest_neighbour(bank[None], patches["model"])
    # Its distances, by way of products, lose to cancellation what these do not.
    off = (patches["model"][rows[0]] - bank).norm(dim=1).max()
    assert off < 0.01 * bench.unit, f"rows of the bank are patches of these images, but for {off}"
    made = copy.deepcopy(bench.detector)
    made.memory_bank = patches["int8"][rows[0]].contiguous()
    return replace(bench, detector=made, graph=graph_of(made))


def cells(probability: float) -> list[ImageFile]:
    """Monocrystalline cells of a defect probability, in a random order that stays."""
    paths = shuffled_cells("mono", probability, np.random.default_rng(0))
    return [ImageFile(path, path.name, None) for path in paths]


def ours(
    choices: Choices,
    form: Form = Form(signed=False),  # noqa: B008 - frozen
    *,
    here: bool = True,
) -> Quantiser:
    """What `vadexport build` does, or parts of it; with weights for this processor, if `here`."""

    def quantiser(
        model: Path, destination: Path, graph: TracedGraph, images: list[ImageFile]
    ) -> None:
        equalised, network = model.with_stem("equalised"), graph.network_nodes()
        plan = plan_int8(
            *(model, equalised, network, images, INPUT),
            replace(choices, reduce_range=not adds_exactly()) if here else choices,
            lambda _done, _all: None,
        )
        onnx.save(quantised(onnx.load(equalised), plan, network, form), destination)

    return quantiser


def with_other_ranges(reach_of: Callable[[np.ndarray, float, int], float]) -> Quantiser:
    """vadexport's, but for ranges of activations, which are found from histograms."""

    def quantiser(
        model: Path, destination: Path, graph: TracedGraph, images: list[ImageFile]
    ) -> None:
        equalised, network = model.with_stem("equalised"), graph.network_nodes()
        choices = Choices(reduce_range=not adds_exactly())
        plan = plan_int8(model, equalised, network, images, INPUT, choices, lambda *_: None)
        found = onnx.load(equalised)
        names = [name for name in plan.reach if name != INPUT_NAME]
        counts = {name: np.zeros(BINS) for name in names}
        calls = [
            with_defect(image, number)[None] if planted else image[None]
            for planted in (False, True)
            for number, image in enumerate(decode(file.path, 1) for file in images)
        ]
        for values in run_graph(cut(found, names), calls, names):
            for name, value in zip(names, values, strict=True):
                magnitudes = np.abs(value).ravel()
                counts[name] += np.histogram(magnitudes, BINS, (0, plan.reach[name]))[0]
        steps = {name: 255 if name in plan.never_negative else 127 for name in names}
        reach = {name: reach_of(counts[name], plan.reach[name], steps[name]) for name in names}
        plan = replace(plan, reach={**plan.reach, **reach})
        onnx.save(quantised(found, plan, network, Form(signed=False)), destination)

    return quantiser


def percentile(share: float) -> Callable[[np.ndarray, float, int], float]:
    """A range that so many of all values do not exceed, as TensorRT's and ONNX Runtime's tools."""

    def reach_of(counts: np.ndarray, largest: float, _steps: int) -> float:
        within = np.searchsorted(counts.cumsum(), share * counts.sum())
        return largest * min(within + 1, BINS) / BINS

    return reach_of


def least_squares(counts: np.ndarray, largest: float, steps: int) -> float:
    """The range whose rounding and clipping err least in the mean square (MSE)."""
    values = largest * (np.arange(BINS) + 0.5) / BINS
    ends = largest * np.arange(20, 101) / 100

    def error(end: float) -> float:
        step = end / steps
        inside = values <= end
        errors = np.where(inside, step * step / 12, np.square(values - end))
        return float((counts * errors).sum())

    return float(min(ends, key=error))


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
    "ranges with headroom of 1.25": ours(Choices(headroom=1.25)),
    "ranges of the 99.99th percentile": with_other_ranges(percentile(0.9999)),
    "ranges of the 99.9th percentile": with_other_ranges(percentile(0.999)),
    "ranges of the least squared error": with_other_ranges(least_squares),
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


def run(bench: Bench, quantiser: Quantiser | None) -> np.ndarray:
    """Raw scores of one variant."""
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model.onnx"
        bench.save(model)
        if quantiser is not None:
            quantiser(model, model.with_stem("int8"), bench.graph, bench.calibration)
            model = model.with_stem("int8")
        compile_graph(model, Path(name), TARGET)
        return scores_of(Path(name), bench.judged)


def scores_of(folder: Path, judged: list[np.ndarray]) -> np.ndarray:
    """Raw scores by OpenVINO of what lies in a folder, whatever its products come to."""
    with mock.patch("vadexport.backends.openvino.saturation.adds_exactly", return_value=True):
        runner = open_runner(folder, TARGET, available_threads())
    return np.array([float(runner.infer(image[None])[RAW_SCORE][0]) for image in judged])


if __name__ == "__main__":
    main()
