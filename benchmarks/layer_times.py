"""Where the time of a call goes: what each layer of an artifact takes, in OpenVINO or ONNX Runtime.

Both backends count while they run, which costs time itself: shares tell, not sums. Layers are those
that the backend made of the graph; one may stand for several of its nodes.

    python benchmarks/layer_times.py ARTIFACT [--calls 30] [--most 15]
"""

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

import numpy as np

from vadexport.artifact import open_artifact
from vadexport.backends.base import available_threads
from vadexport.backends.onnxruntime import open_session
from vadexport.machine import processor_name, tool_versions
from vadexport.telemetry import forbid_telemetry

#: Milliseconds of one layer in each call, by its kind, precision where it is known, and name.
Taken = dict[tuple[str, str, str], list[float]]


def main() -> None:
    """Print what takes longest, by kind and by layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--most", type=int, default=15, help="layers to print")
    options = parser.parse_args()
    forbid_telemetry()
    artifact = open_artifact(options.artifact)
    shape = [size or 1 for size in artifact.manifest.image_input.shape]
    random = np.random.default_rng(0)
    call = random.integers(0, 256, shape).astype(artifact.manifest.image_input.dtype)
    measured = in_openvino if artifact.manifest.target.backend == "openvino" else in_onnxruntime
    layers = {key: median(each) for key, each in measured(artifact.folder, call, options).items()}
    total = sum(layers.values())
    print(processor_name(), tool_versions(), sep="\n")
    print(f"{artifact.manifest.target}: {total:.2f} ms in {len(layers)} layers")
    kinds: Counter[str] = Counter()
    for (kind, precision, _), taken in layers.items():
        kinds[f"{kind} {precision}"] += taken
    for kind, taken in kinds.most_common(options.most):
        print(f"{taken / total:7.1%} {taken:8.3f} ms  {kind}")
    print()
    for (kind, precision, name), taken in sorted(layers.items(), key=lambda one: -one[1])[
        : options.most
    ]:
        print(f"{taken / total:7.1%} {taken:8.3f} ms  {kind} {precision}  {name[:100]}")


def in_openvino(folder: Path, call: np.ndarray, options: argparse.Namespace) -> Taken:
    """By OpenVINO's own counters."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": available_threads(),
        "PERF_COUNT": True,
    }
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
    request = compiled.create_infer_request()
    taken: Taken = defaultdict(list)
    for number in range(options.calls + 5):
        request.infer([call], share_inputs=True)
        for each in request.profiling_info if number >= 5 else ():
            key = (each.node_type, each.exec_type.rpartition("_")[2], each.node_name)
            taken[key].append(1e3 * each.real_time.total_seconds())
    return taken


def in_onnxruntime(folder: Path, call: np.ndarray, options: argparse.Namespace) -> Taken:
    """By ONNX Runtime's profiler."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.enable_profiling = True
    settings.intra_op_num_threads = available_threads()
    with tempfile.TemporaryDirectory() as place:
        settings.profile_file_prefix = str(Path(place) / "times")
        session = open_session(folder / "model.onnx", settings, ["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for _ in range(options.calls + 5):
            session.run(None, {name: call})
        events = json.loads(Path(session.end_profiling()).read_text())
    taken: Taken = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = event["name"].removesuffix("_kernel_time")
            taken[event["args"]["op_name"], "", node].append(event["dur"] / 1e3)
    return {key: each[5:] for key, each in taken.items()}


if __name__ == "__main__":
    main()
