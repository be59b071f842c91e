"""Run an ONNX file in ONNX Runtime, on the processor or on an NVIDIA GPU."""

import platform
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vadexport.backends.base import Execution
from vadexport.backends.cuda import Cuda, GpuState
from vadexport.backends.onnxruntime.compiler import (
    CUDA_PROVIDER,
    MODEL_FILE,
    check_device,
    open_session,
    version,
)
from vadexport.contract import INPUT_NAME, Outputs
from vadexport.errors import BackendError
from vadexport.machine import processor_name
from vadexport.targets import CUDA, Target

_PRECISIONS: Final = {
    "fp32": "float32",
    "fp16": "float16 network, float32 score head",
    "int8": "INT8 network, float32 score head",
    "auto": "INT8 and float32 layers as chosen by the build, float32 score head",
}
#: A camera's uint16 goes into graphs that were prepared for TensorRT as int32.
_INPUT_TYPES: Final = {"tensor(int32)": np.dtype(np.int32)}


class OnnxRuntimeRunner:
    """A session of ONNX Runtime.

    Its worker threads stop spinning when a call returns, so that a session which waits does not
    take the processor from others. On processors without VNNI, INT8 products are added so that none
    saturates. On a GPU, float32 is not replaced by TF32.

    Args:
        model: the artifact's folder, or the bytes of an ONNX file.
        target: what the graph was made for.
        threads: of the processor, that one call may use.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
        MissingDeviceError: the target is a GPU, and there is none that works.
        BackendError: ONNX Runtime found a GPU and does not use it.
    """

    def __init__(self, model: Path | bytes, target: Target, threads: int) -> None:
        release = version()
        check_device(target)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        providers: list[Any] = ["CPUExecutionProvider"]
        self._cuda = Cuda() if target.device == CUDA else None
        if self._cuda:
            providers.insert(0, (CUDA_PROVIDER, {"use_tf32": "0"}))
            # Libraries of CUDA and cuDNN that pip installed lie where no loader looks.
            getattr(onnxruntime, "preload_dlls", lambda: None)()
        file = model if isinstance(model, bytes) else model / MODEL_FILE
        self._session = open_session(file, options, providers)
        if self._cuda and self._session.get_providers()[0] != CUDA_PROVIDER:
            raise BackendError("ONNX Runtime does not use the GPU: see its log for what it misses")
        self._names = [output.name for output in self._session.get_outputs()]
        self._input_type = _INPUT_TYPES.get(self._session.get_inputs()[0].type)
        self.execution = Execution(
            backend=f"ONNX Runtime {release}",
            precision=_PRECISIONS[target.precision],
            device=self._cuda.state().name
            if self._cuda
            else processor_name() or platform.machine(),
            threads=threads,
        )

    def infer(self, image: NDArray[Any]) -> Outputs:
        """See the base class."""
        if self._input_type is not None:
            image = image.astype(self._input_type)
        results = self._session.run(self._names, {INPUT_NAME: image})
        return dict(zip(self._names, results, strict=True))

    def gpu_state(self) -> GpuState | None:
        """Clocks, temperature, and what slows the GPU down now; None on the processor."""
        return self._cuda.state() if self._cuda else None
