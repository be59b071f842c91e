"""What a graph's tensors are like on images: extremes of channels, how a layer's inputs vary."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vadexport.backends.onnxruntime import open_session
from vadexport.calibration.network import Layer
from vadexport.contract import INPUT_NAME, Call
from vadexport.passes.base import GraphView, attributes
from vadexport.passes.cutting import cut

Array = NDArray[np.float64]

#: Windows of a layer's input that its moments are taken from, a column of the weights each, and at
#: least: more says little more.
_WINDOWS_A_COLUMN: Final = 8
_FEWEST_WINDOWS: Final = 4096
_MOST_WINDOWS: Final = 16384
#: Columns of a weight beyond which moments would take more than they bring.
MOST_COLUMNS: Final = 2304
#: Bytes of moments that are held at once; layers take turns.
_MOST_BYTES: Final = 400e6


@dataclass(frozen=True)
class Extremes:
    """Smallest and largest value of each channel of a tensor; of all of it where it has none.

    Attributes:
        low: float64 [C].
        high: float64 [C].
    """

    low: Array
    high: Array

    @property
    def magnitude(self) -> Array:
        """Largest magnitude of each channel, float64 [C]."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def scaled(self, factors: Array | float) -> "Extremes":
        """Of the tensor with its channels multiplied by positive factors [C]."""
        return Extremes(self.low * factors, self.high * factors)


@dataclass(frozen=True)
class Moments:
    """Of the columns that a layer multiplies its weights with.

    Attributes:
        mean: float64 [G, D].
        covariance: float64 [G, D, D], about the mean.
        rounded: float64 [2, G, D], the mean once the tensor is in integers: of an unsigned form,
            then of a signed one.
    """

    mean: Array
    covariance: Array
    rounded: Array


def extremes(
    model: onnx.ModelProto, tensors: Sequence[str], calls: Iterable[Call]
) -> dict[str, Extremes]:
    """Extremes of tensors over calls of the graph, found by ONNX Runtime in float32.

    Tensors of rank 3 and more have channels, on axis 1; others are taken whole. What is not finite
    shows as an extreme that is not: sums tell of NaN, which ONNX Runtime's extremes may leave out.
    """
    view = GraphView(model)
    watched = cut(model, tensors)
    graph = watched.graph
    del graph.output[:]
    for number, name in enumerate(tensors):
        rank = view.rank(name) or 0
        axes = [axis for axis in range(rank) if axis != 1] if rank > 2 else []
        graph.initializer.append(
            numpy_helper.from_array(np.array(axes, np.int64), f"observed_axes_{number}")
        )
        for kind in ("Min", "Max", "Sum"):
            output = f"observed_{kind}_{number}"
            graph.node.append(
                helper.make_node(
                    f"Reduce{kind}", [name, f"observed_axes_{number}"], [output], keepdims=0
                )
            )
            graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    low: list[Array] = []
    high: list[Array] = []
    for values in run_graph(watched, calls):
        found = [np.atleast_1d(value).astype(np.float64) for value in values]
        unknown = [np.where(np.isnan(total), np.nan, 0.0) for total in found[2::3]]
        least = [value + nan for value, nan in zip(found[::3], unknown, strict=True)]
        most = [value + nan for value, nan in zip(found[1::3], unknown, strict=True)]
        low = [np.minimum(*pair) for pair in zip(low, least, strict=True)] if low else least
        high = [np.maximum(*pair) for pair in zip(high, most, strict=True)] if high else most
    return {name: Extremes(low[n], high[n]) for n, name in enumerate(tensors)}


def turns(layers: Sequence[Layer], columns: Mapping[str, int]) -> list[list[Layer]]:
    """Layers in lots whose moments fit into memory together; with all that share their weights."""
    sharing: dict[str, list[Layer]] = {}
    for layer in layers:
        sharing.setdefault(layer.weight, []).append(layer)
    lots: list[list[Layer]] = []
    held = 0.0
    for alike in sharing.values():
        size = 8 * alike[0].groups * columns[alike[0].node] ** 2
        if not lots or held + size > _MOST_BYTES:
            lots.append([])
            held = 0.0
        lots[-1] += alike
        held += size
    return lots


def moments(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    steps: Mapping[str, tuple[float, float]],
    calls: Iterable[Call],
    of: int,
) -> dict[str, Moments]:
    """Moments of the columns that each layer reads, by the name of its weights.

    Convolutions read windows, of which some are drawn, the same in each run; layers that share
    weights share moments.

    Args:
        model: ONNX graph.
        layers: convolutions of two dimensions, and products with a matrix.
        steps: of each tensor that they read, in an unsigned form and in a signed one.
        calls: of the graph.
        of: their number.
    """
    nodes = {node.name: node for node in model.graph.node}
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    names = list(dict.fromkeys(layer.activation for layer in layers))
    watched = cut(model, names)
    random = np.random.Generator(np.random.PCG64(0))
    squares: dict[str, Array] = {}
    totals: dict[str, Array] = {}
    errors: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for values in run_graph(watched, calls):
        found = dict(zip(names, values, strict=True))
        for layer in layers:
            shape = weights[layer.weight]
            width = int(np.prod(shape)) // shape[layer.axis]
            wanted = np.clip(_WINDOWS_A_COLUMN * width, _FEWEST_WINDOWS, _MOST_WINDOWS)
            columns = _columns(
                found[layer.activation],
                layer,
                nodes[layer.node],
                shape,
                -(-int(wanted) // of),
                random,
            )
            square = np.matmul(columns.transpose(0, 2, 1), columns).astype(np.float64)
            total = columns.sum(axis=1, dtype=np.float64)
            error = np.stack([_rounding(columns, step) for step in steps[layer.activation]])
            key = layer.weight
            errors[key] = errors[key] + error if key in errors else error
            squares[key] = squares[key] + square if key in squares else square
            totals[key] = totals[key] + total if key in totals else total
            counts[key] = counts.get(key, 0) + columns.shape[1]
    made = {}
    for key, count in counts.items():
        mean = totals[key] / count
        covariance = squares[key] / count - mean[:, :, None] * mean[:, None, :]
        made[key] = Moments(mean, covariance, mean + errors[key] / count)
    return made


def _rounding(columns: NDArray[Any], step: float) -> Array:
    """What rounding to whole steps adds to each column, summed over windows, [G, D]."""
    whole = np.rint(columns / np.float32(step)) * np.float32(step)
    found: Array = (whole - columns).sum(axis=1, dtype=np.float64)
    return found


def _columns(
    values: NDArray[Any],
    layer: Layer,
    node: onnx.NodeProto,
    shape: tuple[int, ...],
    most: int,
    random: np.random.Generator,
) -> NDArray[Any]:
    """Columns `[G, P, D]` that the weights are multiplied with, at most `most` of a call."""
    if layer.kind != "Conv":
        rows = values.reshape(-1, values.shape[-1])
        if len(rows) > most:
            rows = rows[random.choice(len(rows), most, replace=False)]
        return rows[None]
    given = attributes(node)
    down, across = given.get("strides", (1, 1))
    tall, wide = given.get("dilations", (1, 1))
    reach = ((shape[2] - 1) * tall + 1, (shape[3] - 1) * wide + 1)
    tall_pads, wide_pads = _pads(given, values.shape[2:], reach, (down, across))
    padded = np.pad(values, ((0, 0), (0, 0), tall_pads, wide_pads))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, ::down, ::across, ::tall, ::wide]
    count, _, height, width = windows.shape[:4]
    places = count * height * width
    drawn = random.choice(places, min(most, places), replace=False)
    image, rest = np.divmod(drawn, height * width)
    row, column = np.divmod(rest, width)
    found = windows[image, :, row, column]  # [P, C, kh, kw]
    grouped = found.reshape(len(drawn), layer.groups, -1)
    return np.ascontiguousarray(grouped.transpose(1, 0, 2))


def _pads(
    given: Mapping[str, Any],
    sizes: Sequence[int],
    reach: Sequence[int],
    strides: Sequence[int],
) -> list[tuple[int, int]]:
    """Zeros before and after each axis of a convolution's input."""
    automatic = given.get("auto_pad", b"NOTSET").decode()
    if automatic == "VALID":
        return [(0, 0)] * len(sizes)
    if automatic == "NOTSET":
        pads = given.get("pads", (0,) * 2 * len(sizes))
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    found = []
    for size, window, stride in zip(sizes, reach, strides, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + window - size)
        less, more = total // 2, total - total // 2
        found.append((less, more) if automatic == "SAME_UPPER" else (more, less))
    return found


def run_graph(
    model: onnx.ModelProto, calls: Iterable[Call], names: Sequence[str] | None = None
) -> Iterator[list[NDArray[Any]]]:
    """Outputs of a graph, of these names or all, for one call after the other, by ONNX Runtime."""
    import onnxruntime

    options, providers = onnxruntime.SessionOptions(), ["CPUExecutionProvider"]
    session = open_session(model.SerializeToString(), options, providers)
    for call in calls:
        yield session.run(names, {INPUT_NAME: call})
