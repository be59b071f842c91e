"""Run OpenVINO IR on the CPU."""

from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from vadexport.backends.base import Execution
from vadexport.backends.openvino.bfloat16 import computes_in_bfloat16, has_fast_bfloat16, widen
from vadexport.backends.openvino.compiler import MODEL_FILE, version
from vadexport.backends.openvino.saturation import check_products
from vadexport.contract import INPUT_NAME, OUTPUT_NAMES, RAW_SCORE, Outputs
from vadexport.errors import BackendError
from vadexport.targets import Target

_PRECISIONS: Final = {
    "fp32": "float32",
    "int8": "INT8 network, float32 score head",
    "auto": "INT8, bfloat16 and float32 layers as chosen by the build",
}
_NARROW_HEAD: Final = "INT8 network, bfloat16 and float32 score head"


class OpenVinoRunner:
    """A compiled model, tuned for the latency of one call.

    On processors with AMX, OpenVINO computes float32 graphs in bfloat16 unless told otherwise,
    which moves scores. The inference precision is therefore pinned to float32; what is quantised
    in the graph runs in INT8 all the same, and what is bfloat16 in the graph in bfloat16, on
    processors that are fast at it.

    Args:
        folder: of the artifact.
        target: what it was made for.
        threads: that one call may use.
        until: name of a tensor that the graph is cut at; None runs all of it.

    Raises:
        MissingPackageError: OpenVINO is not installed.
        MissingDeviceError: the artifact's INT8 needs a processor with VNNI, which this one is not.
        BackendError: there is no tensor to cut at.
    """

    def __init__(
        self, folder: Path, target: Target, threads: int, *, until: str | None = None
    ) -> None:
        release = version()
        import openvino

        core = openvino.Core()
        model = loaded(core, folder, target)
        precision = _PRECISIONS[target.precision]
        if target.precision == "int8" and has_fast_bfloat16(core) and computes_in_bfloat16(model):
            precision = _NARROW_HEAD  # networks of `int8` have no layer in bfloat16
        if until is not None:
            ports = (port for layer in model.get_ordered_ops() for port in layer.outputs())
            end = next((port for port in ports if until in port.get_names()), None)
            if end is None:
                raise BackendError(f"the graph has no tensor {until}")
            model = openvino.Model([end], model.get_parameters())
        elif not any(RAW_SCORE in output.get_names() for output in model.outputs):
            model.add_outputs(RAW_SCORE)
        self._compiled = compiled(core, model, threads)
        self._request = self._compiled.create_infer_request()
        self._names = [_contract_name(output.get_names()) for output in self._compiled.outputs]
        self.execution = Execution(
            backend=f"OpenVINO {release}",
            precision=precision,
            device=str(core.get_property("CPU", "FULL_DEVICE_NAME")),
            threads=threads,
        )

    def infer(self, image: NDArray[Any]) -> Outputs:
        """See the base class."""
        results = self._request.infer({INPUT_NAME: image}, share_inputs=True)
        return {name: results[number].copy() for number, name in enumerate(self._names)}


def loaded(core: Any, folder: Path, target: Target) -> Any:
    """The model of an artifact, in the precisions that this processor computes.

    Raises:
        MissingDeviceError: its INT8 needs a processor with VNNI, which this one is not.
    """
    model = core.read_model(folder / MODEL_FILE)
    check_products(model, target)
    if not has_fast_bfloat16(core):
        widen(model)
    return model


def compiled(core: Any, model: Any, threads: int) -> Any:
    """A model, compiled for the latency of one call."""
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    return core.compile_model(model, "CPU", hints)


def _contract_name(names: set[str]) -> str:
    """The contract's among the names of a tensor."""
    return next((name for name in OUTPUT_NAMES if name in names), min(names))
