"""TensorRT-RTX: engines for NVIDIA's RTX GPUs, built with or without one."""

from functools import partial

from vadexport.backends.tensorrt import compiler, runner
from vadexport.backends.tensorrt.library import TENSORRT_RTX

PACKAGE = TENSORRT_RTX.module
EXTRA = TENSORRT_RTX.extra
AHEAD_OF_TIME = True
version = TENSORRT_RTX.version
compile_graph = partial(compiler.compile_graph, TENSORRT_RTX)
check_device = partial(runner.check_device, TENSORRT_RTX)
open_runner = partial(runner.TensorRTRunner, TENSORRT_RTX)

__all__ = [
    "AHEAD_OF_TIME",
    "EXTRA",
    "PACKAGE",
    "check_device",
    "compile_graph",
    "open_runner",
    "version",
]
