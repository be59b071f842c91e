"""OpenVINO on Intel processors."""

from vadexport.backends.openvino.compiler import check_device, compile_graph, version
from vadexport.backends.openvino.runner import OpenVinoRunner

PACKAGE = "openvino"
EXTRA = "openvino"
AHEAD_OF_TIME = True
open_runner = OpenVinoRunner

__all__ = [
    "AHEAD_OF_TIME",
    "EXTRA",
    "PACKAGE",
    "check_device",
    "compile_graph",
    "open_runner",
    "version",
]
