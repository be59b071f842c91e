"""ONNX to OpenVINO IR."""

from pathlib import Path
from typing import Any

from vadexport.backends.tensorrt.settings import DEFAULT_SETTINGS, TensorRTSettings
from vadexport.contract import RAW_SCORE
from vadexport.errors import BackendError, MissingPackageError
from vadexport.targets import Target
from vadexport.telemetry import forbid_telemetry

MODEL_FILE = "model.xml"


def version() -> str:
    """Version of the installed OpenVINO; raises MissingPackageError."""
    forbid_telemetry()
    try:
        import openvino
    except ImportError:
        raise MissingPackageError("openvino", "openvino") from None
    return str(openvino.__version__).split("-", maxsplit=1)[0]


def check_device(_target: Target) -> None:
    """Raise MissingPackageError; whether an INT8 artifact can run is found when it is opened."""
    version()


def compile_graph(
    model: Path, folder: Path, _target: Target, _settings: TensorRTSettings = DEFAULT_SETTINGS
) -> dict[str, Any]:
    """Write `model.xml` and `model.bin`, weights uncompressed.

    Of a graph that takes floats, as anomalib's own `OpenVINOInferencer` feeds them, the raw score
    is no output: that class refuses outputs it does not know. The tensor stays in the graph under
    its name, and `OpenVinoRunner` makes it an output again.

    Raises:
        MissingPackageError: OpenVINO is not installed.
        BackendError: OpenVINO cannot read the graph.
    """
    version()
    import openvino

    try:
        graph = openvino.Core().read_model(model)
    except RuntimeError as error:
        # Its lines say where in OpenVINO's source it failed; the last one says what is wrong.
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1].lstrip("- ")
        raise BackendError(f"OpenVINO cannot read the graph: {reason}") from error
    if graph.input(0).get_element_type() == openvino.Type.f32:
        for result in graph.get_results():
            if RAW_SCORE in result.input_value(0).get_names():
                graph.remove_result(result)
    openvino.save_model(graph, folder / MODEL_FILE, compress_to_fp16=False)
    return {}
