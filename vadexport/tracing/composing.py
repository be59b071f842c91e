"""Put a graph together from a network that came as ONNX, and what stands before and after it."""

import onnx
import torch
from onnx import compose as merging
from torch import Tensor, nn

from vadexport import contract
from vadexport.contract import PREPROCESSED, ImageInput
from vadexport.detectors.exportable import Exportable, Scores
from vadexport.detectors.steps import GraphPreprocessing
from vadexport.errors import InputError
from vadexport.tracing.graph import (
    OPSET,
    TracedGraph,
    bare,
    contract_order,
    export_module,
    without_seam_outputs,
)


def compose(detector: Exportable, network: onnx.ModelProto, image_input: ImageInput) -> TracedGraph:
    """Make one graph of preprocessing, a network in ONNX and the contract's outputs.

    The network takes one input, float32 `[N, 3, h, w]` or `[N, 1, h, w]`, and gives `raw_score` [N]
    or `anomaly_map` [N, 1, h, w] or both; all its names start with `network/`. Without `raw_score`
    the map's maximum is the score. Only the preprocessed image is a seam: nobody knows where in the
    network its score head begins.

    Args:
        detector: whose network came as ONNX.
        network: `detector.onnx_network()`, which is left as it is.
        image_input: the graph's input; its batch None gives a dynamic first axis.

    Raises:
        InputError: the network cannot take the batch, has operators that the graph's opset lacks,
            or is larger than one ONNX file can be.
    """
    network = _raised(network)
    shape = [dim.dim_value for dim in network.graph.input[0].type.tensor_type.shape.dim]
    preprocessing = _Preprocessing(detector, image_input, shape[1] or 3).eval()
    dtype = getattr(torch, image_input.graph_dtype)
    image = torch.zeros((image_input.batch or 2, *image_input.shape[1:]), dtype=dtype)
    with torch.inference_mode():
        x = preprocessing(image)
        scores = detector.scores(x)
    _set_shape(network, (image_input.batch, *x.shape[1:]))
    dynamic = image_input.batch is None
    before = export_module(
        preprocessing, (image,), [contract.INPUT_NAME], [PREPROCESSED], dynamic=dynamic
    )
    after, links = _head(detector, network, scores, dynamic=dynamic)
    model = _joined(_prefixed(before, "preprocessing/"), network, [(PREPROCESSED, _input(network))])
    model = _joined(model, _prefixed(after, "head/"), links)
    model.graph.value_info.extend(value for value in before.graph.output)
    return without_seam_outputs(_finished(model), (PREPROCESSED,))


class _Preprocessing(nn.Module):
    """From the camera's image to as many channels as the network takes."""

    def __init__(self, detector: Exportable, image_input: ImageInput, channels: int) -> None:
        super().__init__()
        self.preprocessing = GraphPreprocessing(detector.steps, image_input)
        self.channels = channels

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.preprocessing(image)
        return x[:, : self.channels]


class _Head(nn.Module):
    """From the network's outputs, of which one may be missing, to the contract's."""

    def __init__(self, detector: Exportable, parts: list[str]) -> None:
        super().__init__()
        # A tuple keeps it from being a submodule, whose weights would be exported.
        self._detector = (detector,)
        self.parts = parts

    def forward(self, first: Tensor, second: Tensor | None = None) -> tuple[Tensor, ...]:
        found = dict(zip(self.parts, (first, second), strict=False))
        anomaly_map, raw_score = (found.get(n) for n in (contract.ANOMALY_MAP, contract.RAW_SCORE))
        if raw_score is None:
            raw_score = first.amax(dim=(1, 2, 3))
        outputs = self._detector[0].outputs(Scores(raw_score, anomaly_map))
        return tuple(outputs[name] for name in contract_order(outputs))


def _head(
    detector: Exportable, network: onnx.ModelProto, scores: Scores, *, dynamic: bool
) -> tuple[onnx.ModelProto, list[tuple[str, str]]]:
    """The graph after the network, and which of its inputs is which of the network's outputs."""
    names = [output.name for output in network.graph.output]
    parts = [name.rpartition("/")[2] for name in names]
    values = {contract.RAW_SCORE: scores.raw_score, contract.ANOMALY_MAP: scores.anomaly_map}
    examples = tuple(
        torch.zeros_like(value) for part in parts if (value := values[part]) is not None
    )
    inputs = [f"head/{part}" for part in parts]
    outputs = contract_order(detector.outputs(scores))
    module = _Head(detector, parts).eval()
    graph = export_module(module, examples, inputs, outputs, dynamic=dynamic)
    return graph, list(zip(names, inputs, strict=True))


def _input(network: onnx.ModelProto) -> str:
    return str(network.graph.input[0].name)


def _raised(network: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the graphs' opset."""
    if network.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise InputError("the network is larger than the 2 GB that one ONNX file can hold")
    found = next(each.version for each in network.opset_import if each.domain in ("", "ai.onnx"))
    raised = onnx.ModelProto()
    raised.CopyFrom(network)
    if found == OPSET:
        return raised
    from onnx.version_converter import ConvertError, convert_version

    try:
        raised = convert_version(raised, OPSET)
    except (ConvertError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"the network of opset {found} cannot be taken to opset {OPSET}, which all targets "
            f"read: export it again with opset {OPSET} ({reason[-1] if reason else 'unknown'})"
        ) from error
    for number, node in enumerate(raised.graph.node):
        node.name = node.name or f"network/{number}_{node.op_type}"  # the converter's own
    return raised


def _set_shape(network: onnx.ModelProto, shape: tuple[int | None, ...]) -> None:
    """Give input and outputs a batch; whatever was inferred for another one is inferred again."""
    del network.graph.value_info[:]
    images = network.graph.input[0].type.tensor_type.shape
    del images.dim[:]
    for size in shape:
        _set(images.dim.add(), size)
    for output in network.graph.output:
        _set(output.type.tensor_type.shape.dim[0], shape[0])
    network.CopyFrom(onnx.shape_inference.infer_shapes(network))


def _set(dim: onnx.TensorShapeProto.Dimension, size: int | None) -> None:
    if size is None:
        dim.dim_param = "N"
    else:
        dim.dim_value = size


def _prefixed(model: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """Names of nodes and inner tensors start with `prefix`; inputs and outputs keep theirs."""
    return merging.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)


def _joined(
    first: onnx.ModelProto, second: onnx.ModelProto, links: list[tuple[str, str]]
) -> onnx.ModelProto:
    for model in (first, second):
        model.ir_version = max(first.ir_version, second.ir_version)
    return merging.merge_models(first, second, links)


def _finished(model: onnx.ModelProto) -> onnx.ModelProto:
    model.producer_name, model.producer_version = "vadexport", ""
    model.graph.name = "detector"
    onnx.checker.check_model(model)
    return bare(model)
