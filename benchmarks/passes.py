"""What each graph pass brings: whole detectors, batch 1, in ONNX Runtime and OpenVINO, float32.

The passes are applied one after the other, and each step's graph is timed beside the others: one
call of each a round, in random order, each after an untimed call of the same. The INT8 search
stands alone: the network stays in float32, so its row shows what the search brings. Solar cells are
those of elpv-dataset; anomalib's models have random weights, PatchCore's banks of 10,240 and 16,384
rows are noise around its patches: neither changes what there is to compute.

    python benchmarks/passes.py prepare [--detectors NAME,…]    graphs into benchmark-output/passes
    python benchmarks/passes.py measure [--detectors NAME,…] [--document docs/passes.md]
"""

import argparse
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from cells import INTACT, shuffled_cells
from documents import replace_table
from noise import rgb_noise
from openvino_steps import openvino_steps

from vadexport.backends import onnxruntime as ort_backend
from vadexport.backends import openvino as openvino_backend
from vadexport.backends.base import available_threads
from vadexport.contract import INPUT_NAME, RAW_SCORE, ImageInput
from vadexport.detectors import padim, patchcore
from vadexport.detectors.checkpoint import load_detector
from vadexport.detectors.exportable import Exportable
from vadexport.images import decode
from vadexport.machine import processor_name, tool_versions
from vadexport.passes import BEFORE_INT8, DEFAULT_PASSES, apply_passes
from vadexport.passes.quantised_search import QuantisedSearch, search_inputs
from vadexport.passes.search_plan import plan_search
from vadexport.sources import open_source
from vadexport.targets import Target
from vadexport.telemetry import forbid_telemetry
from vadexport.tracing.graph import simplify, trace
from vadexport.verification.statistics import interquartile_range

OUTPUT = Path("benchmark-output/passes")
BACKENDS = {"openvino": openvino_backend, "onnxruntime": ort_backend}
INT8 = "quantised-search"
#: Of the interquartile range of raw scores, what the INT8 search may move a distance.
SHARE = 0.01
CELLS = ImageInput(300, 300, 1)
FITTED, OBSERVED, COMPARED = 100, 16, 8


def main() -> None:
    """Prepare graphs, or measure those that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("prepare", "measure"))
    parser.add_argument("--detectors", default=",".join(DETECTORS), help="separated by commas")
    parser.add_argument("--seconds", type=float, default=12, help="of measuring, for each detector")
    parser.add_argument("--document", type=Path, help="whose table is replaced")
    options = parser.parse_args()
    forbid_telemetry()
    for name in options.detectors.split(","):
        if options.step == "prepare":
            prepare(name, OUTPUT / name)
        else:
            found = measure(OUTPUT / name, options.seconds)
            (OUTPUT / name / "measured.json").write_text(json.dumps(found, indent=2) + "\n")
            print(name, json.dumps(found), flush=True)
    if options.step == "measure":
        table = as_table()
        print(table)
        if options.document is not None:
            replace_table(options.document, table)


# ------------------------------------------------------------------------------ detectors
Made = tuple[Exportable, list[np.ndarray]]


def cells() -> list[np.ndarray]:
    """Intact cells: those to fit on, then those to observe."""
    paths = shuffled_cells("mono", INTACT, np.random.default_rng(0))
    return [decode(path, 1) for path in paths[: FITTED + OBSERVED]]


def own_patchcore(neighbours: int) -> Callable[[], Made]:
    """PatchCore on cells, as `vadexport fit patchcore` makes it."""

    def make() -> Made:
        images = cells()
        config = patchcore.PatchCoreConfig(neighbours=neighbours)
        return patchcore.fit(images[:FITTED], config, CELLS).eval(), images[FITTED:]

    return make


def own_padim() -> Made:
    """PaDiM on cells, as `vadexport fit padim` makes it."""
    images = cells()
    return padim.fit(images[:FITTED], padim.PaDiMConfig(), CELLS).eval(), images[FITTED:]


def large_patchcore() -> Made:
    """wide_resnet50_2 and 16,384 rows of 1,536 values."""
    import tensorrt_bank

    path = OUTPUT / "large.safetensors"
    return load_detector(tensorrt_bank.large_patchcore(path)).eval(), noise()


def anomalib_model(name: str, **changes: Any) -> Callable[[], Made]:
    """A checkpoint of anomalib's, resnet18 at 256 pixels, read by vadexport."""

    def make() -> Made:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import anomalib_zoo as zoo

            zoo.CASES[name].kwargs.update(changes)  # type: ignore[attr-defined] # a dict
            module = zoo.build(name)
            if name == "Patchcore":
                bank = module.model.memory_bank
                torch.manual_seed(0)
                copies = bank.repeat(10_240 // len(bank) + 1, 1)[:10_240]
                module.model.memory_bank = copies + bank.std(0) * torch.randn_like(copies)
            path = zoo.write(module, OUTPUT / f"{name}.ckpt")
        return open_source(path).detector, noise()

    return make


def noise() -> list[np.ndarray]:
    """Images of noise at 256 pixels."""
    return rgb_noise(OBSERVED, 256, 256, seed=2)


DETECTORS: dict[str, Callable[[], Made]] = {
    "patchcore": own_patchcore(0),
    "patchcore-reweighted": own_patchcore(9),
    "padim": own_padim,
    "anomalib-patchcore": anomalib_model("Patchcore"),
    "anomalib-padim": anomalib_model("Padim", n_features=100),
    "patchcore-large": large_patchcore,
}


# ------------------------------------------------------------------------------ graphs
def prepare(name: str, folder: Path) -> None:
    """Write the graph of each step, and images to run them on."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    detector, images = DETECTORS[name]()
    model = simplify(trace(detector, detector.image_input)).model
    steps = {"simplified": save(model, folder, "simplified")}
    rewritten = model
    for each in DEFAULT_PASSES:
        rewritten, places = apply_passes(rewritten, (each,))
        if places[each.name]:
            steps[each.name] = save(rewritten, folder, each.name)
    plan = None
    before, _ = apply_passes(model, BEFORE_INT8)
    searches = search_inputs(before)
    if searches:
        ((search, found),) = searches.items()
        queries, scores = observe(before, found.queries, images)
        unit = interquartile_range(scores)
        plan = plan_search(found.bank, queries, SHARE * unit, openvino_steps())
        if plan is not None:
            int8, _ = apply_passes(before, (QuantisedSearch({search: plan}),))
            steps[INT8] = save(int8, folder, INT8)
    np.save(folder / "images.npy", np.stack(images))
    facts: dict[str, Any] = {"steps": steps, "plan": None}
    if plan is not None:
        count = None if plan.directions is None else plan.directions.shape[1]
        facts["plan"] = {**asdict(plan), "directions": count, "drift": plan.error / unit}
    (folder / "prepared.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(name, json.dumps(facts), flush=True)


def save(model: onnx.ModelProto, folder: Path, step: str) -> int:
    """Write a step's graph; the number of its nodes."""
    (folder / step).mkdir(exist_ok=True)
    onnx.save(model, folder / step / "graph.onnx")
    return len(model.graph.node)


def observe(
    model: onnx.ModelProto, tensor: str, images: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Values of an inner tensor [..., D] as rows [n, D], and raw scores, of images."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = [session.run([tensor, RAW_SCORE], {INPUT_NAME: image[None]}) for image in images]
    rows = np.concatenate([value.reshape(-1, value.shape[-1]) for value, _ in found])
    return rows, np.concatenate([score for _, score in found])


# ------------------------------------------------------------------------------ timing
def measure(folder: Path, seconds: float) -> dict[str, Any]:
    """Median milliseconds of every step on every backend, and how far raw scores moved."""
    facts = json.loads((folder / "prepared.json").read_text())
    images = np.load(folder / "images.npy")[:COMPARED]
    calls: dict[str, Callable[[np.ndarray], Any]] = {}
    for backend, module in BACKENDS.items():
        for step in facts["steps"]:
            target = Target(backend, "int8" if step == INT8 else "fp32")
            place = folder / step / backend
            place.mkdir(exist_ok=True)
            module.compile_graph(folder / step / "graph.onnx", place, target)
            runner = module.open_runner(place, target, available_threads())
            calls[f"{backend} {step}"] = runner.infer
    moved = {name: scores(call, images) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        names = list(calls)
        random.shuffle(names)
        image = images[len(samples[names[0]]) % len(images)][None]
        for name in names:
            calls[name](image)
            started = time.perf_counter()
            calls[name](image)
            samples[name].append((time.perf_counter() - started) * 1e3)
    unit = interquartile_range(moved["onnxruntime simplified"])
    reference = moved["onnxruntime simplified"]
    return {
        "rounds": len(samples["openvino simplified"]),
        "ms": {name: statistics.median(each) for name, each in samples.items()},
        "drift": {name: float(np.abs(s - reference).max() / unit) for name, s in moved.items()},
    }


def scores(call: Callable[[np.ndarray], Any], images: np.ndarray) -> np.ndarray:
    """Raw scores of images."""
    return np.array([float(call(image[None])[RAW_SCORE][0]) for image in images])


def as_table() -> str:
    """Markdown: a row for each step of each detector that was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
    lines = [
        f"{processor_name()}, {available_threads()} threads; {versions}",
        "",
        "| detector | after the pass | OpenVINO, ms | ONNX Runtime, ms | drift, largest |",
        "|---|---|---|---|---|",
    ]
    for name in DETECTORS:
        path = OUTPUT / name / "measured.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        steps = [key.split()[1] for key in found["ms"] if key.startswith("openvino")]
        for step in steps:
            times = [found["ms"][f"{backend} {step}"] for backend in BACKENDS]
            drift = max(found["drift"][f"{backend} {step}"] for backend in BACKENDS)
            shown = " | ".join(f"{each:.1f}" for each in times)
            lines.append(f"| {name} | {step} | {shown} | {drift:.1e} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
