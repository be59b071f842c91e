"""What is made of CUDA's answers. The stand-in has the real one's types and constants."""

import gc
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from vadexport.backends import cuda
from vadexport.backends.cuda import Cuda
from vadexport.errors import BackendError, MissingDeviceError

real = pytest.importorskip("cuda.bindings.runtime")
GOOD = real.cudaError_t.cudaSuccess
NO_ROOM = real.cudaError_t.cudaErrorMemoryAllocation
NO_CAPTURE = real.cudaError_t.cudaErrorStreamCaptureUnsupported


class Runtime:
    """Host memory for all; `answers` are the statuses of calls that shall fail."""

    cudaError_t = real.cudaError_t  # noqa: N815 - CUDA's own names
    cudaMemcpyKind = real.cudaMemcpyKind  # noqa: N815
    cudaStreamCaptureMode = real.cudaStreamCaptureMode  # noqa: N815
    cudaStreamNonBlocking = real.cudaStreamNonBlocking  # noqa: N815

    def __init__(self, **answers):
        self.answers, self.called, self.kept = answers, [], []

    def __getattr__(self, name):
        def call(*arguments):
            self.called.append((name, *arguments))
            return (self.answers.get(name, GOOD), name)

        return call

    def cudaDriverGetVersion(self):  # noqa: N802
        return GOOD, self.answers.get("driver", 13000)

    def cudaGetDeviceCount(self):  # noqa: N802
        return self.answers.get("devices", (GOOD, 1))

    def cudaGetErrorString(self, error):  # noqa: N802
        return GOOD, f"words of {error.name}".encode()

    def cudaMallocHost(self, size):  # noqa: N802
        self.kept.append(np.zeros(size, np.uint8))
        return self.answers.get("cudaMallocHost", GOOD), self.kept[-1].ctypes.data

    def cudaMalloc(self, size):  # noqa: N802
        return self.answers.get("cudaMalloc", GOOD), 1000 + size

    def names(self, *wanted):
        return [name for name, *_ in self.called if name in wanted]


@pytest.fixture
def opened(monkeypatch):
    """CUDA's runtime with these answers, and what uses it."""

    def opened(**answers):
        runtime = Runtime(**answers)
        monkeypatch.setattr(sys.modules["cuda.bindings"], "runtime", runtime)
        return Cuda(), runtime

    return opened


class TestDevices:
    def test_no_driver(self, opened):
        with pytest.raises(MissingDeviceError, match="no driver"):
            opened(driver=0)

    def test_a_driver_and_no_gpu(self, opened):
        with pytest.raises(
            MissingDeviceError, match=r"^no NVIDIA GPU that works here: none was fo"
        ):
            opened(devices=(GOOD, 0))

    def test_a_driver_that_is_too_old(self, opened):
        error = real.cudaError_t.cudaErrorInsufficientDriver
        with pytest.raises(MissingDeviceError, match="words of cudaErrorInsufficientDriver"):
            opened(devices=(error, 0))


class TestMemory:
    def test_is_an_array_that_the_copies_use(self, opened):
        gpu, runtime = opened()
        buffer = gpu.allocate((2, 3), np.float32)
        buffer.array[:] = 7
        assert buffer.array.dtype == np.float32
        assert (buffer.array.shape, buffer.address) == ((2, 3), 1024)
        np.testing.assert_array_equal(runtime.kept[0].view(np.float32), np.full(6, 7, np.float32))
        gpu.to_device(buffer, 24, "stream")
        gpu.to_host(buffer.first(1), 12, "stream")
        copies = [call[1:] for call in runtime.called if call[0] == "cudaMemcpyAsync"]
        pinned, kind = runtime.kept[0].ctypes.data, real.cudaMemcpyKind
        assert copies == [
            (1024, pinned, 24, kind.cudaMemcpyHostToDevice, "stream"),
            (pinned, 1024, 12, kind.cudaMemcpyDeviceToHost, "stream"),
        ]

    @pytest.mark.parametrize(
        ("call", "what"), [("cudaMalloc", "GPU memory"), ("cudaMallocHost", "pinned memory")]
    )
    def test_that_is_not_free_names_size_and_options(self, opened, call, what):
        gpu, _ = opened(**{call: NO_ROOM})
        with pytest.raises(BackendError) as caught:
            gpu.allocate((1500, 1000), np.float32)
        text = str(caught.value)
        assert text.startswith(f"6 MB of {what} were asked for and are not free: a smaller --batch")
        assert "workspace_mb=" in text

    def test_another_fault_is_told_in_cudas_words(self, opened):
        gpu, _ = opened(cudaMalloc=real.cudaError_t.cudaErrorNoDevice)
        with pytest.raises(BackendError, match=r"^CUDA failed: words of cudaErrorNoDevice$"):
            gpu.allocate((1,), np.float32)

    def test_is_given_back_in_the_other_order(self, opened):
        gpu, runtime = opened()
        gpu.new_stream()
        gpu.allocate((4,), np.uint8)
        assert runtime.names("cudaFree", "cudaFreeHost", "cudaStreamDestroy") == []
        del gpu
        gc.collect()
        order = ["cudaFree", "cudaFreeHost", "cudaStreamDestroy"]
        assert runtime.names(*order) == order

    def test_of_a_tensor_that_half_fits_is_given_back(self, opened):
        gpu, runtime = opened(cudaMalloc=NO_ROOM)
        with pytest.raises(BackendError):
            gpu.allocate((4,), np.uint8)
        del gpu
        gc.collect()
        assert runtime.names("cudaFree", "cudaFreeHost") == ["cudaFreeHost"]


class TestCapture:
    def test_is_launched_as_one(self, opened):
        gpu, runtime = opened()
        work = []
        launch = gpu.captured("stream", lambda: work.append(1))
        assert work == [1]
        launch()
        launch()
        assert work == [1]
        assert runtime.names("cudaGraphLaunch") == ["cudaGraphLaunch"] * 2
        assert runtime.names("cudaGraphDestroy") == ["cudaGraphDestroy"]

    @pytest.mark.parametrize("step", ["cudaStreamEndCapture", "cudaGraphInstantiate"])
    def test_what_cannot_be_recorded_gives_none(self, opened, step):
        gpu, runtime = opened(**{step: NO_CAPTURE})
        assert gpu.captured("stream", lambda: None) is None
        assert runtime.names("cudaStreamBeginCapture", "cudaGraphLaunch") == [
            "cudaStreamBeginCapture"
        ]

    def test_work_that_fails_ends_the_recording(self, opened):
        gpu, runtime = opened()

        def work():
            raise BackendError("not now")

        assert gpu.captured("stream", work) is None
        assert runtime.names("cudaStreamEndCapture") == ["cudaStreamEndCapture"]


class TestState:
    def told(self, monkeypatch, **answers):
        """What NVML tells, each answer a value or an error that is raised."""
        nvml = pytest.importorskip("pynvml")

        def answer(name):
            def call(*_):
                value = answers.get(name, 0)
                if isinstance(value, Exception):
                    raise value
                return value

            return call

        functions = {name: answer(name) for name in dir(nvml) if name.startswith("nvml")}
        constants = {name: getattr(nvml, name) for name in dir(nvml) if name.startswith("NVML")}
        monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**functions, **constants))
        return cuda._state("a GPU", "00000000:01:00.0")

    def test_names_what_slows_it_down(self, monkeypatch):
        nvml = pytest.importorskip("pynvml")
        bits = (
            nvml.nvmlClocksEventReasonSwPowerCap
            | nvml.nvmlClocksThrottleReasonHwThermalSlowdown
            | nvml.nvmlClocksEventReasonGpuIdle
        )
        state = self.told(
            monkeypatch,
            nvmlDeviceGetCurrentClocksEventReasons=bits,
            nvmlSystemGetDriverVersion="580.1",
            nvmlDeviceGetClockInfo=1410,
            nvmlDeviceGetTemperature=88,
        )
        assert state.slowed_by == ("power limit", "temperature (hardware)")
        assert (state.driver, state.graphics_mhz, state.temperature_c) == ("580.1", 1410, 88)

    def test_drivers_that_have_an_older_name_for_it(self, monkeypatch):
        nvml = pytest.importorskip("pynvml")
        state = self.told(
            monkeypatch,
            nvmlDeviceGetCurrentClocksEventReasons=nvml.NVMLError(
                nvml.NVML_ERROR_FUNCTION_NOT_FOUND
            ),
            nvmlDeviceGetCurrentClocksThrottleReasons=(
                nvml.nvmlClocksThrottleReasonSwThermalSlowdown
            ),
        )
        assert state.slowed_by == ("temperature (driver)",)

    def test_what_it_does_not_tell_is_unknown(self, monkeypatch):
        nvml = pytest.importorskip("pynvml")
        unknown = nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        state = self.told(
            monkeypatch,
            nvmlDeviceGetClockInfo=unknown,
            nvmlDeviceGetTemperature=unknown,
            nvmlSystemGetDriverVersion="1",
        )
        assert (state.graphics_mhz, state.memory_mhz, state.temperature_c) == (None, None, None)
        assert (state.name, state.driver, state.slowed_by) == ("a GPU", "1", ())

    def test_without_nvml_it_is_the_name(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert cuda._state("a GPU", "") == cuda.GpuState("a GPU")
