"""Channels of a tensor brought to like ranges, so that one INT8 scale serves all of them.

Cross-layer equalisation (Nagel et al., ICCV 2019): a channel that a layer makes k times larger, and
the layers that read it make k times smaller again, changes nothing in float and gets k times as
many of the steps that the tensor's largest channel sets. Two things differ from the paper. ReLU6
stays: a channel is scaled until twice what it reaches on images comes to 6; the clip then cuts
where INT8 would. And a depthwise layer's channels, whose weights have scales of their own, are
brought to the full range, others half-way (SmoothQuant, Xiao et al., ICML 2023), for their weights
share a scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vadexport.calibration.network import Layer
from vadexport.calibration.observing import Extremes
from vadexport.passes.base import tensors_read
from vadexport.passes.scaling import note_scaling, scaled_name

Array = NDArray[np.float64]

#: Of what a clipped channel reached on images: defects reach further.
HEADROOM: Final = 2.0
#: Smallest magnitude of a channel, of its tensor's largest, that it is scaled up from.
_FLOOR: Final = 0.1
_MOST: Final = 10.0
_CLIPS: Final = ("Clip", "Relu")


@dataclass
class _Stream:
    """Tensors whose channels can only be scaled together, for they are added to each other.

    Attributes:
        tensors: their names.
        unclipped: names of what their ReLUs or ReLU6s read.
        makers: layers whose output they are, clipped or not.
        readers: layers that multiply them.
        outside: tensors that something beyond the network reads too.
        clipped: whether they come out of a ReLU or a ReLU6; all of them do, or none.
        fits: whether scaling leaves the graph's meaning alone.
    """

    tensors: list[str] = field(default_factory=list)
    unclipped: list[str] = field(default_factory=list)
    makers: list[Layer] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    clipped: bool | None = None
    fits: bool = True


def equalise(
    model: onnx.ModelProto,
    layers: tuple[Layer, ...],
    network_nodes: frozenset[str],
    reached: Mapping[str, Extremes],
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Scale channels between the layers of a network, where nothing but layers stands between.

    Exact up to rounding as long as no ReLU6 channel exceeds twice what it reached. A tensor that
    is scaled is called `scaled_name` of what it was called; what the score head reads is scaled
    back, and has the name that it had. So tensors of one name can be compared between graphs.

    Args:
        model: ONNX graph, left as it is.
        layers: of its network.
        network_nodes: names of the network's nodes.
        reached: by the name of a tensor, what its channels reach on images.

    Returns:
        The graph with other weights, and the factors [C] by what each scaled tensor was called;
        they are noted in the graph as well.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    of_layers = {name for layer in layers for name in (layer.weight, layer.bias)}
    weights = {  # a memory bank beside them may be many times as large
        tensor.name: numpy_helper.to_array(tensor).astype(np.float64)
        for tensor in made.graph.initializer
        if tensor.name in of_layers
    }
    changed: set[str] = set()
    factors: dict[str, Array] = {}
    noted: list[tuple[list[str], Array]] = []
    for stream in _streams(made, layers, network_nodes):
        found = _factors(stream, weights, reached)
        if found is None:
            continue
        for layer in stream.makers:
            shape = [1] * weights[layer.weight].ndim
            shape[layer.axis] = -1
            weights[layer.weight] = weights[layer.weight] * found.reshape(shape)
            changed.add(layer.weight)
            if layer.bias:
                weights[layer.bias] = weights[layer.bias] * found
                changed.add(layer.bias)
        for layer in stream.readers:
            axis = 0 if layer.depthwise else 1
            shape = [1] * weights[layer.weight].ndim
            shape[axis] = -1
            weights[layer.weight] = weights[layer.weight] / found.reshape(shape)
            changed.add(layer.weight)
        factors.update(dict.fromkeys(stream.tensors, found))
        noted.append(([*stream.tensors, *stream.unclipped], found))
        shape = [1, -1, *[1] * (weights[stream.readers[0].weight].ndim - 2)]
        _rename(made.graph, stream, network_nodes)
        _scale_back(made.graph, stream.outside, (1 / found).reshape(shape))
    note_scaling(made, noted)
    for tensor in made.graph.initializer:
        if tensor.name in changed:
            new = weights[tensor.name].astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    return made, factors


def _streams(
    model: onnx.ModelProto, layers: tuple[Layer, ...], network_nodes: frozenset[str]
) -> list[_Stream]:
    """All that could be scaled; layers that share weights or biases cannot."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in tensors_read(node):
            readers.setdefault(name, []).append(node)
    by_node = {layer.node: layer for layer in layers if layer.kind == "Conv"}
    constants = {tensor.name for tensor in graph.initializer}
    zeros = {
        tensor.name
        for tensor in graph.initializer
        if not tensor.dims and not numpy_helper.to_array(tensor).any()
    }
    shared = {
        name
        for layer in layers
        for name in (layer.weight, layer.bias)
        if name and len(readers.get(name, [])) > 1
    }
    outputs = {output.name for output in graph.output}
    group = _joined(graph, network_nodes, constants)
    depthwise = {layer.node for layer in layers if layer.depthwise and _one_each(model, layer)}
    streams: dict[str, _Stream] = {}
    for node in graph.node:
        for name in node.output if node.name in network_nodes else ():
            stream = streams.setdefault(group.get(name, name), _Stream())
            stream.tensors.append(name)
            stream.fits &= name not in outputs
            maker = _maker(node, producers, readers, outputs, zeros)
            layer = by_node.get(maker.name) if maker is not None else None
            if layer is not None:
                stream.makers.append(layer)
                clips = node.op_type in _CLIPS
                stream.unclipped += node.input[:1] if clips else []
                stream.fits &= stream.clipped in (clips, None)
                stream.clipped = clips
                stream.fits &= layer.weight not in shared and layer.bias not in shared
            else:
                stream.fits &= node.op_type == "Add" and name in group
            for reader in readers.get(name, ()):
                reads = by_node.get(reader.name)
                if reader.name not in network_nodes:
                    stream.outside.append(name)
                elif reads is not None and reads.activation == name:
                    stream.readers.append(reads)
                    stream.fits &= reads.weight not in shared
                    stream.fits &= not reads.depthwise or reads.node in depthwise
                else:
                    stream.fits &= reader.op_type == "Add" and name in group
    return [one for one in streams.values() if one.fits and one.makers and one.readers]


def _maker(
    node: onnx.NodeProto,
    producers: Mapping[str, onnx.NodeProto],
    readers: Mapping[str, list[onnx.NodeProto]],
    outputs: set[str],
    zeros: set[str],
) -> onnx.NodeProto | None:
    """The layer behind a tensor, through a ReLU or ReLU6 that alone reads it."""
    if node.op_type not in _CLIPS:
        return node
    inner = node.input[0]
    if node.op_type == "Clip" and (len(node.input) < 2 or node.input[1] not in zeros):
        return None  # one that cuts below at another value is not the same at another scale
    if len(readers.get(inner, ())) != 1 or inner in outputs:
        return None
    return producers.get(inner)


def _joined(
    graph: onnx.GraphProto, network_nodes: frozenset[str], constants: set[str]
) -> dict[str, str]:
    """For tensors that residual connections add to each other: a name for all of them."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for node in graph.node:
        added = node.op_type == "Add" and node.name in network_nodes
        if added and not constants.intersection(node.input):
            for name in node.input:
                parent[root(name)] = root(node.output[0])
    return {name: root(name) for name in parent}


def _one_each(model: onnx.ModelProto, layer: Layer) -> bool:
    """Whether each group of a convolution has one input channel."""
    shape = next(tensor.dims for tensor in model.graph.initializer if tensor.name == layer.weight)
    return bool(shape[1] == 1 and shape[0] == layer.groups)


def _factors(
    stream: _Stream, weights: Mapping[str, Array], reached: Mapping[str, Extremes]
) -> Array | None:
    """By how much each channel is made larger; None where that is not known."""
    known = [reached[name].magnitude for name in stream.tensors if name in reached]
    if len({len(each) for each in known}) != 1:  # none, or one that is added to all channels
        return None
    magnitude = np.maximum.reduce(known)
    largest = magnitude.max()
    if not np.isfinite(largest) or largest == 0:
        return None
    clipped = stream.clipped
    if clipped:
        magnitude = np.minimum(magnitude * HEADROOM, largest)
    magnitude = np.maximum(magnitude, _FLOOR * largest)
    full: Array = np.minimum(largest / magnitude, _MOST)
    if all(layer.depthwise for layer in stream.readers):
        return full
    read: Array = np.zeros_like(magnitude)
    for layer in stream.readers:
        weight = np.abs(weights[layer.weight])
        if layer.depthwise:
            continue  # its weights have a scale for each channel
        read = np.maximum(read, weight.max(axis=tuple(a for a in range(weight.ndim) if a != 1)))
    read = np.maximum(read, 1e-3 * read.max()) if read.max() > 0 else np.ones_like(read)
    half: Array = np.sqrt(read / magnitude)
    if clipped:  # a channel made smaller would meet the clip later, or never
        half = np.minimum(half / half.min(), full)
        return np.maximum(half, 1.0, out=half)
    half *= largest / (half * magnitude).max()
    return np.clip(half, 1 / _MOST, _MOST, out=half)


def _rename(graph: onnx.GraphProto, stream: _Stream, network_nodes: frozenset[str]) -> None:
    """Give what is scaled its new names, wherever the network has it."""
    new = {name: scaled_name(name) for name in (*stream.tensors, *stream.unclipped)}
    for node in graph.node:
        if node.name in network_nodes:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
    described = [value for value in graph.value_info if value.name in new]
    graph.value_info.extend(value for value in described if value.name in stream.outside)
    for value in described:
        value.name = new[value.name]


def _scale_back(graph: onnx.GraphProto, tensors: list[str], factors: Array) -> None:
    """Compute tensors as they were, for what stands beyond the network."""
    for name in dict.fromkeys(tensors):
        scaled, constant = scaled_name(name), f"{name}/factors"
        graph.initializer.append(numpy_helper.from_array(factors.astype(np.float32), constant))
        made_by = next(n for n, node in enumerate(graph.node) if scaled in node.output)
        node = helper.make_node("Mul", [scaled, constant], [name], name=f"{name}/restore")
        graph.node.insert(made_by + 1, node)
