"""Run the ONNX graph of an artifact in the artifact's stead, where its own device is not at hand.

This proves the numerics of the graph, float16 and INT8 included, on the processor. It does not
prove the engine that was built from it, and it says nothing of speed.
"""

from functools import partial
from pathlib import Path
from typing import Final

import onnx

from vadexport.backends.base import Runner, RunnerOpener
from vadexport.backends.onnxruntime.runner import OnnxRuntimeRunner
from vadexport.passes.half_rounding import rounded_as_half
from vadexport.targets import Target

#: In a folder of an artifact, or of a step of its build.
GRAPH_FILE: Final = "model.onnx"


def proxy_opener(folder: Path, precision: str, threads: int) -> RunnerOpener:
    """A function, fit for a child process, that opens the ONNX graph in `folder` on the processor.

    Values that the graph holds as float16 are rounded to it, which ONNX Runtime alone would not do.
    """
    return partial(_open, folder, precision, threads)


def _open(folder: Path, precision: str, threads: int) -> Runner:
    graph = rounded_as_half(onnx.load(folder / GRAPH_FILE))
    return OnnxRuntimeRunner(graph.SerializeToString(), Target("onnxruntime", precision), threads)
