"""What `build --approximate` brings: milliseconds in OpenVINO float32, and how scores move.

Detectors on solar cells of elpv-dataset, fitted on intact ones. For each limit of drift the
approximations are chosen as `build` does; scores are those of cells that neither fitting nor
choosing has seen, half of them defective. All graphs of a detector are timed in the same rounds, in
random order, each after an untimed call of the same.

    python benchmarks/approximations.py prepare [--detectors NAME,…]
    python benchmarks/approximations.py measure [--detectors NAME,…] [--document docs/passes.md]
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cells import copy_cells
from documents import replace_table
from passes import scores

from vadexport.backends import openvino
from vadexport.backends.base import available_threads
from vadexport.building.approximating import Approximating, Rewrites
from vadexport.calibration.approximation import choose_approximations
from vadexport.contract import ImageInput
from vadexport.detectors import padim, patchcore
from vadexport.images import decode, training_images
from vadexport.machine import processor_name, tool_versions
from vadexport.passes import BEFORE_APPROXIMATIONS, apply_passes
from vadexport.targets import Target
from vadexport.telemetry import forbid_telemetry
from vadexport.tracing.graph import simplify, trace
from vadexport.verification.statistics import interquartile_range, spearman

OUTPUT = Path("benchmark-output/approximations")
CELLS = ImageInput(300, 300, 1)
PARTS = {"fit/good": 100, "choose/good": 16, "compare/good": 30, "compare/defective": 30}
TARGET = Target("openvino", "fp32")
#: In drift units; None is the limit of float32.
LIMITS = (None, 0.1, 0.5)
EXACT = "exact"


def fitted_padim(images: int) -> Callable[[list[np.ndarray]], padim.PaDiM]:
    """PaDiM of some images."""
    return lambda cells: padim.fit(cells[:images], padim.PaDiMConfig(), CELLS).eval()


def fitted_patchcore(neighbours: int) -> Callable[[list[np.ndarray]], patchcore.PatchCore]:
    """PatchCore as `vadexport fit patchcore` makes it, on EfficientNet-Lite0."""
    config = patchcore.PatchCoreConfig(neighbours=neighbours)
    return lambda cells: patchcore.fit(cells, config, CELLS).eval()


DETECTORS: dict[str, Callable[[list[np.ndarray]], Any]] = {
    "patchcore": fitted_patchcore(0),
    "patchcore-reweighted": fitted_patchcore(9),
    "padim, 30 images": fitted_padim(30),
    "padim, 100 images": fitted_padim(100),
}


def main() -> None:
    """Prepare graphs, or measure those that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("prepare", "measure"))
    parser.add_argument("--detectors", default=";".join(DETECTORS), help="separated by semicolons")
    parser.add_argument("--seconds", type=float, default=12, help="of measuring, for each detector")
    parser.add_argument("--document", type=Path, help="whose table is replaced")
    options = parser.parse_args()
    forbid_telemetry()
    if not (OUTPUT / "cells").exists():
        copy_cells(OUTPUT / "cells", "mono", PARTS)
    for name in options.detectors.split(";"):
        if options.step == "prepare":
            prepare(name, folder_of(name))
        else:
            found = measure(folder_of(name), options.seconds)
            (folder_of(name) / "measured.json").write_text(json.dumps(found, indent=2) + "\n")
            print(name, json.dumps(found), flush=True)
    if options.step == "measure":
        table = as_table()
        print(table)
        if options.document is not None:
            replace_table(options.document, table, "approximations")


def folder_of(name: str) -> Path:
    """Where a detector's graphs are."""
    return OUTPUT / name.replace(", ", "-").replace(" ", "-")


def pixels(part: str) -> list[np.ndarray]:
    """Cells of a part."""
    return [decode(path, 1) for path in sorted((OUTPUT / "cells" / part).iterdir())]


# ------------------------------------------------------------------------------ graphs
def prepare(name: str, folder: Path) -> None:
    """Write the exact graph, and that of each limit."""
    detector = DETECTORS[name](pixels("fit/good"))
    simplified = simplify(trace(detector, detector.image_input)).model
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(apply_passes(simplified, BEFORE_APPROXIMATIONS)[0], folder / "before.onnx")
    unit = interquartile_range(detector.normal_scores.numpy())
    forms = {EXACT: save(Rewrites().applied(simplified), folder, EXACT)}
    files = training_images(str(OUTPUT / "cells" / "choose"))
    for limit in LIMITS:
        limits = Approximating.of((TARGET,), limit)
        choice = choose_approximations(
            folder / "before.onnx",
            (files, np.stack(pixels("choose/good"))),
            CELLS,
            limits.bounds(unit),
            lambda _done, _all: None,
        )
        words = "; ".join(f"{each.rewrite.name}: {each.words}" for each in choice.made)
        form = f"{limits.limits.max_drift:g}"
        forms[form] = words or "nothing"
        save(Rewrites.of(choice).applied(simplified), folder, form)
        print(name, form, words, flush=True)
    (folder / "prepared.json").write_text(json.dumps({"forms": forms, "unit": unit}, indent=2))


def save(model: onnx.ModelProto, folder: Path, form: str) -> str:
    """Compile a form's graph; what it does."""
    (folder / form).mkdir(exist_ok=True)
    onnx.save(model, folder / form / "graph.onnx")
    openvino.compile_graph(folder / form / "graph.onnx", folder / form, TARGET)
    return "–"


# ------------------------------------------------------------------------------ timing
def measure(folder: Path, seconds: float) -> dict[str, Any]:
    """Median milliseconds of every form, and how raw scores moved."""
    facts = json.loads((folder / "prepared.json").read_text())
    images = pixels("compare/good") + pixels("compare/defective")
    calls = {
        form: openvino.open_runner(folder / form, TARGET, available_threads()).infer
        for form in facts["forms"]
    }
    moved = {form: scores(call, images) for form, call in calls.items()}
    samples: dict[str, list[float]] = {form: [] for form in calls}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        forms = list(calls)
        random.shuffle(forms)
        image = images[len(samples[EXACT]) % len(images)][None]
        for form in forms:
            calls[form](image)
            started = time.perf_counter()
            calls[form](image)
            samples[form].append((time.perf_counter() - started) * 1e3)
    exact = moved[EXACT]
    return {
        "rounds": len(samples[EXACT]),
        "ms": {form: statistics.median(each) for form, each in samples.items()},
        "drift": {
            form: float(np.abs(each - exact).max() / facts["unit"]) for form, each in moved.items()
        },
        "spearman": {form: spearman(each, exact) for form, each in moved.items()},
        "words": facts["forms"],
    }


def as_table() -> str:
    """Markdown: a row for each limit of each detector that was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
    lines = [
        f"{processor_name()}, {available_threads()} threads; {versions}",
        "",
        "| detector | limit | what is left | OpenVINO, ms | drift, largest | Spearman |",
        "|---|---|---|---|---|---|",
    ]
    for name in DETECTORS:
        path = folder_of(name) / "measured.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        lines += [
            f"| {name} | {form} | {found['words'][form]} | {ms:.1f} | {found['drift'][form]:.1e} "
            f"| {found['spearman'][form]:.4f} |"
            for form, ms in found["ms"].items()
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
