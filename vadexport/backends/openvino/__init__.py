"""OpenVINO on Intel processors."""

from vadexport.backends.openvino.compiler import compile_graph, version
from vadexport.backends.openvino.runner import OpenVinoRunner

PACKAGE = "openvino"
EXTRA = "openvino"
open_runner = OpenVinoRunner

__all__ = ["EXTRA", "PACKAGE", "compile_graph", "open_runner", "version"]
