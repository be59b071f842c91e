"""ONNX files of other tools. Their own run in ONNX Runtime, in float32, is the reference."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vadexport.backends.onnxruntime import open_session, version
from vadexport.backends.pytorch import PyTorchRunner
from vadexport.contract import ANOMALY_MAP, RAW_SCORE
from vadexport.errors import InputError
from vadexport.sources.base import Source
from vadexport.sources.checking import Measured, reason
from vadexport.sources.onnx_file import OnnxFile, bodies, read_onnx
from vadexport.sources.plain import (
    PLAIN_OPTIONS,
    PlainDetector,
    PlainModel,
    PlainReference,
    plain_detector,
)
from vadexport.sources.spec import SourceSpec

_MEND: Final = "export it in evaluation mode"
_SILENT: Final = 4
_PREFIX: Final = "network/"
_OWN: Final = f"{_PREFIX}own/"


def open_onnx(spec: SourceSpec) -> Source:
    """Read an ONNX file of images `[N, 3, h, w]` or `[N, 1, h, w]` in float32.

    Raises:
        InputError: it is none, damaged, not to be trusted, of another kind of input, or gives
            neither score nor map.
        MissingPackageError: ONNX Runtime is not installed.
    """
    spec.only("an ONNX file", *PLAIN_OPTIONS)
    path = spec.path
    file = read_onnx(path)
    detector = _detector(spec, file)

    def open_reference(threads: int) -> "OnnxFileRunner":
        return OnnxFileRunner(path, detector, file.batch, threads)

    return Source(
        kind="onnx",
        name=path.name,
        sha256=file.sha256,
        size=file.bytes,
        detector=detector,
        open_reference=open_reference,
        options=spec.to_json(),
    )


class OnnxSession(nn.Module):
    """A model in ONNX Runtime on the CPU, called like a module of PyTorch.

    Args:
        model: path of its file, or its bytes.
        threads: that a call may use.

    Raises:
        InputError: ONNX Runtime cannot load it.
    """

    def __init__(self, model: Path | bytes, threads: int) -> None:
        super().__init__()
        version()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _SILENT  # what it says of shapes goes into the errors
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = open_session(model, options, ["CPUExecutionProvider"])
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot load the file: {reason(error)}") from error
        (self._input,) = (each.name for each in self._session.get_inputs())
        self._names = [each.name for each in self._session.get_outputs()]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Its outputs by name, those that are tensors of numbers."""
        found = self._session.run(self._names, {self._input: x.numpy()})
        return {
            name: torch.from_numpy(value)
            for name, value in zip(self._names, found, strict=True)
            if getattr(getattr(value, "dtype", None), "kind", "") in "biuf"
        }


class OnnxFileRunner(PyTorchRunner):
    """The file itself in ONNX Runtime, on images that PyTorch's own operators preprocessed.

    Args:
        path: of the file.
        detector: whose preprocessing, outputs and thresholds are the reference's.
        batch: images that a call must have; None for any number.
        threads: that both may use.
    """

    def __init__(
        self, path: Path, detector: PlainDetector, batch: int | None, threads: int
    ) -> None:
        super().__init__(PlainReference(OnnxSession(path, threads), detector, batch), threads)
        self.execution = replace(
            self.execution,
            backend=f"ONNX Runtime {version()} on the ONNX file as it is, preprocessed by "
            f"{self.execution.backend}",
        )

    def use_gpu(self, sample: NDArray[Any]) -> None:
        """It stays on the processor, where ONNX Runtime has the file."""
        del sample


def _detector(spec: SourceSpec, file: OnnxFile) -> PlainDetector:
    """For any number of images a call where the file's graph allows it, whatever it says."""
    try:
        return plain_detector(spec, _model(file, _with_any_batch(file.model), None))
    except InputError:
        if file.batch is None:
            raise
    return plain_detector(spec, _model(file, file.model, file.batch))


def _model(file: OnnxFile, model: onnx.ModelProto, batch: int | None) -> PlainModel:
    producer = f"{model.producer_name} {model.producer_version}".strip()
    by = f", by {producer}" if producer else ""
    return PlainModel(
        family="ONNX",
        network=OnnxSession(model.SerializeToString(), 1),
        mend=_MEND,
        size=file.size,
        channels=file.channels,
        batch=batch,
        onnx_network=partial(_with_outputs, model),
        facts={
            "framework": f"ONNX of opset {file.opset}{by}",
            "weights": sum(math.prod(value.dims) for value in model.graph.initializer),
            "reference": "the file's own run in ONNX Runtime, not the model that it was made from",
        },
    )


def _with_any_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same, its images and outputs said to be of any number."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    del free.graph.value_info[:]
    for value in (*free.graph.input, *free.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].dim_param = "N"
    return free


def _with_outputs(model: onnx.ModelProto, measured: Measured) -> onnx.ModelProto:
    """The same with `raw_score` [N] and `anomaly_map` [N, 1, h, w] as its outputs, in float32.

    All names start with `network/`, so that none is another part's when graphs are put together.
    """
    named = onnx.ModelProto()
    named.CopyFrom(model)
    graph = named.graph
    _prefix(graph)
    del graph.output[:]
    wanted: list[tuple[str | None, str, tuple[int, ...]]] = [
        (measured.outputs.score, RAW_SCORE, ()),
        (measured.outputs.map, ANOMALY_MAP, (1, *(measured.map_size or ()))),
    ]
    for own, name, shape in wanted:
        if own is None:
            continue
        result = f"{_PREFIX}{name}"
        cast, sizes = f"{result}_cast", f"{result}_shape"
        graph.initializer.append(numpy_helper.from_array(np.array([-1, *shape], np.int64), sizes))
        graph.node.extend(
            [
                helper.make_node("Cast", [f"{_OWN}{own}"], [cast], cast, to=TensorProto.FLOAT),
                helper.make_node("Reshape", [cast, sizes], [result], result),
            ]
        )
        batch = measured.batch or "N"
        graph.output.append(
            helper.make_tensor_value_info(result, TensorProto.FLOAT, [batch, *shape])
        )
    return named


def _prefix(graph: onnx.GraphProto) -> None:
    """Put `_OWN` before every name, those of the bodies of loops and branches too.

    `onnx.compose.add_prefix` leaves out what only bodies read.
    """
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = f"{_OWN}{value.name}"
    for sparse in graph.sparse_initializer:
        sparse.values.name = f"{_OWN}{sparse.values.name}"
    for number, node in enumerate(graph.node):
        node.name = f"{_OWN}{number}_{node.op_type}"
        for names in (node.input, node.output):
            names[:] = [name and f"{_OWN}{name}" for name in names]
        for body in bodies(node):
            _prefix(body)
