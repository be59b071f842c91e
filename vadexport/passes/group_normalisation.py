"""Group normalisation by sums of channels, which any layout of a tensor gives."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vadexport.passes.base import GraphView, attributes, sort_nodes

_PLANE: tuple[int, int] = (2, 3)
Values = NDArray[np.float64]


class GroupNormalisation:
    """Mean and variance of groups of channels from those of channels, without a `Reshape`.

    PyTorch's exporter writes group normalisation (Wu & He, ECCV 2018) as
    `reshape → InstanceNormalization → reshape → ·w → +b`. OpenVINO keeps convolutions' channels
    last, where a group is not in one piece: each such `Reshape` brings the whole tensor into plain
    order, and the next convolution brings it back, which takes up to half of the time of a
    diffusion model's network. Here channels are averaged over the plane, and over their group by a
    1 × 1 convolution of what is left, [N, C, 1, 1]; deviations from the mean likewise, so that
    nothing cancels. It is for OpenVINO alone: ONNX Runtime keeps channels first, and is a little
    slower with it.

    Must not apply where weights or sizes are no constant, the groups are no neighbouring channels,
    or what is in between is also read elsewhere.
    """

    name: ClassVar[str] = "group-normalisation"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        if all(node.op_type != "InstanceNormalization" for node in model.graph.node):
            return 0
        view = GraphView(model)
        found = [each for node in model.graph.node if (each := _found(node, view)) is not None]
        for each in found:
            _write(model.graph, each)
        if found:
            sort_nodes(model.graph)
        return len(found)


@dataclass(frozen=True)
class _Groups:
    """A normalisation.

    Attributes:
        nodes: that it is written in; the last one's output is its own.
        source: the tensor [N, C, H, W].
        groups: of neighbouring channels.
        epsilon: added to variances.
        weight: of each channel, float64 [C].
        bias: likewise.
    """

    nodes: tuple[onnx.NodeProto, ...]
    source: str
    groups: int
    epsilon: float
    weight: Values
    bias: Values


def _found(node: onnx.NodeProto, view: GraphView) -> _Groups | None:
    if node.op_type != "InstanceNormalization":
        return None
    split = view.producer(node.input[0])
    if split is None or split.op_type != "Reshape" or len(view.consumers(split.output[0])) > 1:
        return None
    shape, grouped = view.shape(split.input[0]), view.shape(node.input[0])
    joined = view.only_consumer(node.output[0], "Reshape")
    if shape is None or grouped is None or joined is None or view.is_output(split.output[0]):
        return None
    channels, groups = shape[1] if len(shape) == 4 else None, grouped[1]
    if (
        len(grouped) != 3
        or not channels
        or not groups
        or channels % groups
        or None in shape[2:]
        or grouped[2] != channels // groups * int(np.prod(np.array(shape[2:], np.int64)))
        or view.dimensions(joined.output[0]) != view.dimensions(split.input[0])
    ):
        return None
    own = [each for name in node.input[1:3] if (each := view.constant(name)) is not None]
    factor = _affine(joined.output[0], "Mul", channels, view)
    offset = factor and _affine(factor[0].output[0], "Add", channels, view)
    if len(own) < 2 or not factor or not offset:
        return None
    first, second = (np.repeat(each.astype(np.float64), channels // groups) for each in own)
    return _Groups(
        nodes=(split, node, joined, factor[0], offset[0]),
        source=split.input[0],
        groups=groups,
        epsilon=float(attributes(node).get("epsilon", 1e-5)),
        weight=first * factor[1],
        bias=second * factor[1] + offset[1],
    )


def _affine(
    name: str, operator: str, channels: int, view: GraphView
) -> tuple[onnx.NodeProto, Values] | None:
    """The node that alone reads a tensor, and a constant of one value a channel that it takes."""
    readers = view.consumers(name)
    if len(readers) != 1 or readers[0].op_type != operator or view.is_output(name):
        return None
    others = [each for each in readers[0].input if each != name]
    value = view.constant(others[0]) if len(others) == 1 else None
    if value is None or value.dtype != np.float32:
        return None
    if value.shape not in ((channels, 1, 1), (1, channels, 1, 1)):
        return None
    return readers[0], value.astype(np.float64).reshape(-1)


def _write(graph: onnx.GraphProto, found: _Groups) -> None:
    result = found.nodes[-1].output[0]
    channels = len(found.weight)
    size = channels // found.groups
    average = np.kron(np.eye(found.groups), np.full((size, size), 1 / size))
    axes = _constant(graph, f"{result}/plane", np.array(_PLANE))
    averaging = _constant(graph, f"{result}/groups", average[:, :, None, None])

    def node(operator: str, inputs: list[str], output: str, **options: int) -> str:
        name = f"{result}/{output}" if output else result
        made = helper.make_node(operator, inputs, [name], name=f"{result}/{operator}{output}")
        made.attribute.extend(helper.make_attribute(*each) for each in options.items())
        graph.node.append(made)
        return name

    def mean(of: str, output: str) -> str:
        each = node("ReduceMean", [of, axes], f"{output}_of_channels", keepdims=1)
        return node("Conv", [each, averaging], output)

    centred = node("Sub", [found.source, mean(found.source, "mean")], "centred")
    variance = mean(node("Mul", [centred, centred], "squares"), "variance")
    epsilon = _constant(graph, f"{result}/epsilon", np.array(found.epsilon))
    deviation = node("Sqrt", [node("Add", [variance, epsilon], "sum")], "deviation")
    weight = _constant(graph, f"{result}/weight", found.weight[None, :, None, None])
    bias = _constant(graph, f"{result}/bias", found.bias[None, :, None, None])
    scaled = node("Mul", [centred, node("Div", [weight, deviation], "scale")], "scaled")
    for each in found.nodes:
        graph.node.remove(each)
    node("Add", [scaled, bias], "")


def _constant(graph: onnx.GraphProto, name: str, value: NDArray[np.generic]) -> str:
    kept = value if value.dtype.kind == "i" else value.astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(kept), name))
    return name
