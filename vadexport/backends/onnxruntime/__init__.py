"""ONNX Runtime on CPUs."""

from vadexport.backends.onnxruntime.compiler import compile_graph, version
from vadexport.backends.onnxruntime.runner import OnnxRuntimeRunner

PACKAGE = "onnxruntime"
EXTRA = None
open_runner = OnnxRuntimeRunner

__all__ = ["EXTRA", "PACKAGE", "compile_graph", "open_runner", "version"]
