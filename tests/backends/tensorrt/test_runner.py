import json
from types import SimpleNamespace

import numpy as np
import pytest

from vadexport.backends.cuda import Buffer, GpuState
from vadexport.backends.tensorrt import runner as running
from vadexport.backends.tensorrt.settings import TensorRTSettings
from vadexport.errors import BackendError, MissingDeviceError
from vadexport.targets import Target

# No GPU is needed to see how calls are cut, filled up and recorded: a stand-in of CUDA's memory and
# of the library, whose engine gives each image's mean. What a GPU does with it is in tests/gpu.

SHAPE = (4, 6, 1)


class FakeCuda:
    """Memory that is only the host's; what is put into the stream happens at once."""

    def __init__(self, extra="cuda"):
        del extra
        self.arrays, self.recorded, self.waits = {}, 0, 0
        self.records = True

    def state(self):
        return GpuState("a GPU")

    def compute_capability(self):
        return "sm86"

    def free_memory(self):
        return 1 << 30

    def new_stream(self):
        return 7

    def wait(self, stream):
        assert stream == 7
        self.waits += 1

    def allocate(self, shape, dtype):
        address = len(self.arrays) + 1
        self.arrays[address] = np.zeros(shape, dtype)
        return Buffer(self.arrays[address], address, address)

    def to_device(self, buffer, count, stream):
        assert (count, stream) == (buffer.array.nbytes, 7)

    to_host = to_device

    def captured(self, stream, work):
        assert stream == 7
        self.recorded += 1
        return work if self.records else None


class FakeEngine:
    """Of one input and two outputs; its context is itself."""

    num_io_tensors = 3
    device_memory_size_v2 = 5_000_000

    def __init__(self, cuda, batch, profile):
        self.cuda, self.batch, self.profile = cuda, batch, profile
        self.addresses, self.shape, self.calls = {}, None, []
        self.context = self

    def get_tensor_name(self, number):
        return ("image", "raw_score", "anomaly_map")[number]

    def get_tensor_dtype(self, name):
        return np.uint8 if name == "image" else np.float32

    def get_tensor_profile_shape(self, name, number):
        assert (name, number) == ("image", 0)
        return [(size, *SHAPE) for size in self.profile]

    def get_tensor_shape(self, name):
        batch = self.batch if self.shape is None else self.shape[0]
        return {
            "image": (batch, *SHAPE),
            "raw_score": (batch,),
            "anomaly_map": (batch, 1, 4, 6),
        }[name]

    def set_input_shape(self, name, shape):
        assert name == "image"
        low, _, high = self.profile
        self.shape = shape
        return low <= shape[0] <= high

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        assert stream == 7
        count = self.shape[0]
        self.calls.append(count)
        image = self.cuda.arrays[self.addresses["image"]][:count].astype(np.float32)
        self.cuda.arrays[self.addresses["raw_score"]][:count] = image.mean((1, 2, 3))
        self.cuda.arrays[self.addresses["anomaly_map"]][:count, 0] = image[..., 0]
        return True


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Open a runner on an engine of a batch (None: dynamic) and the batches of its profile."""

    def opened(batch, profile=None, *, has_room=True, **changes):
        cuda = FakeCuda()
        vars(cuda).update(changes)
        engine = FakeEngine(cuda, -1 if batch is None else batch, profile or (batch,) * 3)
        engine.context = engine if has_room else None
        runtime = SimpleNamespace(
            deserialize_cuda_engine=lambda plan: engine if plan else None, logger=None
        )
        trt = SimpleNamespace(
            ILogger=type("ILogger", (), {"Severity": SimpleNamespace(WARNING=2)}),
            Runtime=lambda _log: runtime,
            nptype=lambda dtype: dtype,
        )
        library = SimpleNamespace(
            words="TensorRT",
            extra="tensorrt",
            ahead_of_time=False,
            load=lambda: trt,
            version=lambda: "11.0",
            start=lambda kind, log: kind(log),
            make_context=lambda _trt, engine, *, fixed_shape: (engine.context, fixed_shape),
        )
        monkeypatch.setattr(running, "Cuda", lambda _extra: cuda)
        (tmp_path / "model.engine").write_bytes(b"x" * 100)
        settings = json.dumps(TensorRTSettings().to_json())
        (tmp_path / "settings.json").write_text(settings)
        runner = running.TensorRTRunner(library, tmp_path, Target("tensorrt", "fp16"), 1)
        return SimpleNamespace(runner=runner, engine=engine, cuda=cuda)

    return opened


def images(count):
    return np.random.default_rng(count).integers(0, 256, (count, *SHAPE), np.uint8)


def expected(array):
    return array.astype(np.float32).mean((1, 2, 3))


def test_a_fixed_batch_is_recorded_once_and_then_replayed(opened):
    it = opened(2)
    assert (it.cuda.recorded, it.engine.calls) == (1, [2])
    for number in range(3):
        call = images(2) // (number + 1)
        np.testing.assert_allclose(it.runner.infer(call)["raw_score"], expected(call), rtol=1e-6)
    assert it.engine.calls == [2, 2, 2, 2]


def test_what_cannot_be_recorded_runs_without(opened):
    it = opened(1, records=False)
    call = images(1)
    np.testing.assert_allclose(it.runner.infer(call)["raw_score"], expected(call), rtol=1e-6)


@pytest.mark.parametrize(("count", "calls"), [(1, [1]), (4, [4]), (9, [4, 4, 1])])
def test_a_dynamic_batch_is_cut_at_the_largest(opened, count, calls):
    it = opened(None, (1, 2, 4))
    call = images(count)
    outputs = it.runner.infer(call)
    np.testing.assert_allclose(outputs["raw_score"], expected(call), rtol=1e-6)
    np.testing.assert_array_equal(outputs["anomaly_map"][:, 0], call[..., 0])
    assert it.engine.calls == calls
    assert it.cuda.recorded == 0


def test_fewer_images_than_the_smallest_batch_are_filled_up(opened):
    it = opened(None, (3, 3, 8))
    call = images(2)
    found = it.runner.infer(call)["raw_score"]
    np.testing.assert_allclose(found, expected(call), rtol=1e-6)
    assert it.engine.calls == [3]


def test_results_are_copies(opened):
    it = opened(1)
    first = it.runner.infer(images(1))["raw_score"]
    kept = first.copy()
    it.runner.infer(255 - images(1))
    np.testing.assert_array_equal(first, kept)


def test_says_what_it_runs_as(opened):
    execution = opened(1).runner.execution
    assert execution.backend == "TensorRT 11.0"
    assert execution.precision == "float16 network, float32 score head"
    assert execution.device == "a GPU (sm86)"


def test_an_engine_without_room_for_its_memory(opened):
    with pytest.raises(BackendError, match=r"^5 MB of GPU memory were asked for .*workspace_mb="):
        opened(1, has_room=False)


def test_a_shape_that_the_engine_does_not_take(opened, monkeypatch):
    monkeypatch.setattr(FakeEngine, "set_input_shape", lambda *_: False)
    with pytest.raises(BackendError, match="the engine takes no images of 1×4×6×1"):
        opened(1)


class TestDevice:
    def library(self, *, ahead_of_time=True):
        return SimpleNamespace(
            words="TensorRT-RTX", extra="tensorrt-rtx", ahead_of_time=ahead_of_time, load=dict
        )

    def check(self, monkeypatch, here, device, **changes):
        cuda = SimpleNamespace(compute_capability=lambda: here)
        monkeypatch.setattr(running, "Cuda", lambda _extra: cuda)
        running.check_device(self.library(**changes), Target("tensorrt-rtx", "fp16", device))

    @pytest.mark.parametrize(("here", "device"), [("sm86", ""), ("sm86", "sm75+sm86")])
    def test_that_fits(self, monkeypatch, here, device):
        self.check(monkeypatch, here, device)
        self.check(monkeypatch, "sm90", "", ahead_of_time=False)

    @pytest.mark.parametrize(
        ("here", "device", "told"),
        [
            ("sm86", "sm75", "the GPU here is sm86, and the engine is for sm75"),
            ("sm90", "", "the GPU here is sm90, TensorRT-RTX runs on sm75"),
            ("sm75", "", "build it for target tensorrt-rtx:fp16@sm75"),
        ],
    )
    def test_that_does_not(self, monkeypatch, here, device, told):
        with pytest.raises(MissingDeviceError, match=told):
            self.check(monkeypatch, here, device)
