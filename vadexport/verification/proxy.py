"""Run the ONNX graph of an artifact in the artifact's stead, where its own device is not at hand.

This proves the numerics of the graph, float16 and INT8 included, on the processor. It does not
prove the engine that was built from it, and it says nothing of speed.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Final

import onnx

from vadexport.artifact import REPORT_FOLDER, Artifact
from vadexport.backends.base import Runner, RunnerOpener
from vadexport.backends.onnxruntime.runner import OnnxRuntimeRunner
from vadexport.passes.half_rounding import holds_half, rounded_as_half
from vadexport.targets import Target

#: In a folder of an artifact, or of a step of its build.
GRAPH_FILE: Final = "model.onnx"
#: The quantised graph behind an artifact that has none in its folder, for `verify` to look into.
_KEPT_FOLDER: Final = f"{REPORT_FOLDER}/quantised"
#: Bytes of the largest graph that is kept: a large memory bank would be stored twice.
_MOST_KEPT: Final = 64 * 2**20


def keep_graph(graph: Path, folder: Path) -> None:
    """Keep the quantised graph that an artifact was compiled from, where it is small.

    It lies with the reports: it is not deployed, and no manifest counts it.

    Args:
        graph: its ONNX file.
        folder: of the artifact.
    """
    if (folder / GRAPH_FILE).exists() or graph.stat().st_size > _MOST_KEPT:
        return
    (folder / _KEPT_FOLDER).mkdir(parents=True)
    shutil.copyfile(graph, folder / _KEPT_FOLDER / GRAPH_FILE)


def graph_folder(artifact: Artifact) -> Path | None:
    """Where the graph behind an artifact lies; None where it was not kept."""
    folders = (artifact.folder, artifact.folder / _KEPT_FOLDER)
    return next((each for each in folders if (each / GRAPH_FILE).is_file()), None)


def proxy_opener(folder: Path, precision: str, threads: int) -> RunnerOpener:
    """A function, fit for a child process, that opens the ONNX graph in `folder` on the processor.

    Values that the graph holds as float16 are rounded to it, which ONNX Runtime alone would not do.
    """
    return partial(_open, folder, precision, threads)


def _open(folder: Path, precision: str, threads: int) -> Runner:
    target, graph = Target("onnxruntime", precision), onnx.load(folder / GRAPH_FILE)
    if not holds_half(graph):  # as nearly all do not: then ONNX Runtime reads the file itself
        del graph
        return OnnxRuntimeRunner(folder, target, threads)
    return OnnxRuntimeRunner(rounded_as_half(graph).SerializeToString(), target, threads)
