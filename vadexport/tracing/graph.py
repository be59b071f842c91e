"""Trace a detector into ONNX, and simplify the graph."""

import io
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vadexport import contract
from vadexport.contract import Call, ImageInput
from vadexport.detectors.exportable import Exportable
from vadexport.detectors.steps import GraphPreprocessing
from vadexport.errors import InputError
from vadexport.tracing.failures import worded

#: Newest opset that OpenVINO, ONNX Runtime and TensorRT all read.
OPSET = 20
_PROTOBUF_LIMIT = 2**31 - 1
#: Operators with weights, where a network's time goes.
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: Loggers of PyTorch's exporter.
_TALKATIVE = (
    *("torch.onnx", "torch._subclasses.fake_tensor"),
    "torch.fx.experimental.symbolic_shapes",
)


@dataclass(frozen=True)
class TracedGraph:
    """An ONNX graph and where its network begins and ends.

    Attributes:
        model: the graph; its outputs are those of the contract, no others.
        seams: names of the tensors between its parts: the preprocessed image first, then what the
            network hands to the score head, where that is known.
    """

    model: onnx.ModelProto
    seams: tuple[str, ...]

    def network_nodes(self) -> frozenset[str]:
        """Names of the nodes between preprocessing and score head.

        Where nobody knows where the head begins, it is what follows the last convolution or layer
        normalisation. A convolution to a single channel is no layer: it blurs a map.
        """
        preprocessing = self._needed_for(self.seams[:1])
        ends = self.seams[1:]
        known = {name for node in self.model.graph.node for name in node.output}
        if not ends or not known.issuperset(ends):  # a rewrite may have left one of them out
            ends = tuple(self._last_known())
        return self._needed_for(ends) - preprocessing

    def has_layers(self) -> bool:
        """Whether there is anything in the network that INT8 or float16 could make faster."""
        network = self.network_nodes()
        return any(
            node.op_type in _LAYERS and node.name in network for node in self.model.graph.node
        )

    def _last_known(self) -> Iterator[str]:
        """What only a network computes: transformers have no convolution but the first."""
        weights = {tensor.name: tensor.dims for tensor in self.model.graph.initializer}
        for node in self.model.graph.node:
            shape = weights.get(node.input[1], ()) if len(node.input) > 1 else ()
            axis = {"Conv": 0, "ConvTranspose": 1}.get(node.op_type)
            layer = axis is not None and len(shape) > axis and shape[axis] > 1
            if layer or node.op_type == "LayerNormalization":
                yield node.output[0]

    def _needed_for(self, tensors: Iterable[str]) -> frozenset[str]:
        producers = {name: node for node in self.model.graph.node for name in node.output}
        found: set[str] = set()
        stack = list(tensors)
        while stack:
            node = producers.get(stack.pop())
            if node is not None and node.name not in found:
                found.add(node.name)
                stack.extend(node.input)
        return frozenset(found)


class _Graph(nn.Module):
    """The detector with preprocessing for graphs; the outputs in order, then the seams."""

    def __init__(self, detector: Exportable, image_input: ImageInput) -> None:
        super().__init__()
        self.detector = detector
        self.preprocessing = GraphPreprocessing(detector.steps, image_input)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        preprocessed = self.preprocessing(image)
        scores = self.detector.scores(preprocessed)
        outputs = self.detector.outputs(scores)
        return (
            *(outputs[name] for name in contract_order(outputs)),
            preprocessed,
            *scores.features,
        )


def contract_order(outputs: Iterable[str]) -> list[str]:
    """Names of outputs, in the contract's order."""
    return [name for name in contract.OUTPUT_NAMES if name in set(outputs)]


def trace(detector: Exportable, image_input: ImageInput) -> TracedGraph:
    """Trace `detector` with `torch.export` into ONNX, its preprocessing included.

    Args:
        detector: fitted, in evaluation mode.
        image_input: the graph's input; its batch None gives a dynamic first axis.

    Raises:
        InputError: the graph would outgrow the 2 GB that one ONNX file may have, or PyTorch cannot
            trace the detector.
    """
    # What a user's code prints while it runs must not mix with what a command prints.
    with redirect_stdout(sys.stderr):
        return _traced(detector, image_input)


def _traced(detector: Exportable, image_input: ImageInput) -> TracedGraph:
    network = detector.onnx_network()
    if network is not None:
        from vadexport.tracing.composing import compose  # which needs this module

        return compose(detector, network, image_input)
    module = _Graph(detector, image_input).eval()
    dynamic = image_input.batch is None
    # torch.export takes a first axis of one for a constant, whatever it is told.
    dtype = getattr(torch, image_input.graph_dtype)
    example = torch.zeros((image_input.batch or 2, *image_input.shape[1:]), dtype=dtype)
    with torch.inference_mode():
        scores = detector.scores(module.preprocessing(example))
        names = contract_order(detector.outputs(scores))
    seams = (
        contract.PREPROCESSED,
        *(f"{contract.FEATURE}{number}" for number in range(len(scores.features))),
    )
    if sum(t.numel() * t.element_size() for t in module.state_dict().values()) > _PROTOBUF_LIMIT:
        raise InputError("the detector is larger than the 2 GB that one ONNX file can hold")
    with worded(detector.family):
        outputs = [*names, *seams]
        model = export_module(module, (example,), [contract.INPUT_NAME], outputs, dynamic=dynamic)
    return without_seam_outputs(model, seams)


def values_in_pytorch(
    detector: Exportable, image_input: ImageInput, call: Call
) -> dict[str, NDArray[np.float32]]:
    """What the parts of a detector give that is yet to be traced: the seams and the scores.

    Args:
        detector: as for `trace`.
        image_input: as for `trace`.
        call: of the graph.

    Returns:
        float32 tensors by their names in the traced graph; none of a network that came as ONNX.
    """
    if detector.onnx_network() is not None:
        return {}
    preprocessing = GraphPreprocessing(detector.steps, image_input)
    with redirect_stdout(sys.stderr), torch.inference_mode():
        preprocessed = preprocessing(torch.from_numpy(call))
        scores = detector.scores(preprocessed)
        outputs = detector.outputs(scores)
    features = {f"{contract.FEATURE}{number}": each for number, each in enumerate(scores.features)}
    found = {contract.PREPROCESSED: preprocessed, **features, **outputs}
    return {name: each.numpy() for name, each in found.items() if each.dtype == torch.float32}


def export_module(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    *,
    dynamic: bool,
) -> onnx.ModelProto:
    """Export a module with `torch.export`; `dynamic` is the first axis of all its inputs."""
    batch = {0: torch.export.Dim.DYNAMIC}
    with _quiet_export():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=tuple(batch for _ in examples) if dynamic else None,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return bare(program.model_proto)


def simplify(graph: TracedGraph) -> TracedGraph:
    """Fold constants and fuse what can be fused, with onnxsim; the seams stay as they are."""
    import onnxsim

    marked = onnx.ModelProto()
    marked.CopyFrom(graph.model)
    known = {value.name: value for value in marked.graph.value_info}
    marked.graph.output.extend(known[name] for name in graph.seams)
    simplified, _ = onnxsim.simplify(marked)
    return without_seam_outputs(simplified, graph.seams)


def without_seam_outputs(model: onnx.ModelProto, seams: tuple[str, ...]) -> TracedGraph:
    """Make the seams inner tensors, their shapes still described."""
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(value for value in outputs if value.name not in seams)
    described = {value.name for value in model.graph.value_info}
    model.graph.value_info.extend(
        value for value in outputs if value.name in seams and value.name not in described
    )
    return TracedGraph(model, seams)


def bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop stack traces and paths that the exporter notes in the graph: bytes must not differ."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    return model


@contextmanager
def _quiet_export() -> Iterator[None]:
    """Hold back what the exporter notes: absent packages, deprecations, ways that it tried.

    The graph that it prints where it fails becomes a note of the error, which tracebacks show.
    """
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    printed = io.StringIO()
    try:
        with redirect_stderr(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        error.add_note(printed.getvalue())
        raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
