"""The ONNX file is what ONNX Runtime runs: compiling checks it and copies it."""

import shutil
from pathlib import Path

from vadexport.errors import BackendError, MissingPackageError
from vadexport.telemetry import forbid_telemetry

MODEL_FILE = "model.onnx"


def version() -> str:
    """Version of the installed ONNX Runtime; raises MissingPackageError."""
    forbid_telemetry()
    try:
        import onnxruntime
    except ImportError:
        raise MissingPackageError("onnxruntime") from None
    return str(onnxruntime.__version__)


def compile_graph(model: Path, folder: Path) -> None:
    """Write `model.onnx`.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
        BackendError: ONNX Runtime cannot load the graph.
    """
    version()
    import onnxruntime

    try:
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BackendError(f"ONNX Runtime cannot load the graph: {reason}") from error
    shutil.copyfile(model, folder / MODEL_FILE)
