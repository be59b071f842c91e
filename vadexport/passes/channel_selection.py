"""Channels that a detector chooses are chosen before maps are upsampled and joined, not after."""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vadexport.passes.base import GraphView, attributes

_CHANNELS: Final = 1
Indices = NDArray[np.int64]


class ChannelSelection:
    """`gather(concat(a, resize(b)), i)` becomes `concat(gather(a, j), resize(gather(b, k)))`.

    PaDiM (Defard et al. 2020) takes 100 of 448 channels of a resnet18, at random: four fifths of
    what is upsampled, joined and copied is dropped. Values are the same, bit for bit. Where
    channels are chosen in no order of their maps, a last `Gather` puts them in place.

    Must not apply where the indices are no constant or outside of the channels, as many channels
    are chosen as there are, or more, what is joined is also read elsewhere, its channels are not
    known, or it is joined or chosen along another axis. A map that is resized along its channels
    too, by boxes, or by sizes that are no constant, is chosen from behind its `Resize`.
    """

    name: ClassVar[str] = "channel-selection"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        view = GraphView(model)
        found = [each for node in model.graph.node if (each := _selection(node, view)) is not None]
        for each in found:
            _write(model.graph, each, view)
        return len(found)


@dataclass(frozen=True)
class _Selection:
    """A `Gather` of what a `Concat` joins.

    Attributes:
        gather: of channels.
        concat: of maps.
        widths: channels of each map.
        indices: of the chosen ones, none negative.
    """

    gather: onnx.NodeProto
    concat: onnx.NodeProto
    widths: tuple[int, ...]
    indices: Indices


def _selection(node: onnx.NodeProto, view: GraphView) -> _Selection | None:
    if node.op_type != "Gather" or view.only_consumer(node.input[0], "Gather") is None:
        return None
    concat, indices = view.producer(node.input[0]), view.constant(node.input[1])
    rank = view.rank(node.input[0])
    if concat is None or concat.op_type != "Concat" or indices is None or rank is None:
        return None
    axes = {attributes(each).get("axis", 0) % rank for each in (node, concat)}
    if axes != {_CHANNELS} or indices.ndim != 1:
        return None
    shapes = [view.shape(name) for name in concat.input]
    widths = [shape[_CHANNELS] for shape in shapes if shape is not None and shape[_CHANNELS]]
    if len(widths) < len(shapes):
        return None
    total = sum(widths)
    if not 0 < len(indices) < total or indices.min() < -total or indices.max() >= total:
        return None
    return _Selection(node, concat, tuple(widths), indices.astype(np.int64) % total)


def _write(graph: onnx.GraphProto, found: _Selection, view: GraphView) -> None:
    """Put it in place of the `Concat` and the `Gather`."""
    result = found.gather.output[0]
    starts = np.cumsum((0, *found.widths))
    made: list[onnx.NodeProto] = []
    parts: list[str] = []
    chosen: list[Indices] = []
    for number, (name, start, end) in enumerate(
        zip(found.concat.input, starts[:-1], starts[1:], strict=True)
    ):
        mine = np.flatnonzero((found.indices >= start) & (found.indices < end))
        if not len(mine):
            continue
        prefix = f"{result}/part{number}"
        source, resize = name, _resize(name, view)
        if resize is not None:
            source = resize.input[0]
        made.append(_gather(graph, source, found.indices[mine] - start, prefix))
        if resize is not None:
            sizes = view.constant(resize.input[3]) if len(resize.input) == 4 else None
            made.append(_resized(graph, resize, prefix, len(mine), sizes))
        parts.append(made[-1].output[0])
        chosen.append(mine)
    order = np.concatenate(chosen)
    in_order = bool((order == np.arange(len(order))).all())
    joined = result if in_order else f"{result}/joined"
    made.append(helper.make_node("Concat", parts, [joined], name=f"{joined}/node", axis=_CHANNELS))
    if not in_order:
        made.append(_gather(graph, joined, np.argsort(order), result))
    place = list(graph.node).index(found.gather)
    graph.node.remove(found.gather)
    for offset, node in enumerate(made):
        graph.node.insert(place + offset, node)


def _gather(graph: onnx.GraphProto, source: str, indices: Indices, result: str) -> onnx.NodeProto:
    """A node that gives `result`."""
    graph.initializer.append(numpy_helper.from_array(indices, f"{result}/chosen"))
    inputs = [source, f"{result}/chosen"]
    return helper.make_node("Gather", inputs, [result], name=f"{result}/node", axis=_CHANNELS)


def _resized(
    graph: onnx.GraphProto,
    resize: onnx.NodeProto,
    chosen: str,
    count: int,
    sizes: NDArray[np.generic] | None,
) -> onnx.NodeProto:
    """A `Resize` of so many chosen channels, to the same `sizes` but for their number."""
    again, result = onnx.NodeProto(), f"{chosen}/resized"
    again.CopyFrom(resize)
    again.name, again.output[0], again.input[0] = f"{result}/node", result, chosen
    if sizes is not None:
        again.input[3] = f"{result}/sizes"
        fewer = np.concatenate([sizes[:_CHANNELS], [count], sizes[_CHANNELS + 1 :]])
        graph.initializer.append(numpy_helper.from_array(fewer.astype(np.int64), again.input[3]))
    return again


def _resize(name: str, view: GraphView) -> onnx.NodeProto | None:
    """The `Resize` that alone gives a tensor to a `Concat`, and leaves its channels apart."""
    node = view.producer(name)
    if node is None or node.op_type != "Resize" or view.is_output(name):
        return None
    options = attributes(node)
    boxed = options.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    kept = options.get("keep_aspect_ratio_policy", b"stretch") != b"stretch"
    if len(view.consumers(name)) != 1 or boxed or kept or "axes" in options:
        return None
    scales, sizes = (
        view.constant(node.input[place]) if place < len(node.input) else None for place in (2, 3)
    )
    shape = view.shape(node.input[0])
    if sizes is not None and sizes.size > _CHANNELS and shape is not None:
        return node if sizes[_CHANNELS] == shape[_CHANNELS] else None
    if scales is None or scales.size <= _CHANNELS:  # older exporters leave it empty
        return None
    return node if float(scales[_CHANNELS]) == 1.0 else None
