"""Upsampling and Gaussian blur of the anomaly map as two constant matrix products."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Self

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport.passes.base import GraphView, attributes

Float64Matrix = NDArray[np.float64]
Float64Vector = NDArray[np.float64]


#: Smallest part of a kernel that counts as more than the rounding of an outer product.
_SEPARABLE: Final = 1e-6


class _Kernel(NamedTuple):
    """A separable kernel: the outer product of its taps down the rows and along the columns."""

    down: Float64Vector
    along: Float64Vector


@dataclass(frozen=True)
class _Match:
    nodes: tuple[onnx.NodeProto, ...]
    rows: Float64Matrix
    columns: Float64Matrix

    @classmethod
    def at(cls, resize: onnx.NodeProto, view: GraphView) -> Self | None:
        """The rule's nodes from `resize` on, or None where it does not hold."""
        pad = view.only_consumer(resize.output[0], "Pad")
        margins = _reflected_margins(pad, view) if pad else None
        sizes = _sizes(resize, view)
        if pad is None or margins is None or sizes is None:
            return None
        grow = _resize_matrix(resize, sizes, view)
        convolutions = _convolutions(pad.output[0], view)
        if grow is None or not convolutions:
            return None
        matrices = []
        for axis, (small, large) in enumerate(sizes):
            if max(margins[axis]) >= large:
                return None
            matrix = reflect_pad_matrix(large, *margins[axis]) @ grow(small, large)
            for _, kernel in convolutions:
                matrix = correlation_matrix(len(matrix), kernel[axis]) @ matrix
            matrices.append(matrix)
        return cls((resize, pad, *(conv for conv, _ in convolutions)), *matrices)


class MapAsMatrices:
    """`Resize` → `Pad` → convolutions by separable kernels becomes `A_h · M · A_wᵀ`.

    Upsampling, bilinear or nearest, reflection and a separable blur are linear and act on each axis
    alone, so all of them together are one constant matrix an axis. A Gaussian blur is separable
    whether it is two convolutions by a row and a column of taps, or one by their outer product: a
    matrix whose second singular value is no more than rounding.

    Must not apply where the map has more than one channel or is not float32, a size is dynamic (but
    the batch), the resize is not plain half-pixel bilinear, or nearest by a whole factor, its
    scales are not the sizes' ratios, a convolution strides, pads, dilates, has a bias or a kernel
    that is not separable, or an intermediate result is used elsewhere.
    """

    name: ClassVar[str] = "map-as-matrices"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        view = GraphView(model)
        resizes = [node for node in model.graph.node if node.op_type == "Resize"]
        matches = [match for node in resizes if (match := _Match.at(node, view))]
        for match in matches:
            _replace(model.graph, match)
        return len(matches)


def linear_resize_matrix(source: int, target: int) -> Float64Matrix:
    """Bilinear interpolation of one axis at half-pixel centres, [target, source]."""
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    left = np.minimum(np.floor(position).astype(int), max(source - 2, 0))
    right = np.minimum(left + 1, source - 1)
    weight = position - left
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), left), 1 - weight)
    np.add.at(matrix, (np.arange(target), right), weight)
    return matrix


def nearest_resize_matrix(source: int, target: int) -> Float64Matrix:
    """Each element repeated; `target` is a multiple of `source`: [target, source]."""
    return np.repeat(np.eye(source), target // source, axis=0)


def reflect_pad_matrix(size: int, before: int, after: int) -> Float64Matrix:
    """Reflection at both ends of one axis, edge not repeated, [before + size + after, size]."""
    index = np.pad(np.arange(size), (before, after), mode="reflect")
    return np.eye(size)[index]


def correlation_matrix(size: int, taps: Float64Matrix) -> Float64Matrix:
    """Correlation with `taps` of one axis, no padding, [size − taps + 1, size]."""
    valid = size - len(taps) + 1
    matrix = np.zeros((valid, size))
    for offset, tap in enumerate(taps):
        matrix[np.arange(valid), np.arange(valid) + offset] = tap
    return matrix


def _resize_matrix(
    resize: onnx.NodeProto, sizes: list[tuple[int, int]], view: GraphView
) -> Callable[[int, int], Float64Matrix] | None:
    """The matrix that does from and to these sizes what the node does; None where none is known."""
    options = attributes(resize)
    plain = (
        options.get("keep_aspect_ratio_policy", b"stretch") == b"stretch"
        and not options.get("antialias", 0)
        and not options.get("exclude_outside", 0)
        and "axes" not in options
        and _scales_are_ratios(resize, sizes, view)
    )
    mode = options.get("mode", b"nearest")
    positions = options.get("coordinate_transformation_mode", b"half_pixel")
    if plain and mode == b"linear":
        centres = [b"half_pixel"]
        if min(large for _, large in sizes) > 1:  # of one pixel it takes the first, not the middle
            centres.append(b"pytorch_half_pixel")
        return linear_resize_matrix if positions in centres else None
    repeats = (
        positions == b"asymmetric"
        and options.get("nearest_mode", b"round_prefer_floor") == b"floor"
        and all(large % small == 0 for small, large in sizes)
    )
    return nearest_resize_matrix if plain and mode == b"nearest" and repeats else None


def _scales_are_ratios(
    resize: onnx.NodeProto, sizes: list[tuple[int, int]], view: GraphView
) -> bool:
    """Positions are counted with the scales where they are given, not with the sizes' ratio."""
    if len(resize.input) < 3 or not resize.input[2]:
        return True
    scales = view.constant(resize.input[2])
    if scales is None or scales.size == 0:
        return scales is not None
    ratios = [scale * small for scale, (small, _) in zip(scales[2:].tolist(), sizes, strict=True)]
    return ratios == [large for _, large in sizes]


def _reflected_margins(pad: onnx.NodeProto, view: GraphView) -> list[tuple[int, int]] | None:
    """Pixels added above and below, left and right; None unless the pad reflects just those."""
    amounts = view.constant(pad.input[1]) if len(pad.input) > 1 else None
    if attributes(pad).get("mode") != b"reflect" or amounts is None or amounts.shape != (8,):
        return None
    if len(pad.input) > 3 and pad.input[3]:
        return None
    values = [int(amount) for amount in amounts.tolist()]
    if any(values[:2]) or any(values[4:6]) or min(values) < 0:
        return None
    return [(values[2], values[6]), (values[3], values[7])]


def _sizes(resize: onnx.NodeProto, view: GraphView) -> list[tuple[int, int]] | None:
    """Height and width before and after; None unless static, of one channel."""
    source, target = view.shape(resize.input[0]), view.shape(resize.output[0])
    if source is None or target is None or len(source) != 4 or source[1] != 1:
        return None
    pairs = []
    for small, large in zip(source[2:], target[2:], strict=True):
        if small is None or large is None:
            return None
        pairs.append((small, large))
    return pairs


def _convolutions(name: str, view: GraphView) -> list[tuple[onnx.NodeProto, _Kernel]]:
    """The convolutions behind a tensor, one after the other; none unless all of them are plain."""
    found: list[tuple[onnx.NodeProto, _Kernel]] = []
    while (conv := view.only_consumer(name, "Conv")) is not None:
        kernel = _kernel(conv, view)
        if kernel is None:
            return []
        found.append((conv, kernel))
        name = conv.output[0]
    return [] if any(node.op_type == "Conv" for node in view.consumers(name)) else found


def _kernel(conv: onnx.NodeProto, view: GraphView) -> _Kernel | None:
    """Kernel of a plain float32 convolution of one channel; None for any other."""
    weights = view.constant(conv.input[1])
    if weights is None or (len(conv.input) > 2 and conv.input[2]):
        return None
    if weights.ndim != 4 or weights.shape[:2] != (1, 1) or weights.dtype != np.float32:
        return None
    options = attributes(conv)
    plain = (
        set(options.get("strides", [1])) == {1}
        and set(options.get("dilations", [1])) == {1}
        and set(options.get("pads", [0])) == {0}
        and options.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    )
    left, sizes, right = np.linalg.svd(weights[0, 0].astype(np.float64), full_matrices=False)
    if not plain or (len(sizes) > 1 and sizes[1] > _SEPARABLE * sizes[0]):
        return None
    return _Kernel(left[:, 0] * sizes[0], right[0])


def _replace(graph: onnx.GraphProto, match: _Match) -> None:
    resize, *_, last = match.nodes
    place = list(graph.node).index(resize)
    prefix = last.output[0]
    rows = onnx.numpy_helper.from_array(match.rows.astype(np.float32), f"{prefix}_rows")
    columns = onnx.numpy_helper.from_array(match.columns.T.astype(np.float32), f"{prefix}_columns")
    graph.initializer.extend([rows, columns])
    tall = f"{prefix}_tall"
    products = [
        onnx.helper.make_node("MatMul", [rows.name, resize.input[0]], [tall], f"{tall}_node"),
        onnx.helper.make_node("MatMul", [tall, columns.name], [prefix], f"{prefix}_node"),
    ]
    for node in match.nodes:
        graph.node.remove(node)
    for offset, node in enumerate(products):
        graph.node.insert(place + offset, node)
