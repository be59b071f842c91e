"""What a compiled detector's graph is made of: its parts, their operators, layers and weights."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx

from vadexport.backends.openvino import version as openvino_version
from vadexport.contract import FEATURE, PREPROCESSED
from vadexport.passes.base import GraphView, tensors_read

ONNX_FILE: Final = "model.onnx"
OPENVINO_FILE: Final = "model.xml"
#: Operators with weights, as ONNX and OpenVINO call them, and the axis of a weight's outputs.
_CONVOLUTIONS: Final = {
    "Conv": 0,
    "ConvTranspose": 1,
    "Convolution": 0,
    "ConvolutionBackpropData": 1,
    "GroupConvolution": None,
    "GroupConvolutionBackpropData": None,
}
#: Of the features of each position by themselves, as ONNX and OpenVINO call it.
_NORMALISATIONS: Final = frozenset({"LayerNormalization", "MVN"})
_LAYERS: Final = frozenset({*_CONVOLUTIONS, "Gemm", "MatMul"})
#: They give the size of a tensor, which no call changes.
_SHAPES: Final = frozenset({"Shape", "ShapeOf"})
#: Operators that quantised values go through on their way to a layer, and what quantises.
_CARRIERS: Final = frozenset({"Convert", "Multiply", "Subtract", "Reshape", "Transpose"})
_QUANTISERS: Final = frozenset({"FakeQuantize", "DequantizeLinear"})
_ONNX_TYPES: Final[dict[int | None, str]] = {
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.FLOAT: "fp32",
}
_OPENVINO_TYPES: Final = {"float16": "fp16", "float32": "fp32"}
PARTS: Final = ("preprocessing", "network", "score head")


@dataclass(frozen=True)
class Part:
    """A part of a detector's graph.

    Attributes:
        name: one of `PARTS`.
        operators: how many nodes of each operator compute at each call, the most first.
        layers: how many of them are layers with weights, by precision.
        weights: bytes of the constants that it is the first to read.
    """

    name: str
    operators: dict[str, int]
    layers: dict[str, int]
    weights: int

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "part": self.name,
            "operators": self.operators,
            "layers": self.layers,
            "weights_bytes": self.weights,
        }


@dataclass(frozen=True)
class _Node:
    """A node: tensors by an identity, and the names that the tensors it gives have."""

    operator: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    names: frozenset[str]
    precision: str


@dataclass(frozen=True)
class _Constant:
    size: int
    shape: tuple[int, ...]


def anatomy_of(model: onnx.ModelProto) -> tuple[Part, ...]:
    """The parts of an ONNX graph."""
    view = GraphView(model)
    nodes = [
        _Node(
            node.op_type,
            tuple(filter(None, tensors_read(node))),
            tuple(filter(None, node.output)),
            frozenset(node.output),
            _ONNX_TYPES.get(view.dtype(node.output[0]), "other"),
        )
        for node in model.graph.node
    ]
    constants = {
        tensor.name: _Constant(tensor.ByteSize(), tuple(tensor.dims))
        for tensor in model.graph.initializer
    }
    return _parts(nodes, constants)


def anatomy_in(folder: Path) -> tuple[Part, ...]:
    """The parts of an artifact's graph: of its ONNX file, or else of OpenVINO's.

    Raises:
        MissingPackageError: it takes OpenVINO, which is not installed.
    """
    if (folder / ONNX_FILE).exists():
        return anatomy_of(onnx.load(folder / ONNX_FILE))
    return _parts(*_read_openvino(folder / OPENVINO_FILE))


def _read_openvino(path: Path) -> tuple[list[_Node], dict[str, _Constant]]:
    openvino_version()
    import openvino

    nodes, constants = [], {}
    for operation in openvino.Core().read_model(path).get_ordered_ops():
        kind, own = operation.get_type_name(), operation.get_friendly_name()
        outputs = operation.outputs()
        if kind == "Constant":
            shape = tuple(outputs[0].get_shape())
            size = math.prod(shape) * outputs[0].get_element_type().size
            constants[f"{own}:0"] = _Constant(size, shape)
        elif kind not in ("Parameter", "Result"):
            sources = [one.get_source_output() for one in operation.inputs()]
            nodes.append(
                _Node(
                    kind,
                    tuple(
                        f"{one.get_node().get_friendly_name()}:{one.get_index()}" for one in sources
                    ),
                    tuple(f"{own}:{number}" for number in range(len(outputs))),
                    frozenset(name for one in outputs for name in one.get_names()),
                    _OPENVINO_TYPES.get(outputs[0].get_element_type().to_dtype().name, "other"),
                )
            )
    return nodes, constants


def _parts(nodes: Sequence[_Node], constants: dict[str, _Constant]) -> tuple[Part, ...]:
    producers = {name: node for node in nodes for name in node.gives}
    fixed = set(constants)
    for node in nodes:
        if node.operator in _SHAPES or fixed.issuperset(node.reads):
            fixed.update(node.gives)
    before = _needed((node for node in nodes if PREPROCESSED in node.names), producers)
    ends = [node for node in nodes if any(name.startswith(FEATURE) for name in node.names)]
    network = _needed(ends or _last_known(nodes, constants), producers) - before
    split: dict[str, list[_Node]] = {name: [] for name in PARTS}
    for node in nodes:
        place = 0 if node in before else 1 if node in network else 2
        split[PARTS[place]].append(node)
    read: set[str] = set()
    parts = []
    for name, members in split.items():
        working = [node for node in members if not fixed.issuperset(node.gives)]
        layers = Counter(
            _precision(node, producers) for node in working if node.operator in _LAYERS
        )
        new = {tensor for node in members for tensor in node.reads if tensor in constants} - read
        read |= new
        operators = Counter(node.operator for node in working)
        weights = sum(constants[tensor].size for tensor in new)
        parts.append(Part(name, dict(operators.most_common()), dict(layers.most_common()), weights))
    return tuple(parts)


def _needed(ends: Iterable[_Node], producers: dict[str, _Node]) -> set[_Node]:
    """Nodes that these depend on, themselves among them."""
    found: set[_Node] = set()
    stack = list(ends)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(producers[name] for name in node.reads if name in producers)
    return found


def _last_known(nodes: Sequence[_Node], constants: dict[str, _Constant]) -> Iterator[_Node]:
    """What only a network computes, where its features have no names.

    A convolution to a single channel blurs a map.
    """
    for node in nodes:
        if node.operator in _NORMALISATIONS:
            yield node
        elif node.operator in _CONVOLUTIONS:
            axis = _CONVOLUTIONS[node.operator]
            weight = constants.get(node.reads[1])
            if axis is None or weight is None or weight.shape[axis] > 1:
                yield node


def _precision(layer: _Node, producers: dict[str, _Node]) -> str:
    """What a layer computes in: int8 where the values that it reads first are quantised."""
    node = producers.get(layer.reads[0])
    while node is not None and node.operator in _CARRIERS:
        node = producers.get(node.reads[0])
    if node is not None and node.operator in _QUANTISERS:
        return "int8"
    return layer.precision
