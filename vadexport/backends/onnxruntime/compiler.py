"""The ONNX file is what ONNX Runtime runs: compiling checks it and copies it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vadexport.backends.cuda import Cuda
from vadexport.backends.tensorrt.settings import DEFAULT_SETTINGS, TensorRTSettings
from vadexport.errors import BackendError, MissingDeviceError, MissingPackageError
from vadexport.machine import has_vnni
from vadexport.targets import CUDA, Target
from vadexport.telemetry import forbid_telemetry

MODEL_FILE = "model.onnx"
CUDA_PROVIDER = "CUDAExecutionProvider"
#: Entry of a session's options: without VNNI, products of uint8 by int8 are added in int32, as they
#: are with it. By default ONNX Runtime adds pairs of them in int16 there, which saturates;
#: so it multiplies uint8 by uint8 (benchmarks/int8_saturation.py has the time).
_EXACT_PRODUCTS = ("session.x64quantprecision", "1")

_FATAL = 4
#: What ONNX Runtime says where it is to turn one weight into uint8 twice.
_SHARED = "Attempt to replace the existing tensor"
#: Entry by which layers between quantisers are computed in float32.
_IN_FLOAT = ("session.disable_quant_qdq", "1")


def open_session(model: Path | bytes, options: Any, providers: Sequence[Any]) -> Any:
    """A session that adds INT8 products exactly.

    Without VNNI, ONNX Runtime turns weights into uint8 for that, and fails where several layers
    share one (seen with 1.31). Such a graph is computed in float32 between its quantisers: as
    exactly, and more slowly.

    Args:
        model: an ONNX file, or its bytes.
        options: of the session; entries are added.
        providers: of the session.

    Raises:
        Exception: of any kind, where ONNX Runtime cannot load the graph.
    """
    import onnxruntime

    options.add_session_config_entry(*_EXACT_PRODUCTS)
    level = options.log_severity_level
    if not has_vnni():
        options.log_severity_level = _FATAL  # a failure that is made up for is no news
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:
        if _SHARED not in str(error):
            raise
        options.log_severity_level = level
        options.add_session_config_entry(*_IN_FLOAT)
        return onnxruntime.InferenceSession(model, options, providers=providers)


def version() -> str:
    """Version of the installed ONNX Runtime; raises MissingPackageError."""
    forbid_telemetry()
    try:
        import onnxruntime
    except ImportError:
        raise MissingPackageError("onnxruntime") from None
    return str(onnxruntime.__version__)


def check_device(target: Target) -> None:
    """Find out whether artifacts of the target can run here.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
        MissingDeviceError: for CUDA, this ONNX Runtime has no provider for it, or there is no GPU.
    """
    version()
    if target.device != CUDA:
        return
    import onnxruntime

    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise MissingDeviceError(
            "this ONNX Runtime cannot use NVIDIA GPUs: pip uninstall onnxruntime, then pip install "
            "'onnxruntime-gpu[cuda,cudnn]'"
        )
    Cuda()


def compile_graph(
    model: Path, folder: Path, _target: Target, _settings: TensorRTSettings = DEFAULT_SETTINGS
) -> dict[str, Any]:
    """Write `model.onnx`, once ONNX Runtime has loaded it, on the processor.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
        BackendError: ONNX Runtime cannot load the graph.
    """
    version()
    import onnxruntime

    try:
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BackendError(f"ONNX Runtime cannot load the graph: {reason}") from error
    shutil.copyfile(model, folder / MODEL_FILE)
    return {}
