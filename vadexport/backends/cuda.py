"""NVIDIA GPUs: memory, streams and graphs of CUDA, and the state a GPU is in.

`cuda-bindings` gives CUDA's runtime without PyTorch; `nvidia-ml-py` what the driver tells of clocks
and temperature.
"""

import ctypes
import math
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vadexport.errors import BackendError, MissingDeviceError, MissingPackageError

#: What lowers clocks, by NVML's bits: why a GPU runs slower than it could.
_SLOWED_BY: Final = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "temperature (driver)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True)
class GpuState:
    """A GPU at one moment.

    Attributes:
        name: of the GPU.
        driver: its version; empty where NVML is not there.
        graphics_mhz: clock of its processors; None where unknown, as all that follows.
        memory_mhz: clock of its memory.
        temperature_c: degrees Celsius.
        slowed_by: what lowered its clocks just then.
    """

    name: str
    driver: str = ""
    graphics_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    slowed_by: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For reports."""
        return asdict(self)


class Cuda:
    """CUDA's runtime on the first GPU; every call is checked.

    Raises:
        MissingPackageError: cuda-bindings is not installed; `extra` brings it.
        MissingDeviceError: no GPU, or no driver for it.
    """

    def __init__(self, extra: str = "cuda") -> None:
        try:
            from cuda.bindings import runtime
        except ImportError:
            raise MissingPackageError("cuda-bindings", extra) from None
        self._cuda: Any = runtime
        self._taken: list[tuple[Callable[..., Any], Any]] = []
        # Gives back what was taken, once nobody holds this object any more, or Python ends.
        self._give_back = weakref.finalize(self, _release, self._taken)
        _, driver = runtime.cudaDriverGetVersion()
        if not driver:
            raise MissingDeviceError("no NVIDIA GPU here: there is no driver for one")
        error, count = runtime.cudaGetDeviceCount()
        if error != runtime.cudaError_t.cudaSuccess or not count:
            reason = self._words(error) if error else "none was found"
            raise MissingDeviceError(f"no NVIDIA GPU that works here: {reason}")

    def state(self) -> GpuState:
        """Name, driver, clocks and temperature."""
        properties = self._checked(self._cuda.cudaGetDeviceProperties(0))
        place = (
            f"{properties.pciDomainID:08x}:{properties.pciBusID:02x}:{properties.pciDeviceID:02x}.0"
        )
        return _state(_text(properties.name), place)

    def compute_capability(self) -> str:
        """Such as `sm86`."""
        properties = self._checked(self._cuda.cudaGetDeviceProperties(0))
        return f"sm{properties.major}{properties.minor}"

    def new_stream(self) -> Any:
        """A stream of its own, which waits for no other."""
        flags = self._cuda.cudaStreamNonBlocking
        stream = self._checked(self._cuda.cudaStreamCreateWithFlags(flags))
        self._taken.append((self._cuda.cudaStreamDestroy, stream))
        return stream

    def wait(self, stream: Any) -> None:
        """Until all in the stream is done."""
        self._checked(self._cuda.cudaStreamSynchronize(stream))

    def captured(self, stream: Any, work: Callable[[], None]) -> Callable[[], None] | None:
        """Record what `work` puts into the stream; calling the result does all of it at once.

        None where it cannot be recorded, such as loops whose length is only known on the GPU.
        """
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked(self._cuda.cudaStreamBeginCapture(stream, mode))
        try:
            work()
        except BackendError:
            self._cuda.cudaStreamEndCapture(stream)  # its status says no more than the error
            return None
        error, graph = self._cuda.cudaStreamEndCapture(stream)
        if error != self._cuda.cudaError_t.cudaSuccess:
            return None
        error, ready = self._cuda.cudaGraphInstantiate(graph, 0)
        self._cuda.cudaGraphDestroy(graph)
        if error != self._cuda.cudaError_t.cudaSuccess:
            return None
        self._taken.append((self._cuda.cudaGraphExecDestroy, ready))
        return lambda: self._checked(self._cuda.cudaGraphLaunch(ready, stream))

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> "Buffer":
        """Memory for a tensor, on the GPU and pinned on the host."""
        size = max(1, math.prod(shape)) * np.dtype(dtype).itemsize
        host = self._allocated(self._cuda.cudaMallocHost(size), size, "pinned memory")
        self._taken.append((self._cuda.cudaFreeHost, host))
        device = self._allocated(self._cuda.cudaMalloc(size), size, "GPU memory")
        self._taken.append((self._cuda.cudaFree, device))
        block = memoryview((ctypes.c_uint8 * size).from_address(int(host)))
        array = np.frombuffer(block, dtype=dtype, count=math.prod(shape)).reshape(shape)
        return Buffer(array, int(device), int(host))

    def to_device(self, buffer: "Buffer", count: int, stream: Any) -> None:
        """Copy the first `count` bytes of a tensor to the GPU, in the stream."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._checked(
            self._cuda.cudaMemcpyAsync(buffer.address, buffer.pinned, count, kind, stream)
        )

    def to_host(self, buffer: "Buffer", count: int, stream: Any) -> None:
        """Copy the first `count` bytes of a tensor back, in the stream."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._checked(
            self._cuda.cudaMemcpyAsync(buffer.pinned, buffer.address, count, kind, stream)
        )

    def free_memory(self) -> int:
        """Bytes of GPU memory that are free."""
        free, _ = self._checked(self._cuda.cudaMemGetInfo())
        return int(free)

    def _allocated(self, answer: Any, size: int, what: str) -> Any:
        if answer[0] == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            raise BackendError(out_of_memory(size, what))
        return self._checked(answer)

    def _checked(self, answer: Any) -> Any:
        """What a call gave beside its status."""
        error, *values = answer
        if error != self._cuda.cudaError_t.cudaSuccess:
            raise BackendError(f"CUDA failed: {self._words(error)}")
        return values[0] if len(values) == 1 else tuple(values)

    def _words(self, error: Any) -> str:
        _, text = self._cuda.cudaGetErrorString(error)
        return _text(text)


@dataclass(frozen=True, eq=False)
class Buffer:
    """A tensor's memory.

    Attributes:
        array: on the host, pinned.
        address: on the GPU.
        pinned: address of the array.
    """

    array: NDArray[Any]
    address: int
    pinned: int

    def first(self, count: int) -> Self:
        """The same memory, of the first `count` along the first axis."""
        return type(self)(self.array[:count], self.address, self.pinned)


def _release(taken: list[tuple[Callable[..., Any], Any]]) -> None:
    """In the other order than it was taken; a status tells nobody anything any more."""
    while taken:
        give_back, what = taken.pop()
        give_back(what)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def out_of_memory(size: int, what: str = "GPU memory") -> str:
    """What to say, and what to do about it."""
    return (
        f"{size / 1e6:.0f} MB of {what} were asked for and are not free: a smaller --batch, or "
        "--tensorrt workspace_mb=… of the build, needs less"
    )


def _state(name: str, place: str) -> GpuState:
    """What NVML tells of the GPU at a place on the PCI bus, each thing as far as it is known.

    CUDA numbers the GPUs that it may use, NVML all of them.
    """
    try:
        import pynvml
    except ImportError:
        return GpuState(name)
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByPciBusId(place.encode())
    except pynvml.NVMLError:
        return GpuState(name)

    def told(function: Callable[..., Any], *arguments: Any) -> Any:
        with suppress(pynvml.NVMLError):
            return function(handle, *arguments)
        return None

    reasons = told(pynvml.nvmlDeviceGetCurrentClocksEventReasons)
    if reasons is None:  # drivers before 535
        reasons = told(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        driver = ""
    return GpuState(
        name=name,
        driver=driver,
        graphics_mhz=told(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_GRAPHICS),
        memory_mhz=told(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM),
        temperature_c=told(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
        slowed_by=tuple(words for bit, words in _SLOWED_BY.items() if reasons & bit),
    )
