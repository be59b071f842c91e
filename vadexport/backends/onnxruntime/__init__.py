"""ONNX Runtime on processors, and on NVIDIA GPUs."""

from vadexport.backends.onnxruntime.compiler import (
    check_device,
    compile_graph,
    open_session,
    version,
)
from vadexport.backends.onnxruntime.runner import OnnxRuntimeRunner

PACKAGE = "onnxruntime"
EXTRA = None
AHEAD_OF_TIME = True
open_runner = OnnxRuntimeRunner

__all__ = [
    "AHEAD_OF_TIME",
    "EXTRA",
    "PACKAGE",
    "check_device",
    "compile_graph",
    "open_runner",
    "open_session",
    "version",
]
