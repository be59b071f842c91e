"""What INT8 shifts on average in the features that a score head reads, taken back by biases.

Bias correction (Nagel et al., ICCV 2019), only where it tells: the layers behind the tensors that
leave the network. To scale features as well, to what regression finds, made scores smaller, for
regression shrinks what is noisy (docs/int8.md).
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vadexport.calibration.network import Layer
from vadexport.calibration.observing import run_graph
from vadexport.calibration.qdq import Form, Plan, quantised
from vadexport.contract import Call
from vadexport.passes.base import tensors_read

_CLIPS = ("Clip", "Relu")


def corrected(
    model: onnx.ModelProto,
    plan: Plan,
    network_nodes: frozenset[str],
    calls: Callable[[], Iterable[Call]],
) -> Plan:
    """The plan with biases that bring what leaves the network back to its mean on normal images.

    Measured in the form of processors (`Form(signed=False)`), one tensor after the other, for each
    correction moves what is computed from it.

    Args:
        model: float graph that the plan is for.
        plan: of its INT8 form.
        network_nodes: names of the network's nodes.
        calls: gives calls on normal images, each time the same.
    """
    ends = {
        name: layer for name, layer in leaving(model, plan, network_nodes).items() if layer.bias
    }
    if not ends:
        return plan
    expected = _means(model, list(ends), calls())
    for number, (name, layer) in enumerate(ends.items()):
        made = quantised(model, plan, network_nodes, Form(signed=False))
        # Those before are right already, those behind still change.
        found = _means(made, [name], calls())[0]
        shift = plan.shifts.get(layer.node, 0.0) + found - expected[number]
        plan = replace(plan, shifts={**plan.shifts, layer.node: shift})
    return plan


def leaving(model: onnx.ModelProto, plan: Plan, network_nodes: frozenset[str]) -> dict[str, Layer]:
    """Tensors whose values leave the network, and the layer that computes each last.

    Of one that is clipped, what is clipped; of a sum, the layer that computes a side of it last.
    """
    graph = model.graph
    layers = {layer.node: layer for layer in plan.layers if layer.kind == "Conv"}
    producers = {name: node for node in graph.node for name in node.output}
    place = {node.name: number for number, node in enumerate(graph.node)}
    outside = {
        name for node in graph.node if node.name not in network_nodes for name in tensors_read(node)
    }
    outside.update(output.name for output in graph.output)
    found: dict[str, Layer] = {}
    for node in graph.node:
        if node.name not in network_nodes or not outside.intersection(node.output):
            continue
        last = node
        if last.op_type in _CLIPS:
            last = producers.get(last.input[0], last)
        sides = [last]
        if last.op_type == "Add":
            sides = [producers[name] for name in last.input if name in producers]
        makers = [layers[side.name] for side in sides if side.name in layers]
        if makers:
            found[last.output[0]] = max(makers, key=lambda layer: place[layer.node])
    return found


def _means(
    model: onnx.ModelProto, tensors: list[str], calls: Iterable[Call]
) -> list[NDArray[np.float64]]:
    """Mean of each channel over all images and places, [C] of each tensor."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors
    )
    totals: list[NDArray[np.float64]] = []
    count = 0
    for values in run_graph(watched, calls):
        means = [value.mean(axis=(0, *range(2, value.ndim)), dtype=np.float64) for value in values]
        totals = [one + other for one, other in zip(totals, means, strict=True)] if count else means
        count += 1
    return [total / count for total in totals]
