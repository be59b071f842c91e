"""Decoding, preprocessing and inference apart.

Preprocessing is the artifact's own: its graph, cut at the tensor that the network takes, compiled
by its backend as the whole one is, and timed in the same rounds. What is left of a call is
inference. Alone, preprocessing also has to write its result out, which inside the whole graph may
stay in the network's own layout: its time is an upper bound, that of inference a lower one.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import onnx

from vadexport.backends.base import Runner, RunnerOpener
from vadexport.backends.onnxruntime.runner import OnnxRuntimeRunner
from vadexport.backends.openvino.runner import OpenVinoRunner
from vadexport.contract import INPUT_NAME, PREPROCESSED, ImageInput
from vadexport.errors import BackendError, InputError
from vadexport.images import ImageFile, decode
from vadexport.targets import Target

_GRAPH_FILE: Final = "model.onnx"
_DECODED: Final = 16


@dataclass(frozen=True)
class Parts:
    """Where the time of a call goes; each a median, in milliseconds.

    Attributes:
        decoding_ms: reading and decoding as many image files as a call has images.
        preprocessing_ms: of the graph up to the network; None where it cannot be run alone.
        call_ms: the whole call.
        decoding_samples_ms: every file, times the images of a call.
        preprocessing_samples_ms: every call, in order of the rounds.
    """

    decoding_ms: float
    preprocessing_ms: float | None
    call_ms: float
    decoding_samples_ms: tuple[float, ...] = ()
    preprocessing_samples_ms: tuple[float, ...] = ()

    @property
    def inference_ms(self) -> float | None:
        """The call without preprocessing; None where preprocessing alone takes as long or longer.

        A median is no exact time: then what is left is less than the measurement can tell.
        """
        if self.preprocessing_ms is None or self.preprocessing_ms >= self.call_ms:
            return None
        return self.call_ms - self.preprocessing_ms

    @property
    def together_ms(self) -> float:
        """From files to scores and maps."""
        return self.decoding_ms + self.call_ms


def decoding_samples_ms(files: Sequence[ImageFile], image_input: ImageInput) -> tuple[float, ...]:
    """Milliseconds of reading and decoding each of some files, times the images of a call.

    Files that cannot be read do not count; they have been named before.
    """
    taken: list[float] = []
    for file in files:
        if len(taken) == _DECODED:
            break
        start = time.perf_counter()
        try:
            decode(file.path, image_input.channels)
        except InputError:
            continue
        taken.append(time.perf_counter() - start)
    return tuple(round(1e3 * each * (image_input.batch or 1), 4) for each in taken)


def preprocessing_opener(folder: Path, target: Target, threads: int) -> RunnerOpener | None:
    """A function, fit for a child process, that opens an artifact's preprocessing alone.

    It raises BackendError where the graph has no tensor between preprocessing and network, as where
    there is no preprocessing at all.

    Args:
        folder: of the artifact.
        target: of the artifact; an engine of TensorRT is one piece: None.
        threads: that a call may use.
    """
    if target.backend not in _OPEN:
        return None
    return partial(_OPEN[target.backend], folder, target, threads)


def _openvino(folder: Path, target: Target, threads: int) -> Runner:
    return OpenVinoRunner(folder, target, threads, until=PREPROCESSED)


def _onnxruntime(folder: Path, target: Target, threads: int) -> Runner:
    model = onnx.load(folder / _GRAPH_FILE)
    if not any(PREPROCESSED in node.output for node in model.graph.node):
        raise BackendError(f"the graph has no tensor {PREPROCESSED}")
    part = onnx.utils.Extractor(model).extract_model([INPUT_NAME], [PREPROCESSED])
    return OnnxRuntimeRunner(part.SerializeToString(), target, threads)


_OPEN: Final = {"openvino": _openvino, "onnxruntime": _onnxruntime}
