"""Run an engine on the GPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vadexport.backends.base import Execution
from vadexport.backends.cuda import Buffer, Cuda, GpuState, out_of_memory
from vadexport.backends.tensorrt.compiler import ENGINE_FILE, SETTINGS_FILE
from vadexport.backends.tensorrt.library import Library
from vadexport.backends.tensorrt.log import new_log
from vadexport.contract import INPUT_NAME, Outputs
from vadexport.errors import BackendError, MissingDeviceError
from vadexport.targets import COMPUTE_CAPABILITIES, Target

#: No engine has fewer bytes: headers alone are as long.
_SMALLEST_ENGINE: Final = 64
_TURING: Final = "sm75"
_PRECISIONS: Final = {
    "fp32": "float32",
    "fp16": "float16 network, float32 score head",
    "int8": "INT8 network, float32 score head",
}


def check_device(library: Library, target: Target) -> None:
    """Find out whether engines of the target can run here.

    Raises:
        MissingPackageError: a package is not installed.
        MissingDeviceError: there is no NVIDIA GPU, no driver for it, or it is of another generation
            than those that the target names.
    """
    library.load()
    here = Cuda(library.extra).compute_capability()
    if target.device and here not in target.device.split("+"):
        raise MissingDeviceError(f"the GPU here is {here}, and the engine is for {target.device}")
    if library.ahead_of_time and here not in COMPUTE_CAPABILITIES:
        known = ", ".join(COMPUTE_CAPABILITIES)
        raise MissingDeviceError(f"the GPU here is {here}, {library.words} runs on {known}")
    if library.ahead_of_time and not target.device and here == _TURING:
        raise MissingDeviceError(
            f"the GPU here is {here}: build it for target {target}@{here}, for without @ engines "
            "are for GPUs from Ampere on"
        )


class TensorRTRunner:
    """An engine with its memory, which is taken once, on the host pinned.

    A call copies the images to the GPU, computes, and copies the results back. Where the batch is
    fixed, the whole of a call is one CUDA graph.

    Args:
        library: that built the engine.
        folder: of the artifact.
        target: that it was built for.
        threads: unused: the GPU works.

    Raises:
        MissingPackageError: a package is not installed.
        MissingDeviceError: there is no NVIDIA GPU.
        BackendError: the engine is of another version or for another GPU, is damaged, or needs more
            memory than is free.
    """

    def __init__(self, library: Library, folder: Path, target: Target, threads: int) -> None:
        trt = library.load()
        check_device(library, target)
        self._cuda = Cuda(library.extra)
        self._log = new_log(trt)
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        runtime = library.start(trt.Runtime, self._log)
        if settings["version_compatible"]:
            runtime.engine_host_code_allowed = True  # such engines bring their runtime along
        self._engine = load_engine(library, trt, runtime, folder / ENGINE_FILE, self._cuda)
        names = [self._engine.get_tensor_name(n) for n in range(self._engine.num_io_tensors)]
        self._outputs = [name for name in names if name != INPUT_NAME]
        shape = tuple(self._engine.get_tensor_shape(INPUT_NAME))
        self._fixed = shape[0] != -1
        self._smallest = self._largest = shape[0]
        if not self._fixed:
            smallest, _, largest = self._engine.get_tensor_profile_shape(INPUT_NAME, 0)
            self._smallest, self._largest = smallest[0], largest[0]
        self._context, captures = library.make_context(trt, self._engine, fixed_shape=self._fixed)
        if self._context is None:
            raise BackendError(out_of_memory(self._engine.device_memory_size_v2))
        self._stream = self._cuda.new_stream()
        self._set_shape((self._largest, *shape[1:]))
        self._buffers = {name: self._buffer(trt, name) for name in names}
        self._call: Callable[[], None] | None = None
        if captures:
            self._enqueue(self._largest)  # what is made on the first call must not be recorded
            self._cuda.wait(self._stream)
            self._call = self._cuda.captured(self._stream, lambda: self._enqueue(self._largest))
            self._cuda.wait(self._stream)
        self.execution = Execution(
            backend=f"{library.words} {library.version()}",
            precision=_PRECISIONS[target.precision] + (" (TF32)" if settings["tf32"] else ""),
            device=f"{self._cuda.state().name} ({self._cuda.compute_capability()})",
            threads=threads,
        )

    def infer(self, image: NDArray[Any]) -> Outputs:
        """See the base class; more images than the engine takes at once go in several calls."""
        parts = [
            self._infer(image[start : start + self._largest])
            for start in range(0, len(image), self._largest)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def gpu_state(self) -> GpuState:
        """Clocks, temperature, and what slows the GPU down now."""
        return self._cuda.state()

    def _infer(self, image: NDArray[Any]) -> Outputs:
        count = max(len(image), self._smallest)
        given = self._buffers[INPUT_NAME].array
        given[: len(image)] = image
        given[len(image) : count] = image[-1:]  # filled up by repeating the last
        if self._call is not None:
            self._call()
        else:
            self._enqueue(count)
        self._cuda.wait(self._stream)
        return {name: self._buffers[name].array[: len(image)].copy() for name in self._outputs}

    def _enqueue(self, count: int) -> None:
        """Put one call into the stream."""
        given = self._buffers[INPUT_NAME].first(count)
        if not self._fixed:
            self._set_shape(given.array.shape)
        self._cuda.to_device(given, given.array.nbytes, self._stream)
        if not self._context.execute_async_v3(int(self._stream)):
            raise BackendError(f"TensorRT could not start the engine: {self._log.last()}")
        for name in self._outputs:
            found = self._buffers[name].first(count)
            self._cuda.to_host(found, found.array.nbytes, self._stream)

    def _buffer(self, trt: Any, name: str) -> Buffer:
        """Memory for as many images as ever come at once."""
        shape = tuple(self._context.get_tensor_shape(name))
        dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
        buffer = self._cuda.allocate(shape, dtype)
        if not self._context.set_tensor_address(name, buffer.address):
            raise BackendError(f"TensorRT takes no memory for {name}: {self._log.last()}")
        return buffer

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(INPUT_NAME, shape):
            sizes = "×".join(map(str, shape))
            raise BackendError(f"the engine takes no images of {sizes}: {self._log.last()}")


def load_engine(library: Library, trt: Any, runtime: Any, file: Path, cuda: Cuda) -> Any:
    """The engine of a file.

    Raises:
        BackendError: it is of another version, for another GPU, damaged, or too large.
    """
    plan = file.read_bytes()
    if len(plan) < _SMALLEST_ENGINE:
        raise BackendError(f"{file.name} is damaged: build it again")
    if hasattr(runtime, "get_engine_validity"):
        validity, faults = runtime.get_engine_validity(plan[: runtime.engine_header_size])
        if validity == trt.EngineValidity.INVALID:
            raise BackendError(_invalid(library, trt, file, faults, cuda))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        told = getattr(getattr(runtime, "logger", None), "last", None)
        reason = told() if told else ""
        raise BackendError(
            f"{library.words} {library.version()} cannot load {file.name}: it is damaged, of "
            f"another version, for another GPU than this one ({cuda.compute_capability()}), or too "
            f"large ({cuda.free_memory() >> 20} MB free); build it again for this machine"
            + (f" ({reason})" if reason else "")
        )
    return engine


def _invalid(library: Library, trt: Any, file: Path, faults: int, cuda: Cuda) -> str:
    """Why an engine cannot run here, by the library's own diagnosis."""
    known = trt.EngineInvalidityDiagnostics
    here = cuda.compute_capability()
    words = {
        known.VERSION_MISMATCH: f"of another version than {library.version()}: build it again",
        known.UNSUPPORTED_CC: f"for other GPUs: build it with target …@{here}",
        known.OLD_CUDA_DRIVER: "too new for the driver: update the driver",
        known.OLD_CUDA_RUNTIME: "too new for CUDA's runtime here: update it",
        known.INSUFFICIENT_GPU_MEMORY: f"too large for the GPU ({cuda.free_memory() >> 20} MB "
        "free): a smaller --batch needs less",
        known.MALFORMED_ENGINE: "damaged: build it again",
        known.CUDA_ERROR: "not checked, for CUDA failed: see nvidia-smi",
    }
    found = [text for each, text in words.items() if faults & int(each)]
    return f"{file.name} is {'; '.join(found) or 'not valid here: build it again'}"
