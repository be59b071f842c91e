"""anomalib's 33 image models: vadexport's graphs, and its own exports, beside `Engine.predict`.

For each model: a checkpoint with random weights (benchmarks/anomalib_zoo.py), images of four sizes
in files, and what anomalib's engine predicts of them at batch 1, and of those of 256 pixels at
batch 3. Against that,

- vadexport: the checkpoint's graph for each size at batch 1, and for 256 pixels at batch 3 and with
  a dynamic batch, in ONNX Runtime and in OpenVINO (float32). A score counts as the engine's where
  the raw score is within 1e-4 of the largest.
- anomalib's own `to_onnx`, the same file in both backends: images of 256 pixels at batch 1 and 3.
  It has no raw score: its normalised one counts where it is within 1e-4 of the engine's.

A process of its own for each model; what was measured is kept in OUTPUT/anomalib.json, so a run
that was stopped goes on. The tables go to standard output, and into a document between markers.

    python benchmarks/anomalib_export.py [--models Patchcore,Padim] [--document docs/anomalib.md]
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from documents import replace_table
from noise import rgb_noise

OUTPUT = Path("benchmark-output")
SIZES = (256, 300, 512, 1024)
IMAGES = 3
CLOSE = 1e-4
BACKENDS = ("onnxruntime", "openvino")
TIMEOUT_S = 5000


def main() -> None:
    """Measure what is not yet measured, and print the tables."""
    from anomalib_zoo import CASES, NOT_BUILDABLE

    from vadexport.machine import tool_versions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--document", type=Path, help="whose tables are replaced")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    OUTPUT.mkdir(exist_ok=True)
    results = OUTPUT / "anomalib.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for name in options.models.split(","):
        if found.get(name, {}).get("versions") != tool_versions():
            found[name] = {**measure_apart(name), "versions": tool_versions()}
            results.write_text(json.dumps(found, indent=2) + "\n")
        print(name, json.dumps(found[name])[:400], flush=True)
    unmeasured = {name: "not measured yet" for name in CASES if name not in found}
    tables = as_tables(found, {**unmeasured, **NOT_BUILDABLE})
    print(tables)
    if options.document is not None:
        replace_table(options.document, tables)


def measure_apart(name: str) -> dict[str, Any]:
    """Measure in a process of its own; what stopped it where it failed."""
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {TIMEOUT_S} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def measure(name: str) -> dict[str, Any]:
    """All that the tables hold of one model."""
    import torch
    from anomalib_zoo import save

    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = save(name, folder)
        images = {size: rgb_noise(IMAGES, size, size, seed=size) for size in SIZES}
        for size, arrays in images.items():
            write_images(folder / str(size), arrays)
        expected = {size: engine(name, path, folder / str(size), 1) for size in SIZES}
        expected_of_three = engine(name, path, folder / "256", 3)
        found: dict[str, Any] = {"megabytes": round(path.stat().st_size / 1e6)}
        cases = [(size, 1) for size in SIZES] + [(256, 3), (256, None)]
        found["vadexport"] = {
            f"{size}/{batch or 'dynamic'}": ours(
                path, images[size], batch, expected_of_three if batch == 3 else expected[size]
            )
            for size, batch in cases
        }
        found["anomalib"] = theirs(name, path, images[256], expected[256], expected_of_three)
    return found


def write_images(folder: Path, images: list[np.ndarray]) -> None:
    """One PNG each, in order."""
    from PIL import Image

    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")


def engine(name: str, path: Path, folder: Path, batch: int) -> dict[str, np.ndarray]:
    """What `Engine.predict` says: raw_score, pred_score, and anomaly_map where there is one."""
    import torch
    from anomalib.data import PredictDataset
    from anomalib.engine import Engine
    from anomalib_zoo import offline, reload
    from torch.utils.data import DataLoader

    raw: list[Any] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        score, found = (
            (output.pred_score, output.anomaly_map)
            if hasattr(output, "pred_score")
            else tuple(output)[:2]
        )
        raw.append(found.flatten(1).amax(1) if score is None else score.reshape(-1))

    module = reload(path, name)
    module.model.register_forward_hook(keep)
    dataset = PredictDataset(folder)
    loader = DataLoader(dataset, batch_size=batch, collate_fn=dataset.collate_fn)
    with offline(), tempfile.TemporaryDirectory() as runs:
        predictor = Engine(
            accelerator="cpu", devices=1, logger=False, default_root_dir=runs, barebones=True
        )
        # Without a path, models that were never trained would be validated first.
        predictions = predictor.predict(model=module, dataloaders=loader, ckpt_path=path)
    outputs = {
        "raw_score": torch.cat(raw).numpy(),
        "pred_score": torch.cat([each.pred_score.reshape(-1) for each in predictions]).numpy(),
    }
    if predictions[0].anomaly_map is not None:
        maps = torch.cat([torch.as_tensor(each.anomaly_map) for each in predictions])
        outputs["anomaly_map"] = maps.reshape(len(maps), *maps.shape[-2:]).numpy()
    return outputs


def ours(
    path: Path, images: list[np.ndarray], batch: int | None, expected: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Differences of vadexport's graph, by backend; what stopped it where it failed."""
    import onnx

    from vadexport.backends import onnxruntime, openvino
    from vadexport.errors import VadexportError
    from vadexport.passes import DEFAULT_PASSES, apply_passes
    from vadexport.sources import SourceSpec, open_source
    from vadexport.targets import Target
    from vadexport.telemetry import forbid_telemetry
    from vadexport.tracing.graph import simplify, trace

    forbid_telemetry()
    height, width = images[0].shape[:2]
    try:
        source = open_source(SourceSpec(str(path), image_size=(height, width)))
        image_input = replace(source.detector.image_input, batch=batch)
        model, _ = apply_passes(simplify(trace(source.detector, image_input)).model, DEFAULT_PASSES)
    except VadexportError as error:
        return {"error": str(error)[:200]}
    found: dict[str, Any] = {}
    for backend in (onnxruntime, openvino):
        word = backend.__name__.rpartition(".")[2]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            onnx.save(model, folder / "graph.onnx")
            try:
                target = Target(word, "fp32")
                backend.compile_graph(folder / "graph.onnx", folder, target)
                runner = backend.open_runner(folder, target, 1)
            except VadexportError as error:
                found[word] = {"error": str(error)[:200]}
                continue
            # With a dynamic batch one image, as the engine had it, then the others at once.
            calls = [images[:1], images[1:]] if batch is None else cut(images, batch)
            outputs = [runner.infer(np.stack(call)) for call in calls]
        found[word] = differences(outputs, expected)
    return found


def cut(images: list[np.ndarray], batch: int) -> list[list[np.ndarray]]:
    """Calls of `batch` images."""
    return [images[start : start + batch] for start in range(0, len(images), batch)]


def differences(
    outputs: list[dict[str, np.ndarray]], expected: dict[str, np.ndarray]
) -> dict[str, float]:
    """Largest differences: of raw scores relative to the largest, of the rest as they are."""
    found = {}
    for name, value in expected.items():
        if name not in outputs[0]:
            continue
        ours = np.concatenate([each[name] for each in outputs]).reshape(value.shape)
        largest = float(np.abs(ours.astype(np.float64) - value).max())
        found[name] = largest / float(np.abs(value).max()) if name == "raw_score" else largest
    return found


def theirs(
    name: str,
    path: Path,
    images: list[np.ndarray],
    expected: dict[str, np.ndarray],
    expected_of_three: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Differences of anomalib's own export, by backend and batch, or what stopped it."""
    from anomalib_zoo import reload

    with tempfile.TemporaryDirectory() as folder:
        try:
            file = reload(path, name).to_onnx(folder, input_size=(256, 256))
        except Exception as error:  # noqa: BLE001 - of any model
            return {"error": (str(error).strip() or repr(error)).splitlines()[0][:200]}
        if file is None:
            return {"error": "disabled by anomalib"}
        return {
            f"{backend}/{batch}": run_theirs(
                backend, Path(file), images, batch, expected if batch == 1 else expected_of_three
            )
            for backend in BACKENDS
            for batch in (1, 3)
        }


def run_theirs(
    backend: str,
    file: Path,
    images: list[np.ndarray],
    batch: int,
    expected: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Feed floats `[N, 3, H, W]`, as anomalib's inferencers do."""
    floats = (np.stack(images).transpose(0, 3, 1, 2) / 255).astype(np.float32)
    calls = [floats[start : start + batch] for start in range(0, len(floats), batch)]
    try:
        infer = session_of(backend, file)
        outputs = [infer(np.ascontiguousarray(call)) for call in calls]
        return differences(
            outputs, {key: each for key, each in expected.items() if key != "raw_score"}
        )
    except Exception as error:  # noqa: BLE001 - of any backend
        return {"error": (str(error).strip() or repr(error)).splitlines()[0][:200]}


def session_of(backend: str, file: Path) -> Any:
    """A function from a call to outputs by name, in float32."""
    if backend == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        given = session.get_inputs()[0].name
        return lambda call: dict(zip(names, session.run(None, {given: call}), strict=True))
    import openvino

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    compiled = openvino.Core().compile_model(file, "CPU", config)
    return lambda call: {
        next(iter(key.names)): value.copy() for key, value in compiled([call]).items()
    }


# ------------------------------------------------------------------------------ tables
def as_tables(found: dict[str, Any], missing: dict[str, str]) -> str:
    """Counts first, then a row for each model."""
    total = len(found) + len(missing)
    counted = {name: one for name, one in found.items() if holds(one)}
    own = {name for name, one in found.items() if own_holds(one)}
    versions = next(iter(found.values()))["versions"]
    head = "| model | holds | onnxruntime | openvino | dynamic | own, onnxruntime | own, openvino |"
    lines = [
        f"Within 1e-4 of `Engine.predict`: vadexport **{len(counted)} of {total}** (four sizes, "
        f"batch 1 and 3, ONNX Runtime and OpenVINO), anomalib's own export **{len(own)} of "
        f"{total}** (256 pixels, batch 1 and 3, both backends). "
        + ", ".join(f"{key} {value}" for key, value in versions.items())
        + ".",
        "",
        head,
        "|---|---|---|---|---|---|---|",
    ]
    lines += [row(name, found[name]) for name in sorted(found)]
    lines += [f"| {name} | no: {reason} | – | – | – | – | – |" for name, reason in missing.items()]
    return "\n".join([*lines, ""])


def holds(one: dict[str, Any]) -> bool:
    """Whether vadexport's raw scores are the engine's, at batch 1 and 3 and in both backends."""
    return "error" not in one and all(
        case.get(backend, {}).get("raw_score", 1.0) <= CLOSE
        for key, case in one["vadexport"].items()
        if not key.endswith("dynamic")
        for backend in BACKENDS
    )


def own_holds(one: dict[str, Any]) -> bool:
    """Whether anomalib's own export gives the engine's scores, at batch 1 and 3 in both."""
    return "error" not in one and all(
        one["anomalib"].get(f"{backend}/{batch}", {}).get("pred_score", 1.0) <= CLOSE
        for backend in BACKENDS
        for batch in (1, 3)
    )


def row(name: str, one: dict[str, Any]) -> str:
    """A model's row."""
    if "error" in one:
        return f"| {name} | no: {one['error']} | – | – | – | – | – |"
    static = [case for key, case in one["vadexport"].items() if not key.endswith("dynamic")]
    cells = [worst([case.get(backend, case) for case in static]) for backend in BACKENDS]
    dynamic = one["vadexport"]["256/dynamic"]
    cells.append(worst([dynamic.get(backend, dynamic) for backend in BACKENDS]))
    for backend in BACKENDS:
        own = one["anomalib"]
        cells.append(
            " / ".join(
                worst([own.get(f"{backend}/{batch}", own)], "pred_score") for batch in (1, 3)
            )
        )
    return f"| {name} | {'yes' if holds(one) else 'no'} | {' | '.join(cells)} |"


def worst(cases: list[dict[str, Any]], name: str = "raw_score") -> str:
    """The largest difference, or why there is none."""
    failed = [case["error"] for case in cases if "error" in case]
    if failed:
        return "fails"
    return f"{max(case[name] for case in cases):.1e}"


if __name__ == "__main__":
    main()
