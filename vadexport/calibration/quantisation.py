"""Symmetric INT8 of a graph's network, from normal images; its score head stays in float."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vadexport.calibration.equalisation import equalise
from vadexport.calibration.network import Layer, find_layers, sums
from vadexport.calibration.observing import MOST_COLUMNS, Extremes, extremes, moments, turns
from vadexport.calibration.qdq import Plan, QuantisedWeight, least_scales, steps_of
from vadexport.calibration.rounding import LARGEST, importance, nearest, rounded
from vadexport.calibration.synthetic_defects import with_defect
from vadexport.contract import Call, ImageArray, ImageInput
from vadexport.errors import InputError, UnfitError
from vadexport.images import ImageFile, load_images
from vadexport.machine import MOST_WITHOUT_VNNI
from vadexport.passes.base import GraphView
from vadexport.passes.scaling import scaled_name

#: Images whose inputs to each layer weights are rounded by.
_MOST_ROUNDING_IMAGES: Final = 32
#: A tensor that reaches less is taken for one that is always 0.
_LEAST_REACH: Final = 1e-18
#: Sums of squares of more would overflow float32.
_MOST_REACH: Final = 1e15


@dataclass(frozen=True)
class Choices:
    """What of the method is done: all of it, but in measurements of its parts.

    Attributes:
        reduce_range: weights take 7 bits, for processors that add two products in an int16, which
            saturates, before they go on in int32: those without VNNI. Of depthwise convolutions
            they keep 8: there is one product at a time.
        equalising: bring channels to like ranges.
        rounding: round weights by what they do on images, not to the nearest.
        planted: take ranges from images with planted defects as well.
        headroom: of ranges, over what images reach.
    """

    reduce_range: bool = False
    equalising: bool = True
    rounding: bool = True
    planted: bool = True
    headroom: float = 1.0


def plan_int8(  # noqa: PLR0913, PLR0917 - a call into a child process, which takes plain values
    model: Path,
    equalised: Path,
    network_nodes: frozenset[str],
    images: Sequence[ImageFile],
    image_input: ImageInput,
    choices: Choices,
    progress: Callable[[int, int], None],
) -> Plan:
    """Decide how a graph's network becomes INT8. To be run in a child process.

    Ranges are those that normal images reach, and normal images with planted defects: ranges of
    normal images alone clip what defects excite. Channels are equalised first, where the network
    lets them be (`equalisation`), and weights are rounded by what they do on normal images
    (`rounding`).

    Args:
        model: ONNX file.
        equalised: where the graph that the plan is for is written.
        network_nodes: names of the nodes that may be quantised.
        images: calibration images.
        image_input: the graph's input.
        choices: parts of the method.
        progress: told how many images were run, of how many.

    Raises:
        InputError: there is no image, one cannot be read or has the wrong size, or values of the
            network are not finite.
        UnfitError: there is nothing to quantise.
    """
    if not images:
        raise InputError("the calibration set holds no normal image")
    graph = onnx.load(model)
    layers = find_layers(graph, network_nodes)
    if not layers:
        raise UnfitError("there is nothing to quantise in the network of this detector")
    _check_weights(graph, layers)
    few = images[:: -(-len(images) // _MOST_ROUNDING_IMAGES)]
    lots = turns(layers, _columns(graph, layers)) if choices.rounding else []
    told = _Told(progress, len(images) * (1 + choices.planted) + len(few) * len(lots))
    named = dict.fromkeys(layer.activation for layer in layers)
    for node in sums(graph, network_nodes):
        named.update(dict.fromkeys((*node.input, *node.output)))
    seen = _calls(images, image_input, told, planted=False)
    reached = extremes(graph, tuple(named), seen)
    if choices.planted:
        also = extremes(graph, tuple(named), _calls(images, image_input, told, planted=True))
        reached = {name: _wider(each, also[name]) for name, each in reached.items()}
    _check_finite(reached)
    if choices.equalising:
        graph, factors = equalise(graph, layers, network_nodes, reached)
        layers = find_layers(graph, network_nodes)
        reached = {
            scaled_name(name) if name in factors else name: each.scaled(factors.get(name, 1.0))
            for name, each in reached.items()
        }
    reach = _reach(graph, reached, choices.headroom)
    fit = tuple(layer for layer in layers if layer.activation in reach)
    if not fit:
        raise UnfitError("every layer of this detector's network only ever reads zeros")
    weights: dict[str, QuantisedWeight] = {}
    shifts: dict[str, NDArray[np.float64]] = {}
    for lot in turns(fit, _columns(graph, fit)) if choices.rounding else [list(fit)]:
        # Every second one with a defect: weights must not be wrong for what defects excite.
        halves = ((few[::2], False), (few[1::2], choices.planted))
        seen = chain.from_iterable(
            _calls(half, image_input, told, planted=planted) for half, planted in halves
        )
        count = sum(-(-len(half) // (image_input.batch or 1)) for half, _ in halves)
        _round(graph, lot, reach, weights, shifts, seen, count, choices)
    onnx.save(graph, equalised)
    return Plan(fit, reach, weights, shifts, _never_negative(graph, tuple(reach)))


class _Told:
    """Counts images over all passes."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def one_more(self, count: int) -> None:
        self._done = min(self._done + count, self._total)
        self._progress(self._done, self._total)


def _calls(
    images: Sequence[ImageFile], image_input: ImageInput, told: _Told, *, planted: bool
) -> Iterator[Call]:
    """Calls of the graph, filled up by images from the start; with a defect in each, if wanted."""
    size = image_input.batch or 1
    for start in range(0, len(images), size):
        chosen = [images[(start + offset) % len(images)] for offset in range(size)]
        arrays: list[ImageArray] = [
            array for _, array in load_images(chosen, image_input, skip_unreadable=False)
        ]
        if planted:
            arrays = [with_defect(array, start + n) for n, array in enumerate(arrays)]
        filled, _ = next(image_input.batches(np.stack(arrays)))
        yield filled
        told.one_more(min(size, len(images) - start))


def _wider(one: Extremes, other: Extremes) -> Extremes:
    return Extremes(np.minimum(one.low, other.low), np.maximum(one.high, other.high))


def _check_finite(reached: dict[str, Extremes]) -> None:
    for name, each in reached.items():
        if not each.magnitude.max() <= _MOST_REACH:  # nor where it is NaN
            raise InputError(
                f"the network's tensor {name} takes values that are not finite, or beyond "
                f"{_MOST_REACH:g}, on calibration images: its weights are damaged, or too large"
            )


def _reach(
    model: onnx.ModelProto, reached: dict[str, Extremes], headroom: float
) -> dict[str, float]:
    """Largest magnitude that INT8 shall tell of each tensor; those that are always 0 left out.

    What comes out of a ReLU6 cannot be more than 6; what is all but 0 has no steps in float32.
    """
    ceilings = dict(_ceilings(model))
    found = {}
    for name, each in reached.items():
        most = min(float(each.magnitude.max()) * headroom, ceilings.get(name, np.inf))
        if most > _LEAST_REACH:
            found[name] = most
    return found


def _ceilings(model: onnx.ModelProto) -> Iterator[tuple[str, float]]:
    view = GraphView(model)
    for node in model.graph.node:
        if node.op_type == "Clip" and len(node.input) > 2:
            ends = [view.constant(name) for name in node.input[1:3]]
            if ends[0] is not None and ends[1] is not None:
                yield node.output[0], float(max(abs(ends[0]), abs(ends[1])))


def _never_negative(model: onnx.ModelProto, tensors: Sequence[str]) -> frozenset[str]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = set()
    for node in model.graph.node:
        if node.op_type == "Relu":
            found.add(node.output[0])
        elif node.op_type == "Clip" and len(node.input) > 1:
            least = constants.get(node.input[1])
            if least is not None and float(numpy_helper.to_array(least)) >= 0:
                found.add(node.output[0])
    return frozenset(found.intersection(tensors))


def _columns(model: onnx.ModelProto, layers: Sequence[Layer]) -> dict[str, int]:
    """Columns of each layer's weights, 0 where they are not rounded by what they do."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    found = {}
    for layer in layers:
        shape = shapes[layer.weight]
        width = int(np.prod(shape)) // max(1, shape[layer.axis])
        flat = len(shape) == 4 if layer.kind == "Conv" else layer.kind in ("MatMul", "Gemm")
        found[layer.node] = width if flat and width <= MOST_COLUMNS else 0
    return found


def _round(  # noqa: PLR0913, PLR0917
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    reach: dict[str, float],
    weights: dict[str, QuantisedWeight],
    shifts: dict[str, NDArray[np.float64]],
    calls: Iterator[Call],
    count: int,
    choices: Choices,
) -> None:
    """Add to `weights` and `shifts` what becomes of some layers."""
    columns = _columns(model, layers)
    by_images = [layer for layer in layers if choices.rounding and columns[layer.node]]
    positive = _never_negative(model, tuple(reach))
    steps_read = {
        name: steps_of(most, never_negative=name in positive) for name, most in reach.items()
    }
    known = moments(model, by_images, steps_read, calls, count) if by_images else {}
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer in layers:
        weight = numpy_helper.to_array(values[layer.weight]).astype(np.float64)
        if layer.weight not in weights:
            sharing = [each for each in layers if each.weight == layer.weight]
            largest = _largest(weight, layer, reduce_range=choices.reduce_range)
            scales = _scales(weight, layer, largest)
            for each in sharing:
                bias = numpy_helper.to_array(values[each.bias]) if each.bias else np.zeros(1)
                scales = least_scales(each, bias, reach[each.activation], scales)
            stored = _stored(scales, layer, max(reach[each.activation] for each in sharing))
            flat = _flat(weight, layer)
            steps = stored.astype(np.float64).reshape(flat.shape[:2])
            if layer.weight in known:
                found = known[layer.weight]
                matrix = importance(found.mean, found.covariance)
                integers = rounded(flat, steps, matrix, largest)
            else:
                integers = nearest(flat, steps, largest)
            weights[layer.weight] = QuantisedWeight(_back(integers, weight, layer), stored)
        if layer.weight in known:
            found = known[layer.weight]
            rough = _flat(_dequantised(weights[layer.weight], layer), layer)
            meant = np.einsum("god,gd->go", _flat(weight, layer), found.mean)
            computed = np.einsum("god,fgd->fgo", rough, found.rounded)
            shifts[layer.node] = (computed - meant).reshape(2, -1)


def _check_weights(model: onnx.ModelProto, layers: Sequence[Layer]) -> None:
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in dict.fromkeys(name for each in layers for name in (each.weight, each.bias) if name):
        if not np.isfinite(numpy_helper.to_array(values[name])).all():
            raise InputError(f"the weights {name} are not finite: the detector is damaged")


def _stored(scales: NDArray[np.float64], layer: Layer, reach: float) -> NDArray[np.float32]:
    """Scales as a graph holds them; their products with steps of activations fit as well."""
    with np.errstate(over="ignore"):
        stored = scales.astype(np.float32)
        products = np.float32(reach) * stored
    if not np.isfinite(products).all():
        raise InputError(
            f"the weights {layer.weight}, or their bias, are too large for INT8: a step of their "
            "products overflows float32; the detector is damaged"
        )
    return stored


def _largest(weight: NDArray[np.float64], layer: Layer, *, reduce_range: bool) -> int:
    """Largest integer of a layer's weights."""
    depthwise = layer.groups > 1 and weight.shape[:2] == (layer.groups, 1)
    return MOST_WITHOUT_VNNI if reduce_range and not depthwise else LARGEST


def _scales(
    weight: NDArray[np.float64], layer: Layer, largest: int = LARGEST
) -> NDArray[np.float64]:
    """A step of each output channel: its largest weight in so many steps."""
    axes = tuple(axis for axis in range(weight.ndim) if axis != layer.axis)
    scales: NDArray[np.float64] = np.abs(weight).max(axis=axes) / largest
    # Channels of zeros alone get a step like the others': it is their bias's as well.
    usual = np.median(scales[scales > 0]) if (scales > 0).any() else 1.0
    return np.where(scales > 0, scales, usual)


def _flat(weight: NDArray[np.float64], layer: Layer) -> NDArray[np.float64]:
    """Weights as `[G, O, D]`: output channels of each group, and the columns they multiply."""
    rows = np.moveaxis(weight, layer.axis, 0)
    return rows.reshape(layer.groups, rows.shape[0] // layer.groups, -1)


def _back(
    integers: NDArray[np.float64], weight: NDArray[np.float64], layer: Layer
) -> NDArray[np.int8]:
    """The inverse of `_flat`."""
    shape = np.moveaxis(weight, layer.axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(integers.reshape(shape), 0, layer.axis).astype(np.int8))


def _dequantised(weight: QuantisedWeight, layer: Layer) -> NDArray[Any]:
    shape = [1] * weight.values.ndim
    shape[layer.axis] = -1
    return weight.values * weight.scales.astype(np.float64).reshape(shape)
