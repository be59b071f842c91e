"""TensorRT: engines for the GPU at hand."""

from functools import partial

from vadexport.backends.tensorrt import compiler, runner
from vadexport.backends.tensorrt.library import TENSORRT

PACKAGE = TENSORRT.module
EXTRA = TENSORRT.extra
AHEAD_OF_TIME = False
version = TENSORRT.version
compile_graph = partial(compiler.compile_graph, TENSORRT)
check_device = partial(runner.check_device, TENSORRT)
open_runner = partial(runner.TensorRTRunner, TENSORRT)

__all__ = [
    "AHEAD_OF_TIME",
    "EXTRA",
    "PACKAGE",
    "check_device",
    "compile_graph",
    "open_runner",
    "version",
]
