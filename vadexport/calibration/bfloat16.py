"""Weights in bfloat16 by what they do to a layer's output on images, not one by one to the nearest.

bfloat16 keeps 8 bits of a weight. That breaks the sum of filters that look for edges just as INT8
does (`rounding.py`), and biases are rounded as well, so that nothing can make up for a mean that
shifts. So each weight becomes one of its two neighbours in bfloat16, such that errors of a channel,
its bias's among them, cancel on what the layer reads.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vadexport.calibration.network import Layer, find_layers
from vadexport.calibration.observing import moments, turns
from vadexport.contract import Call
from vadexport.passes.bfloat16 import bfloat16_nodes, to_bfloat16

Array = NDArray[np.float64]

#: Of each column's own importance, what is added to it: keeps what images hardly show in bounds.
_RIDGE: Final = 1e-3
_MOST_SWEEPS: Final = 6
#: Columns up to which weights are rounded together; errors of more average out by themselves.
_MOST_COLUMNS: Final = 576
#: Bits of a bfloat16's fraction.
_FRACTION: Final = 7


def write_bfloat16(
    model: Path, network_nodes: frozenset[str], calls: Sequence[Call], destination: Path
) -> None:
    """Write a form of an ONNX file that computes in bfloat16 what of its network is not INT8.

    To be run in a child process.

    Args:
        model: ONNX file, float32 or with Q/DQ nodes.
        network_nodes: names of the network's nodes.
        calls: on normal images.
        destination: of the ONNX file.
    """
    graph = onnx.load(model)
    round_weights(graph, network_nodes, calls)
    onnx.save(to_bfloat16(graph, network_nodes), destination)


def round_weights(
    model: onnx.ModelProto, network_nodes: frozenset[str], calls: Sequence[Call]
) -> None:
    """Round, in place, weights of layers that will compute in bfloat16 to values that it has."""
    nodes = bfloat16_nodes(model, network_nodes)
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [
        layer
        for layer in find_layers(model, network_nodes)
        if layer.node in nodes and layer.kind == "Conv" and len(values[layer.weight].dims) == 4
    ]
    columns = {layer.node: int(np.prod(values[layer.weight].dims[1:])) for layer in layers}
    layers = [layer for layer in layers if columns[layer.node] <= _MOST_COLUMNS]
    exact = dict.fromkeys((layer.activation for layer in layers), (1.0, 1.0))
    for lot in turns(layers, columns):
        known = moments(model, lot, exact, calls, len(calls))
        for layer in _once(lot):
            weight = numpy_helper.to_array(values[layer.weight]).astype(np.float64)
            flat = weight.reshape(layer.groups, len(weight) // layer.groups, -1)
            bias = np.zeros(flat.shape[:2])
            if layer.bias:
                given = numpy_helper.to_array(values[layer.bias]).astype(np.float64)
                bias = np.broadcast_to(given.reshape(-1), len(weight)).reshape(bias.shape)
            found = known[layer.weight]
            made = rounded(flat, bias, found.mean, found.covariance).reshape(weight.shape)
            values[layer.weight].CopyFrom(
                numpy_helper.from_array(made.astype(np.float32), layer.weight)
            )


def nearest(values: Array) -> Array:
    """The nearest bfloat16 of each."""
    return values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def rounded(weights: Array, bias: Array, mean: Array, covariance: Array) -> Array:
    """Weights in bfloat16, whose errors and the bias's are small together.

    Each weight is one of the two bfloat16 around it; the error that counts is never larger than
    that of the nearest ones.

    Args:
        weights: float64 [G, O, D].
        bias: of each output channel, float64 [G, O]; it is rounded to the nearest.
        mean: of the columns that the weights are multiplied with, float64 [G, D].
        covariance: about it, float64 [G, D, D].
    """
    matrix = importance(mean, covariance)
    own = np.einsum("gdd->gd", matrix)
    made = nearest(weights)
    exponents = np.frexp(np.where(made == 0, 1.0, weights))[1] - 1
    steps = np.where(made == weights, 0.0, np.exp2(exponents - _FRACTION))
    other = nearest(np.where(made > weights, made - steps, made + steps))
    shift = nearest(bias) - bias
    slope = (made - weights) @ matrix + shift[..., None] * mean[:, None, :]
    for _ in range(_MOST_SWEEPS):
        changed = False
        for column in range(weights.shape[2]):
            move = other[..., column] - made[..., column]
            curve = own[:, column, None]
            helps = 2 * move * slope[..., column] + move**2 * curve < -1e-12 * move**2 * curve
            if helps.any():
                changed = True
                move = np.where(helps, move, 0.0)
                made[..., column] += move
                other[..., column] -= move
                slope += move[..., None] * matrix[:, None, column, :]
        if not changed:
            break
    return made


def importance(mean: Array, covariance: Array) -> Array:
    """How much errors of weights matter, float64 [G, D, D]: second moments of the columns."""
    matrix: Array = covariance + mean[:, :, None] * mean[:, None, :]
    own = np.einsum("gdd->gd", matrix)
    own = np.maximum(own, 1e-6 * own.max(axis=1, keepdims=True))
    matrix += _RIDGE * own[:, :, None] * np.eye(own.shape[1])
    return matrix


def _once(layers: Collection[Layer]) -> list[Layer]:
    """The first of those that share weights, whose own bias then decides."""
    return list({layer.weight: layer for layer in reversed(list(layers))}.values())
