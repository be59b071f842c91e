"""What INT8 shifts on average in the features that a score head reads, taken back by biases.

Bias correction (Nagel et al., ICCV 2019), only where it tells: the layers behind the tensors that
leave the network. To scale features as well, to what regression finds, made scores smaller, for
regression shrinks what is noisy (docs/int8.md).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport.calibration.network import Layer
from vadexport.calibration.observing import run_graph
from vadexport.calibration.qdq import Form, Plan, quantised
from vadexport.contract import Call
from vadexport.passes.base import tensors_read
from vadexport.passes.cutting import cut

_CLIPS: Final = ("Clip", "Relu")
#: Tensors that are corrected on all calls; more of them on fewer, for as many calls altogether.
_MOST_ON_ALL: Final = 6


class Corrector:
    """Finds the biases of any form of one plan.

    Args:
        model: float graph that the plan is for.
        plan: of its INT8 form.
        network_nodes: names of the network's nodes.
        calls: on normal images.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        plan: Plan,
        network_nodes: frozenset[str],
        calls: Sequence[Call],
    ) -> None:
        self._model, self._plan, self._network = model, plan, network_nodes
        found = leaving(model, plan, network_nodes)
        self._ends = {name: layer for name, layer in found.items() if layer.bias}
        self._calls = calls[:: max(1, -(-len(self._ends) // _MOST_ON_ALL))]
        means = _means(model, list(self._ends), self._calls) if self._ends else []
        self._expected = dict(zip(self._ends, means, strict=True))

    def form(self, form: Form, float_nodes: frozenset[str] = frozenset()) -> onnx.ModelProto:
        """The graph in a form, with what leaves its INT8 layers brought back to its mean.

        One tensor after the other, for each correction moves what is computed from it: all at once
        they would take the same shift back several times.
        """
        plan, write = self._plan, int(form.signed)
        for name, layer in self._ends.items():
            if layer.node in float_nodes:
                continue
            made = quantised(self._model, plan, self._network, form, float_nodes)
            (found,) = _means(made, [name], self._calls)
            mean = self._expected[name]
            shift = np.array(plan.shifts.get(layer.node, np.zeros((2, len(mean)))))
            shift[write] += found - mean
            plan = replace(plan, shifts={**plan.shifts, layer.node: shift})
        return quantised(self._model, plan, self._network, form, float_nodes)


def write_form(  # noqa: PLR0913, PLR0917 - a call into a child process, which takes plain values
    model: Path,
    plan: Plan,
    network_nodes: frozenset[str],
    calls: Sequence[Call],
    form: Form,
    float_nodes: frozenset[str],
    destination: Path,
) -> None:
    """Write a corrected form of the ONNX file `model`. To be run in a child process."""
    corrector = Corrector(onnx.load(model), plan, network_nodes, calls)
    onnx.save(corrector.form(form, float_nodes), destination)


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
    totals: list[NDArray[np.float64]] = []
    count = 0
    for values in run_graph(cut(model, tensors), calls):
        means = [value.mean(axis=(0, *range(2, value.ndim)), dtype=np.float64) for value in values]
        totals = [one + other for one, other in zip(totals, means, strict=True)] if count else means
        count += 1
    return [total / count for total in totals]
