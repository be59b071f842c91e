"""Run an ONNX file in ONNX Runtime on the CPU."""

import platform
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vadexport.backends.base import Execution
from vadexport.backends.onnxruntime.compiler import MODEL_FILE, version
from vadexport.contract import INPUT_NAME, Outputs
from vadexport.machine import processor_name


class OnnxRuntimeRunner:
    """A session of ONNX Runtime's CPU provider.

    Its worker threads stop spinning when a call returns, so that a session which waits does not
    take the processor from others.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
    """

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        release = version()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            folder / MODEL_FILE, options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]
        self.execution = Execution(
            backend=f"ONNX Runtime {release}",
            precision="float32" if precision == "fp32" else "INT8 network, float32 score head",
            device=processor_name() or platform.machine(),
            threads=threads,
        )

    def infer(self, image: NDArray[Any]) -> Outputs:
        """See the base class."""
        results = self._session.run(self._names, {INPUT_NAME: image})
        return dict(zip(self._names, results, strict=True))
