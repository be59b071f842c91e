"""INT8 on a processor without VNNI: what saturates, and what vadexport does about it.

The detector of benchmarks/int8_ranges.py with weights of 8 and of 7 bits, by OpenVINO and by ONNX
Runtime, as a session is opened by default and as vadexport opens it. On a processor with VNNI all
of them are exact, and the table says no more than that.

    python benchmarks/int8_saturation.py [--document docs/int8.md]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from documents import replace_table
from int8_ranges import HEAD, RULE, TARGET, Bench, ours, scores_of

from vadexport.backends.base import available_threads
from vadexport.backends.onnxruntime import open_session
from vadexport.backends.openvino import compile_graph
from vadexport.calibration.quantisation import Choices
from vadexport.contract import INPUT_NAME, RAW_SCORE
from vadexport.telemetry import forbid_telemetry

ROUNDS = 100
BITS = {8: False, 7: True}


def main() -> None:
    """Print a table, and put it into a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--document", type=Path, help="whose table `saturation` it becomes")
    options = parser.parse_args()
    forbid_telemetry()
    bench = Bench.of(1444)
    lines, ratios = [HEAD, RULE], {}
    for bits, reduce_range in BITS.items():
        with tempfile.TemporaryDirectory() as name:
            float_file, model = Path(name) / "float.onnx", Path(name) / "int8.onnx"
            bench.save(float_file)
            quantise = ours(Choices(reduce_range=reduce_range), here=False)
            quantise(float_file, model, bench.graph, bench.calibration)
            compile_graph(model, Path(name), TARGET)
            sessions = [opened(model, exact=exact) for exact in (True, False)]
            scores = {
                "ONNX Runtime, as vadexport opens it": by_session(sessions[0], bench),
                "ONNX Runtime, by default": by_session(sessions[1], bench),
                "OpenVINO": scores_of(Path(name), bench.judged),
            }
            ratios[bits] = ratio(*sessions, bench.judged[0])
        lines += [bench.line(f"{bits} bits, {who}", each) for who, each in scores.items()]
    told = (
        f"ONNX Runtime as vadexport opens it takes {ratios[8]:.2f} times as long as by default "
        f"for the graph of 8 bits, {ratios[7]:.2f} for that of 7 bits (medians of {ROUNDS} pairs)."
    )
    print(told)
    if options.document:
        text = "\n".join([bench.words(), "", *lines, "", told]) + "\n"
        replace_table(options.document, text, "saturation")


def opened(model: Path, *, exact: bool) -> onnxruntime.InferenceSession:
    """A session that adds products exactly, or one as it is by default."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_threads()
    open_one = open_session if exact else onnxruntime.InferenceSession
    return open_one(model, options, ["CPUExecutionProvider"])


def by_session(session: onnxruntime.InferenceSession, bench: Bench) -> np.ndarray:
    """Raw scores of the judged images."""
    found = [session.run([RAW_SCORE], {INPUT_NAME: image[None]})[0] for image in bench.judged]
    return np.concatenate(found)


def ratio(
    one: onnxruntime.InferenceSession, other: onnxruntime.InferenceSession, image: np.ndarray
) -> float:
    """How many times as long a call of the first takes as one of the second, one by one."""
    taken = []
    for _ in range(ROUNDS):
        seconds = []
        for session in (one, other):
            started = time.perf_counter()
            session.run([RAW_SCORE], {INPUT_NAME: image[None]})
            seconds.append(time.perf_counter() - started)
        taken.append(seconds[0] / seconds[1])
    return float(np.median(taken))


if __name__ == "__main__":
    main()
