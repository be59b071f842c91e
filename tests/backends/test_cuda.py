import sys
from types import SimpleNamespace

import onnx
import pytest

from tests.passes.half_graphs import graph
from vadexport.backends.cuda import Cuda, GpuState, out_of_memory
from vadexport.backends.registry import get_backend
from vadexport.backends.tensorrt import rtx
from vadexport.backends.tensorrt.library import TENSORRT_RTX
from vadexport.backends.tensorrt.runner import load_engine
from vadexport.errors import BackendError, MissingDeviceError, MissingPackageError
from vadexport.targets import Target

#: Where the header of an engine names the version that built it: 1, then 1.7.1 as bytes 1, 7, 1.
VERSION_BYTES = slice(24, 28)


@pytest.fixture
def no_driver():
    """Skips where a GPU is at hand."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaDriverGetVersion()[1]:
        pytest.skip("there is a driver")


@pytest.fixture
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="engines are loaded by tensorrt_rtx")


@pytest.fixture
def gpu():
    """What is asked of a GPU in order to say why an engine does not fit it."""
    return SimpleNamespace(compute_capability=lambda: "sm89", free_memory=lambda: 3 << 30)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Bytes of an engine."""
    pytest.importorskip("tensorrt_rtx", reason="engines are built by tensorrt_rtx")
    folder = tmp_path_factory.mktemp("engine")
    model = graph("float[1,2,4,4] image", "y = Relu(image)", "float[1,2,4,4] y")
    onnx.save(model, folder / "graph.onnx")
    (folder / "artifact").mkdir()
    target = Target("tensorrt-rtx", "fp32", "sm86")
    rtx.compile_graph(folder / "graph.onnx", folder / "artifact", target)
    return (folder / "artifact" / "model.engine").read_bytes()


class TestNoGpu:
    @pytest.mark.usefixtures("no_driver")
    def test_is_said_in_one_line(self):
        with pytest.raises(MissingDeviceError) as caught:
            Cuda()
        assert str(caught.value) == "no NVIDIA GPU here: there is no driver for one"
        assert caught.value.exit_status == 3

    @pytest.mark.usefixtures("no_driver", "trt")
    def test_tensorrt_rtx_says_so(self, tmp_path):
        target = Target("tensorrt-rtx", "fp16", "sm86")
        for call in (
            lambda: rtx.check_device(target),
            lambda: rtx.open_runner(tmp_path, target, 1),
        ):
            with pytest.raises(MissingDeviceError, match="no NVIDIA GPU here"):
                call()

    def test_onnx_runtime_says_so(self):
        backend, target = get_backend("onnxruntime"), Target("onnxruntime", "fp16", "cuda")
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("ONNX Runtime is built for CUDA")
        with pytest.raises((MissingDeviceError, MissingPackageError)) as caught:
            backend.check_device(target)
        assert len(str(caught.value).splitlines()) == 1
        backend.check_device(Target("onnxruntime", "fp32"))  # the processor is always here

    def test_without_cuda_bindings_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cuda.bindings", None)
        with pytest.raises(MissingPackageError, match=r"cuda-bindings is not installed here"):
            Cuda()


class TestWords:
    def test_memory_that_is_not_free_names_size_and_options(self):
        text = out_of_memory(3_000_000_000)
        assert text.startswith("3000 MB of GPU memory were asked for and are not free")
        assert "--batch" in text
        assert "--tensorrt workspace_mb=" in text

    def test_a_state_is_json(self):
        state = GpuState("A GPU", "580.1", 1200, 5000, 71, ("power limit",))
        assert state.to_json()["slowed_by"] == ("power limit",)
        assert GpuState("A GPU").to_json() == {
            "name": "A GPU",
            "driver": "",
            "graphics_mhz": None,
            "memory_mhz": None,
            "temperature_c": None,
            "slowed_by": (),
        }


class TestEngines:
    @pytest.fixture
    def refused(self, trt, gpu, tmp_path):
        """The one line that refuses the bytes of an engine."""

        def refuse(data, runtime=None):
            path = tmp_path / "model.engine"
            path.write_bytes(data)
            runtime = runtime or trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
            with pytest.raises(BackendError) as caught:
                load_engine(TENSORRT_RTX, trt, runtime, path, gpu)
            text = str(caught.value)
            assert len(text.splitlines()) == 1
            assert "model.engine" in text
            return text

        return refuse

    @pytest.mark.parametrize(
        "data",
        [b"", b"vtrt", b"no engine" * 1000, bytes(64), None],
        ids=["empty", "short", "garbage", "zeros", "truncated"],
    )
    def test_what_is_none_is_damaged(self, refused, engine, data):
        text = refused(engine[:40] if data is None else data)
        assert text == "model.engine is damaged: build it again"

    def test_header_names_the_version(self, engine, trt):
        version = [int(part) for part in trt.__version__.split(".")]
        assert list(engine[VERSION_BYTES]) == [*version[:3], version[3] & 255][-4:]

    def test_of_another_version_is_to_be_built_again(self, refused, engine):
        # Without a driver the library asks for the GPU first, and tells no more than "invalid".
        other = bytearray(engine)
        other[VERSION_BYTES] = bytes([1, 9, 9, 9])
        text = refused(bytes(other))
        assert text.startswith("model.engine is ")
        assert "of another version" in text or "not valid here" in text
        assert "build it again" in text

    @pytest.mark.usefixtures("no_driver")
    def test_a_whole_one_is_not_called_damaged_where_there_is_no_driver(self, refused, engine):
        text = refused(engine)
        assert "damaged" not in text
        assert text.startswith("model.engine is not valid here")


class Runtime:
    """A library's diagnosis, as it would come where a GPU is."""

    engine_header_size = 64

    def __init__(self, validity, faults=0, engine=None):
        self.validity, self.faults, self.engine = validity, faults, engine

    def get_engine_validity(self, header):
        assert len(header) <= self.engine_header_size
        return self.validity, self.faults

    def deserialize_cuda_engine(self, _plan):
        return self.engine


class TestDiagnosis:
    @pytest.mark.parametrize(
        ("faults", "words"),
        [
            (["VERSION_MISMATCH"], "of another version than 1."),
            (["UNSUPPORTED_CC"], "for other GPUs: build it with target …@sm89"),
            (["OLD_CUDA_DRIVER"], "too new for the driver: update the driver"),
            (["OLD_CUDA_RUNTIME"], "too new for CUDA's runtime here: update it"),
            (["INSUFFICIENT_GPU_MEMORY"], "too large for the GPU (3072 MB free): a smaller"),
            (["MALFORMED_ENGINE"], "damaged: build it again"),
            (["CUDA_ERROR"], "not checked, for CUDA failed: see nvidia-smi"),
            (["UNSUPPORTED_CC", "OLD_CUDA_DRIVER"], "…@sm89; too new for the driver"),
            ([], "not valid here: build it again"),
        ],
        ids=lambda value: "+".join(value) if isinstance(value, list) else "",
    )
    def test_is_put_into_words(self, trt, gpu, tmp_path, faults, words):
        file = tmp_path / "model.engine"
        file.write_bytes(bytes(1000))
        bits = sum(int(getattr(trt.EngineInvalidityDiagnostics, name)) for name in faults)
        runtime = Runtime(trt.EngineValidity.INVALID, bits)
        with pytest.raises(BackendError) as caught:
            load_engine(TENSORRT_RTX, trt, runtime, file, gpu)
        assert str(caught.value).startswith("model.engine is ")
        assert words in str(caught.value)

    def test_what_the_header_does_not_show(self, trt, gpu, tmp_path):
        file = tmp_path / "model.engine"
        file.write_bytes(bytes(1000))
        with pytest.raises(BackendError, match=r"cannot load model\.engine: it is damaged, of ano"):
            load_engine(TENSORRT_RTX, trt, Runtime(trt.EngineValidity.VALID), file, gpu)

    @pytest.mark.parametrize("validity", ["VALID", "SUBOPTIMAL"])
    def test_an_engine_that_fits_is_given(self, trt, gpu, tmp_path, validity):
        file = tmp_path / "model.engine"
        file.write_bytes(bytes(1000))
        runtime = Runtime(getattr(trt.EngineValidity, validity), 0, "an engine")
        assert load_engine(TENSORRT_RTX, trt, runtime, file, gpu) == "an engine"

    def test_tensorrt_has_none_and_says_what_may_be_wrong(self, trt, gpu, tmp_path):
        file = tmp_path / "model.engine"
        file.write_bytes(bytes(1000))
        runtime = SimpleNamespace(deserialize_cuda_engine=lambda _plan: None)
        with pytest.raises(BackendError, match=r"for another GPU than this one \(sm89\)"):
            load_engine(TENSORRT_RTX, trt, runtime, file, gpu)
