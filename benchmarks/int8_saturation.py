"""INT8 on a processor without VNNI: what saturates, and what vadexport does about it.

The detector of benchmarks/int8_ranges.py with weights of 8 and of 7 bits, by OpenVINO and by ONNX
Runtime, as a session is opened by default and as vadexport opens it. On a processor with VNNI all
of them are exact, and the table says no more than that.

    python benchmarks/int8_saturation.py [--document docs/int8.md]
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from documents import replace_table
from int8_ranges import HEAD, RULE, TARGET, Bench, ours, scores_of

from vadexport.backends.onnxruntime import EXACT_PRODUCTS
from vadexport.backends.openvino import compile_graph
from vadexport.calibration.quantisation import Choices
from vadexport.contract import INPUT_NAME, RAW_SCORE
from vadexport.telemetry import forbid_telemetry

BITS = {8: False, 7: True}


def main() -> None:
    """Print a table, and put it into a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--document", type=Path, help="whose table `saturation` it becomes")
    options = parser.parse_args()
    forbid_telemetry()
    bench = Bench.of(1444)
    lines = [HEAD, RULE]
    for bits, reduce_range in BITS.items():
        with tempfile.TemporaryDirectory() as name:
            float_file, model = Path(name) / "float.onnx", Path(name) / "int8.onnx"
            bench.save(float_file)
            quantise = ours(Choices(reduce_range=reduce_range), here=False)
            quantise(float_file, model, bench.graph, bench.calibration)
            compile_graph(model, Path(name), TARGET)
            scores = {
                "ONNX Runtime, as vadexport opens it": by_onnx_runtime(model, bench, exact=True),
                "ONNX Runtime, by default": by_onnx_runtime(model, bench, exact=False),
                "OpenVINO": scores_of(Path(name), bench.judged),
            }
        lines += [bench.line(f"{bits} bits, {who}", each) for who, each in scores.items()]
    if options.document:
        text = "\n".join([bench.words(), "", *lines]) + "\n"
        replace_table(options.document, text, "saturation")


def by_onnx_runtime(model: Path, bench: Bench, *, exact: bool) -> np.ndarray:
    """Raw scores by a session that adds products exactly, or one with no options."""
    options = onnxruntime.SessionOptions()
    if exact:
        options.add_session_config_entry(*EXACT_PRODUCTS)
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    found = [session.run([RAW_SCORE], {INPUT_NAME: image[None]})[0] for image in bench.judged]
    return np.concatenate(found)


if __name__ == "__main__":
    main()
