"""The two libraries, and what they do differently.

| | TensorRT 10 and 11 | TensorRT-RTX |
|---|---|---|
| builds on | the GPU that the engine is for | any processor, no GPU, no driver |
| engine runs on | that GPU's generation (others: `hardware_compatible`) | the generations named |
| version | the one that built it (newer: `version_compatible`) | the one that built it |
| timing cache | kept and pinned | none; setting one asks for a GPU |
| kernels | chosen and compiled by the build | compiled for the GPU when it is loaded |
| CUDA graph | captured by the caller | captured by the library |
| precision | of the ONNX graph (10: by `STRONGLY_TYPED`; 11: always) | of the ONNX graph |
"""

import importlib
import importlib.metadata
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vadexport.backends.tensorrt.settings import TensorRTSettings
from vadexport.errors import BackendError, InputError, MissingPackageError
from vadexport.files import written_whole


@dataclass(frozen=True)
class Library:
    """One of the two.

    Attributes:
        name: as in targets.
        words: for readers.
        module: to import.
        package: as pip names it.
        extra: of vadexport, that brings it.
        ahead_of_time: whether it builds without a GPU, for GPUs that are named.
    """

    name: str
    words: str
    module: str
    package: str
    extra: str
    ahead_of_time: bool

    def load(self) -> Any:
        """The imported module; raises MissingPackageError."""
        try:
            return importlib.import_module(self.module)
        except ImportError:
            raise MissingPackageError(self.package, self.extra) from None

    def version(self) -> str:
        """Version of the installed library; raises MissingPackageError."""
        return str(self.load().__version__)

    def start(self, kind: Any, log: Any) -> Any:
        """A builder or a runtime that writes to the log.

        Raises:
            BackendError: the library gives none, such as where its CUDA is newer than the driver.
        """
        try:
            return kind(log)
        except TypeError:  # what its bindings make of nothing
            raise BackendError(
                f"{self.words} {self.version()} cannot start: {log.last()} (a driver that is too "
                "old for it? See nvidia-smi)"
            ) from None

    def network_flags(self, trt: Any) -> int:
        """Creation flags of a network whose precision is the graph's."""
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def configure(self, trt: Any, config: Any, device: str, settings: TensorRTSettings) -> None:
        """Set up the builder for a device, as a target names it."""
        _set_flag(trt, config, "TF32", on=settings.tf32)
        if settings.workspace_mb is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
        if settings.level is not None:
            config.builder_optimization_level = settings.level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if self.ahead_of_time:
            generations = [each.upper() for each in device.split("+") if each]
            if generations:
                config.num_compute_capabilities = len(generations)
            for number, name in enumerate(generations):
                config.set_compute_capability(getattr(trt.ComputeCapability, name), number)
            return
        if settings.version_compatible:
            _set_flag(trt, config, "VERSION_COMPATIBLE", on=True)
        if settings.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if settings.timing_cache is not None:
            _use_timing_cache(trt, config, settings.timing_cache)

    def keep_timings(self, config: Any, settings: TensorRTSettings) -> None:
        """Write the timing cache, once an engine was built."""
        if not self.ahead_of_time and settings.timing_cache is not None:
            with written_whole(settings.timing_cache) as file:
                file.write_bytes(bytes(config.get_timing_cache().serialize()))

    def make_context(self, trt: Any, engine: Any, *, fixed_shape: bool) -> tuple[Any, bool]:
        """An execution context, and whether the caller shall capture a CUDA graph of its calls."""
        if not self.ahead_of_time:
            return engine.create_execution_context(), fixed_shape
        config = engine.create_runtime_config()
        if fixed_shape:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config), False


def check_settings(backends: Collection[str], settings: TensorRTSettings) -> None:
    """Refuse settings that no backend of a build has, before anything is traced.

    Raises:
        InputError: a setting of TensorRT's own, and no target of it.
    """
    of_tensorrt = {
        "timing_cache": settings.timing_cache is not None,
        "version_compatible": settings.version_compatible,
        "hardware_compatible": settings.hardware_compatible,
    }
    named = next((name for name, is_set in of_tensorrt.items() if is_set), None)
    if named is not None and TENSORRT.name not in backends:
        raise InputError(
            f"tensorrt setting {named} is for targets tensorrt:…, and there is none; engines of "
            "TensorRT-RTX are for the GPU generations that the target names, and for one version"
        )


def _set_flag(trt: Any, config: Any, name: str, *, on: bool) -> None:
    """Set or clear a builder flag; clearing one that a later version dropped is nothing."""
    flag = getattr(trt.BuilderFlag, name, None)
    if flag is None:
        if on:
            raise InputError(f"this version of TensorRT knows no {name}")
        return
    (config.set_flag if on else config.clear_flag)(flag)


def _use_timing_cache(trt: Any, config: Any, file: Path) -> None:
    """Take the timings of an earlier build, if any; a kernel is then chosen by these alone."""
    kept = b""
    try:
        with suppress(FileNotFoundError):
            kept = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read timing cache {file}: {error.strerror}") from None
    if hasattr(trt.BuilderFlag, "EDITABLE_TIMING_CACHE"):  # before the cache is made
        _set_flag(trt, config, "EDITABLE_TIMING_CACHE", on=True)
    cache = config.create_timing_cache(kept)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise InputError(
            f"timing cache {file} is of another GPU or version of TensorRT: name another file"
        )


TENSORRT: Final = Library(
    name="tensorrt",
    words="TensorRT",
    module="tensorrt",
    package="tensorrt",
    extra="tensorrt",
    ahead_of_time=False,
)
TENSORRT_RTX: Final = Library(
    name="tensorrt-rtx",
    words="TensorRT-RTX",
    module="tensorrt_rtx",
    package="tensorrt-rtx-cu12",
    extra="tensorrt-rtx",
    ahead_of_time=True,
)
