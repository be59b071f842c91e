"""anomalib's INT8_PTQ beside vadexport's INT8, of the same checkpoints.

PatchCore and PaDiM that anomalib's engine trained on solar cells, with EfficientNet-Lite0
(benchmarks/anomalib_elpv.py). anomalib exports them to OpenVINO, in float32 and as INT8_PTQ, whose
calibration images are its own choice: those it validates with, half of them defective. vadexport
builds `openvino:int8` and `openvino:auto` with 80 intact cells. All run in OpenVINO, in float32
where not INT8, on 150 intact and 150 defective cells that nothing has seen. `pred_score` and
decisions are held against those of `Engine.predict`: the one number that all of them report. It is
normalised and clamped, so that scores at its ends tie.

    python benchmarks/int8_anomalib.py [--only Padim] [--document docs/int8.md]
    python benchmarks/int8_anomalib.py --speed [--only …] [--document docs/int8.md]

The first measures scores, the second times what the first has built, and wants an idle machine.
"""

import argparse
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from anomalib_elpv import MODELS, PARTS, WORK, predicted, train
from cells import copy_cells
from documents import replace_table, table_rows
from int8 import run

from vadexport.backends.base import available_threads
from vadexport.images import decode, test_images
from vadexport.runtime import load
from vadexport.verification.statistics import auroc, median_interval, spearman

OURS = ("openvino:fp32", "openvino:int8", "openvino:auto")
THEIRS = {"FP32": None, "INT8_PTQ": "INT8_PTQ"}
ROUNDS = 100


def main() -> None:
    """Measure what is not yet measured, and put it into the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--speed", action="store_true", help="time what was built")
    parser.add_argument("--document", type=Path, help="whose table takes the rows")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if not WORK.exists():
        copy_cells(WORK, "mono", PARTS)
    for name in options.only.split(","):
        kept = WORK / f"{name}-int8.json"
        found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
        if "scores" not in found:
            found["scores"] = scores(name)
        if options.speed:
            found["speed"] = speeds(name)
        kept.write_text(json.dumps(found, indent=2) + "\n")
        for title, line in lines(name, found).items():
            print(line, flush=True)
            put(options.document, title, line)


def scores(name: str) -> dict[str, dict[str, float]]:
    """Figures of each export."""
    checkpoint = WORK / f"{name}.ckpt"
    if not checkpoint.exists():
        train(name, MODELS[name])
    expected = predicted(name, checkpoint)
    artifacts = WORK / f"{name}-int8"
    built = run(
        *(
            "build",
            checkpoint,
            "-o",
            artifacts,
            "--image-size",
            300,
            *(word for target in OURS for word in ("--target", target)),
        ),
        *("--calibration", WORK / "calibration"),
    )
    for each in built["targets"]:
        if each["error"]:
            print(each["target"], each["error"], flush=True)
    for kind, compression in THEIRS.items():
        export(name, checkpoint, WORK / f"{name}-anomalib" / kind, compression)
    files = test_images(str(WORK / "test"))
    reference = np.array([expected[file.path.name] for file in files])
    anomalous = np.array([bool(file.label) for file in files])
    found = {"Engine.predict": {"auroc": auroc(reference, anomalous)}}
    for title, infer in contestants(name).items():
        values = np.array([infer(decode(file.path, 3)) for file in files])
        found[title] = {
            "auroc": auroc(values, anomalous),
            "spearman": spearman(values, reference),
            "flips": int(((values > 0.5) != (reference > 0.5)).sum()),
            "images": len(files),
            "difference": float(np.abs(values - reference).mean()),
        }
    return found


def export(name: str, checkpoint: Path, folder: Path, compression: str | None) -> None:
    """By anomalib's own means, as its guide has it."""
    import anomalib.models
    from anomalib.data import Folder
    from anomalib.deploy import CompressionType

    if (folder / "weights" / "openvino" / "model.xml").exists():
        return
    module = getattr(anomalib.models, name).load_from_checkpoint(checkpoint)
    words: dict[str, Any] = {}
    if compression:
        data = Folder(
            name="elpv",
            root=WORK.absolute(),
            normal_dir="train/good",
            normal_test_dir="validation/good",
            abnormal_dir="validation/defective",
            test_split_mode="from_dir",
            val_split_mode="same_as_test",
            eval_batch_size=batch_of(folder.with_name("FP32")),
            num_workers=0,
        )
        words = {"compression_type": CompressionType[compression], "datamodule": data}
    module.to_openvino(folder, input_size=(300, 300), **words)


def batch_of(folder: Path) -> int:
    """Images that a call of an export takes; 1 where it takes any number."""
    import openvino

    shape = openvino.Core().read_model(next(folder.rglob("model.xml"))).input(0).partial_shape
    return int(shape[0].get_length()) if shape[0].is_static else 1


def contestants(name: str) -> dict[str, Callable[[np.ndarray], float]]:
    """`pred_score` of an image by each export."""
    found: dict[str, Callable[[np.ndarray], float]] = {}
    for kind in THEIRS:
        found[f"anomalib {kind}"] = opened(WORK / f"{name}-anomalib" / kind)
    for target in OURS:
        folder = WORK / f"{name}-int8" / target.replace(":", "-")
        if folder.exists():
            artifact = load(folder)
            found[f"vadexport {target}"] = lambda image, artifact=artifact: float(
                artifact.predict(image).pred_score
            )
    return found


def opened(folder: Path) -> Callable[[np.ndarray], float]:
    """An export of anomalib, fed as its inferencers do; a fixed batch is filled with copies."""
    import openvino

    batch = batch_of(folder)
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(available_threads())}
    model = openvino.Core().compile_model(next(folder.rglob("model.xml")), "CPU", config)

    def infer(image: np.ndarray) -> float:
        floats = (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)
        return float(model([np.repeat(floats, batch, axis=0)])["pred_score"].reshape(-1)[0])

    return infer


def speeds(name: str) -> dict[str, Any]:
    """Milliseconds of each export, and how often it is as fast as the float32 one of its maker."""
    names = contestants(name)
    images = [decode(file.path, 3) for file in test_images(str(WORK / "test"))[:16]]
    random = np.random.default_rng(0)
    taken: dict[str, list[float]] = {title: [] for title in names}
    for number in range(ROUNDS):
        image = images[number % len(images)]
        for title in random.permutation(list(names)):
            names[title](image)  # brings back what the others pushed out of the caches
            started = time.perf_counter()
            names[title](image)
            taken[title].append(1e3 * (time.perf_counter() - started))
    found = {}
    for title, values in taken.items():
        base = taken["anomalib FP32" if title.startswith("anomalib") else "vadexport openvino:fp32"]
        ratio = median_interval(np.array(base) / np.array(values))
        found[title] = {
            "ms": statistics.median(values),
            "value": ratio.value,
            "low": ratio.low,
            "high": ratio.high,
        }
    return found


def lines(name: str, found: dict[str, Any]) -> dict[str, str]:
    """A row for each export."""
    rows = {}
    for title, one in found["scores"].items():
        cells = [f"{name}, {title}", f"{one['auroc']:.4f}", *["–"] * 4]
        if "spearman" in one:
            cells[2:5] = [
                f"{one['spearman']:.4f}",
                f"{one['flips']}/{one['images']}",
                f"{one['difference']:.4f}",
            ]
        speed = found.get("speed", {}).get(title)
        if speed:
            cells[5] = f"{speed['value']:.2f} ({speed['ms']:.1f} ms)"
        rows[cells[0]] = f"| {' | '.join(cells)} |"
    return rows


HEAD = ("export", "AUROC", "Spearman", "flips", "mean difference", "× its maker's FP32")


def put(document: Path | None, title: str, line: str) -> None:
    """A row into the document's table, behind those that are there or in its old place."""
    if document is None:
        return
    rows = table_rows(document, "anomalib") | {title: line}
    head = (f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD))
    replace_table(document, "\n".join((*head, *rows.values())) + "\n", "anomalib")


if __name__ == "__main__":
    main()
