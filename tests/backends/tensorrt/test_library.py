import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vadexport.backends.tensorrt import enterprise, rtx
from vadexport.backends.tensorrt.library import TENSORRT, TENSORRT_RTX, check_settings
from vadexport.backends.tensorrt.settings import DEFAULT_SETTINGS, TensorRTSettings
from vadexport.errors import InputError, MissingPackageError
from vadexport.targets import Target

LIBRARIES = [TENSORRT, TENSORRT_RTX]
OF_TENSORRT = {
    "timing_cache": Path("timings"),
    "version_compatible": True,
    "hardware_compatible": True,
}


class StandIn:
    """A builder's configuration that keeps what TensorRT-RTX takes and forgets."""

    def __init__(self, *, accepts=True):
        self.accepts, self.flags, self.cache = accepts, set(), None
        self.hardware_compatibility_level = None

    def __getattr__(self, name):
        if name in ("set_flag", "clear_flag"):
            return self.flags.add if name == "set_flag" else self.flags.discard
        raise AttributeError(name)

    def create_timing_cache(self, kept):
        return SimpleNamespace(kept=kept, serialize=lambda: memoryview(kept + b"+timed"))

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch  # another GPU's timings choose the wrong kernels
        self.cache = cache
        return self.accepts

    def get_timing_cache(self):
        return self.cache


@pytest.fixture
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="stands for both: its API is the same")


@pytest.fixture
def config(trt):
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    yield builder.create_builder_config()
    del builder  # no earlier than what it made


class TestMissing:
    @pytest.mark.parametrize(
        ("library", "backend"),
        [(TENSORRT, enterprise), (TENSORRT_RTX, rtx)],
        ids=["tensorrt", "tensorrt-rtx"],
    )
    def test_every_way_in_names_the_extra(self, library, backend, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, library.module, None)
        target = Target(library.name, "fp16")
        for call in (
            library.load,
            library.version,
            backend.version,
            lambda: backend.compile_graph(tmp_path / "graph.onnx", tmp_path, target),
            lambda: backend.check_device(target),
            lambda: backend.open_runner(tmp_path, target, 1),
        ):
            with pytest.raises(MissingPackageError) as caught:
                call()
            assert str(caught.value) == (
                f"{library.package} is not installed here: pip install 'vadexport[{library.name}]'"
            )
        assert list(tmp_path.iterdir()) == []


class TestSettingsOfTheOther:
    @pytest.mark.parametrize(("name", "value"), OF_TENSORRT.items())
    def test_are_refused_where_no_target_is_of_tensorrt(self, name, value):
        settings = TensorRTSettings(**{name: value})
        check_settings({"tensorrt", "tensorrt-rtx"}, settings)
        with pytest.raises(InputError, match=f"tensorrt setting {name} is for targets tensorrt:"):
            check_settings({"tensorrt-rtx", "openvino"}, settings)

    def test_all_others_are_for_both(self):
        settings = TensorRTSettings((2, 3, 4), 64, 5, tf32=True, time_limit_s=3)
        for library in LIBRARIES:
            check_settings({library.name}, settings)


class TestBuilder:
    @pytest.mark.parametrize("library", LIBRARIES, ids=lambda each: each.name)
    def test_networks_have_the_precision_of_the_graph(self, library, trt):
        builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
        network = builder.create_network(library.network_flags(trt))
        assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    @pytest.mark.parametrize("library", LIBRARIES, ids=lambda each: each.name)
    @pytest.mark.parametrize("tf32", [True, False])
    def test_tf32_is_off_unless_asked_for(self, library, trt, config, tf32):
        assert config.get_flag(trt.BuilderFlag.TF32)  # what the library would do
        library.configure(trt, config, "", TensorRTSettings(tf32=tf32))
        assert config.get_flag(trt.BuilderFlag.TF32) == tf32

    @pytest.mark.parametrize("library", LIBRARIES, ids=lambda each: each.name)
    def test_level_and_workspace(self, library, trt, config):
        pool, level = trt.MemoryPoolType.WORKSPACE, config.builder_optimization_level
        before = config.get_memory_pool_limit(pool)
        library.configure(trt, config, "", DEFAULT_SETTINGS)
        assert config.get_memory_pool_limit(pool) == before
        assert config.builder_optimization_level == level
        library.configure(trt, config, "", TensorRTSettings(workspace_mb=96, level=1))
        assert config.get_memory_pool_limit(pool) == 96 * 2**20
        assert config.builder_optimization_level == 1

    def test_generations_of_tensorrt_rtx(self, trt, config):
        TENSORRT_RTX.configure(trt, config, "sm86+sm120", DEFAULT_SETTINGS)
        assert config.num_compute_capabilities == 2
        found = [config.get_compute_capability(number) for number in range(2)]
        assert found == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM120]

    def test_every_generation_that_a_target_can_name_is_known_to_the_library(self, trt):
        from vadexport.targets import COMPUTE_CAPABILITIES

        known = {name.lower() for name in trt.ComputeCapability.__members__ if name[-1].isdigit()}
        assert known == set(COMPUTE_CAPABILITIES)

    @pytest.mark.parametrize("asked", [True, False])
    def test_compatibility_of_tensorrt(self, trt, config, asked):
        settings = TensorRTSettings(version_compatible=asked, hardware_compatible=asked)
        TENSORRT.configure(trt, config, "", settings)
        assert config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE) == asked
        kept = StandIn()
        TENSORRT.configure(trt, kept, "", settings)
        expected = trt.HardwareCompatibilityLevel.AMPERE_PLUS if asked else None
        assert kept.hardware_compatibility_level == expected

    @pytest.mark.parametrize("asked", [True, False])
    def test_a_flag_that_a_later_version_dropped(self, trt, config, asked):
        class Later:
            """The library without TF32."""

            BuilderFlag = SimpleNamespace()

            def __getattr__(self, name):
                return getattr(trt, name)

        if not asked:
            TENSORRT.configure(Later(), config, "", DEFAULT_SETTINGS)  # off it is anyway
            return
        with pytest.raises(InputError, match="this version of TensorRT knows no TF32"):
            TENSORRT.configure(Later(), config, "", TensorRTSettings(tf32=True))


class TestTimingCache:
    def test_is_made_and_kept(self, trt, tmp_path):
        settings = TensorRTSettings(timing_cache=tmp_path / "timings")
        config = StandIn()
        TENSORRT.configure(trt, config, "", settings)
        assert config.cache.kept == b""
        TENSORRT.keep_timings(config, settings)
        assert (tmp_path / "timings").read_bytes() == b"+timed"

    def test_is_used_again_and_pinned(self, trt, tmp_path):
        (tmp_path / "timings").write_bytes(b"earlier")
        config = StandIn()
        TENSORRT.configure(trt, config, "", TensorRTSettings(timing_cache=tmp_path / "timings"))
        assert config.cache.kept == b"earlier"
        assert trt.BuilderFlag.EDITABLE_TIMING_CACHE in config.flags

    def test_of_another_gpu_is_refused_and_stays(self, trt, tmp_path):
        file = tmp_path / "timings"
        file.write_bytes(b"of another GPU")
        with pytest.raises(InputError) as caught:
            TENSORRT.configure(trt, StandIn(accepts=False), "", TensorRTSettings(timing_cache=file))
        assert str(caught.value) == (
            f"timing cache {file} is of another GPU or version of TensorRT: name another file"
        )
        assert file.read_bytes() == b"of another GPU"

    def test_without_one_nothing_is_written(self, tmp_path):
        TENSORRT.keep_timings(StandIn(), DEFAULT_SETTINGS)
        TENSORRT_RTX.keep_timings(StandIn(), DEFAULT_SETTINGS)
        assert list(tmp_path.iterdir()) == []


class TestContext:
    @pytest.mark.parametrize("fixed", [True, False])
    def test_tensorrt_leaves_the_cuda_graph_to_the_caller(self, trt, fixed):
        engine = SimpleNamespace(create_execution_context=lambda: "a context")
        found = TENSORRT.make_context(trt, engine, fixed_shape=fixed)
        assert found == ("a context", fixed)

    @pytest.mark.parametrize("fixed", [True, False])
    def test_tensorrt_rtx_captures_it_itself(self, trt, fixed):
        made = SimpleNamespace(cuda_graph_strategy=None)
        engine = SimpleNamespace(
            create_runtime_config=lambda: made, create_execution_context=lambda config: config
        )
        context, captures = TENSORRT_RTX.make_context(trt, engine, fixed_shape=fixed)
        assert context is made
        assert not captures
        expected = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if fixed else None
        assert made.cuda_graph_strategy == expected
