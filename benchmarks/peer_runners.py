"""Runners of what others exported: camera bytes in, the contract's outputs out.

anomalib's exports take floats and report normalised scores only. Its range does not clamp the
benchmark's images, so the raw score is computed back from them. Both are within the timed call, and
take microseconds.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peer_exports import as_floats

from vadexport.backends.base import Execution, RunnerOpener
from vadexport.contract import ANOMALY_MAP, PRED_LABEL, PRED_MASK, PRED_SCORE, RAW_SCORE, Outputs
from vadexport.machine import processor_name
from vadexport.sources import SourceSpec, open_source


@dataclass(frozen=True)
class Normalisation:
    """How a post-processor of anomalib normalises scores."""

    threshold: float
    minimum: float
    maximum: float

    def contract_outputs(self, found: dict[str, np.ndarray]) -> Outputs:
        """Outputs of an export by anomalib, as the contract has them."""
        score = np.asarray(found[PRED_SCORE], np.float32).reshape(-1)
        maps = {
            name: found[name].reshape(len(score), 1, *found[name].shape[-2:])
            for name in (ANOMALY_MAP, PRED_MASK)
        }
        return {
            PRED_SCORE: score,
            RAW_SCORE: (score - 0.5) * (self.maximum - self.minimum) + self.threshold,
            PRED_LABEL: np.asarray(found[PRED_LABEL]).reshape(-1).astype(bool),
            **maps,
        }


class OpenVinoFile:
    """An OpenVINO IR, in the precision that OpenVINO chooses or in float32.

    Args:
        path: of the `.xml`.
        threads: that one call may use.
        pinned: whether float32 is asked for.
        normalisation: of an export by anomalib; None of a graph with the contract's names, or any
            other whose outputs go out as they are.
    """

    def __init__(
        self, path: Path, threads: int, *, pinned: bool, normalisation: Normalisation | None = None
    ) -> None:
        import openvino

        core = openvino.Core()
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        if pinned:
            config["INFERENCE_PRECISION_HINT"] = "f32"
        self._compiled = core.compile_model(core.read_model(path), "CPU", config)
        self._request = self._compiled.create_infer_request()
        self._names = [min(output.get_names()) for output in self._compiled.outputs]
        self._normalisation = normalisation
        chosen = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.execution = Execution(
            backend=f"OpenVINO {openvino.__version__.split('-', maxsplit=1)[0]}",
            precision=f"{chosen}, {'asked for' if pinned else 'its default here'}",
            device=processor_name(),
            threads=threads,
            layers=executed_layers(self._compiled),
        )

    def infer(self, image: np.ndarray) -> Outputs:
        """See vadexport.backends.base.Runner."""
        call = image if self._normalisation is None else as_floats(image)
        results = self._request.infer([call], share_inputs=True)
        found = {name: results[number].copy() for number, name in enumerate(self._names)}
        return self._normalisation.contract_outputs(found) if self._normalisation else found


def executed_layers(compiled: Any) -> dict[str, int]:
    """Layers of a compiled model that compute, by the precision they run in."""
    silent = {"Input", "Output", "Const", "Reorder", "Reshape"}
    infos = [layer.get_rt_info() for layer in compiled.get_runtime_model().get_ops()]
    kept = [info for info in infos if info["layerType"].astype(str) not in silent]
    return dict(sorted(Counter(info["runtimePrecision"].astype(str) for info in kept).items()))


class OnnxFile:
    """An ONNX file of anomalib's in ONNX Runtime, with the session's options as vadexport's."""

    def __init__(self, path: Path, threads: int, normalisation: Normalisation) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]
        self._input = self._session.get_inputs()[0].name
        self._normalisation = normalisation
        self.execution = Execution(
            backend=f"ONNX Runtime {onnxruntime.__version__}",
            precision="float32",
            device=processor_name(),
            threads=threads,
        )

    def infer(self, image: np.ndarray) -> Outputs:
        """See vadexport.backends.base.Runner."""
        results = self._session.run(self._names, {self._input: as_floats(image)})
        return self._normalisation.contract_outputs(dict(zip(self._names, results, strict=True)))


def channels_last(spec: SourceSpec, threads: int) -> Any:
    """The reference in PyTorch, its weights and so its activations channels last."""
    import torch

    runner: Any = open_source(spec).open_reference(threads)
    runner._module.to(memory_format=torch.channels_last)  # noqa: SLF001
    runner.execution = replace(
        runner.execution, backend=f"{runner.execution.backend}, channels last"
    )
    return runner


def peer_openers(
    folder: Path, spec: SourceSpec, threads: int, normalisation: Normalisation | None
) -> dict[str, RunnerOpener]:
    """Openers of the peers, by their names; of a file that is not there, it fails when called."""
    from peer_exports import ONNX_FILE, OPENVINO_FILE

    found: dict[str, RunnerOpener] = {"channels last": partial(channels_last, spec, threads)}
    if normalisation is not None:
        path = folder / "anomalib-openvino" / OPENVINO_FILE
        for name, pinned in (("anomalib f32", True), ("anomalib", False)):
            found[name] = partial(
                *(OpenVinoFile, path, threads), pinned=pinned, normalisation=normalisation
            )
        path = folder / "anomalib-onnx" / ONNX_FILE
        found["anomalib ORT"] = partial(OnnxFile, path, threads, normalisation)
    found["plain"] = partial(OpenVinoFile, folder / "plain" / "model.xml", threads, pinned=True)
    found["NNCF"] = partial(
        *(OpenVinoFile, folder / "nncf" / "quantised.xml", threads),
        pinned=False,
        normalisation=normalisation,
    )
    return found


def normalisation_of(spec: SourceSpec) -> Normalisation | None:
    """Of a checkpoint by anomalib; None of a detector of vadexport's own."""
    source = open_source(spec)
    if source.kind != "anomalib":
        return None
    thresholds = source.detector.thresholds
    assert thresholds is not None
    return Normalisation(thresholds.image, thresholds.minimum, thresholds.maximum)
