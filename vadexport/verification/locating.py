"""Where in a graph a step of a build begins to differ from the step before it.

Each part of the later graph is fed what the earlier graph gives there, so that it answers for what
it adds itself: the rounding of all INT8 layers before a fault would hide it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from vadexport.backends.inner import isolated_values
from vadexport.contract import INPUT_NAME, Call
from vadexport.passes.base import GraphView, tensors_read
from vadexport.passes.half_rounding import rounded_as_half
from vadexport.passes.isolating import isolated, made
from vadexport.passes.narrow import name_before
from vadexport.passes.scaling import scaling
from vadexport.targets import AUTO, Target
from vadexport.verification.causes import layer_cause, quantiser_cause
from vadexport.verification.tensors import tensor_values

#: A step before: its ONNX file, or some of its tensors by name.
Before = Path | Mapping[str, NDArray[np.float32]]

#: Rounding alone leaves less, of a tensor's root mean square, where a part computes in float32, ...
_ROUNDING: Final = 1e-4
#: ... where it rounds to float16 or bfloat16 (8 bits), ...
_HALF_ROUNDING: Final = 2e-2
#: ... and to INT8: steps of 1/127 of a range that images before have reached, and in weights.
_INT8_ROUNDING: Final = 2e-1
_BY_PRECISION: Final = {
    "fp32": _ROUNDING,
    "fp16": _HALF_ROUNDING,
    "int8": _INT8_ROUNDING,
    AUTO: _INT8_ROUNDING,
}


@dataclass(frozen=True)
class Difference:
    """What a part of a graph adds.

    Attributes:
        node: name of the node that gives the tensor in the later graph.
        operator: of that node.
        size: root mean square of the difference, as a fraction of that of the tensor.
        rounding: that its precision explains, likewise.
        cause: what is likely to have caused it, in words; None where nothing known fits.
    """

    node: str
    operator: str
    size: float
    rounding: float
    cause: str | None = None

    @property
    def beyond(self) -> bool:
        """Whether it is more than rounding; what is no number is."""
        return not self.size <= self.rounding

    def __str__(self) -> str:
        if np.isnan(self.size):
            found = "not a number"
        elif np.isinf(self.size):
            found = "another shape"
        else:
            found = f"{self.size:.2g} of its magnitude"
        likely = f"; likely: {self.cause}" if self.cause else ""
        return f"{self.node} ({self.operator}, {found}{likely})"


@dataclass(frozen=True)
class Divergence:
    """How two graphs part.

    Attributes:
        first: where they begin to differ by more than rounding; None where rounding adds up.
        largest: where most is added.
    """

    first: Difference | None
    largest: Difference

    def __str__(self) -> str:
        if self.first is None:
            return f"no part adds more than rounding, and {self.largest} adds most"
        if self.first.node == self.largest.node:
            return f"the difference begins at {self.first}"
        return f"the difference begins at {self.first} and {self.largest} adds most"


class _Part(NamedTuple):
    """A tensor that a part of the later graph makes, and what it should be."""

    node: onnx.NodeProto
    expected: NDArray[np.float32]
    found: NDArray[np.float32]
    rounding: float
    quantiser: bool = False

    def difference(self) -> Difference:
        size = _size(self.expected, self.found)
        cause = None
        if not size <= _ROUNDING:
            known = quantiser_cause if self.quantiser else layer_cause
            cause = known(self.expected, self.found)
        name = self.node.name or self.node.output[0]
        return Difference(name, self.node.op_type, size, self.rounding, cause)


def locate(before: Before, after: Path, call: Call) -> Divergence | None:
    """Compare all tensors that two steps share, and quantisers with what they read.

    To be run in a child process: ONNX Runtime runs both, and keeps every tensor of both.

    Args:
        before: the earlier step.
        after: the later one, an ONNX file.
        call: of the graphs, one image.

    Returns:
        Where they part; None where no part adds more than float32's rounding.
    """
    new = rounded_as_half(onnx.load(after))
    quantisers, scaled = _quantisers(new), scaling(new)
    expected = _expected(before, new, call)
    known = {INPUT_NAME: call, **expected}
    expected |= {name: known[read] for name, read in quantisers.items() if read in known}
    # What has another shape cannot be fed, and shows as it is.
    whole = tensor_values(new, list(expected), call)
    fed = {name: each for name, each in expected.items() if whole[name].shape == each.shape}
    whole = {name: each for name, each in whole.items() if name not in fed}
    apart = tensor_values(isolated(new, fed), [made(name) for name in fed], call, fed)
    precisions = _Precisions(new, frozenset(fed), frozenset(scaled))
    return _divergence(
        _Part(
            precisions.maker_of(name),
            expected[name],
            apart[made(name)] if name in fed else whole[name],
            precisions.rounding_of(name),
            quantiser=name in quantisers,
        )
        for node in new.graph.node
        for name in node.output
        if name in expected
    )


def _expected(before: Before, new: onnx.ModelProto, call: Call) -> dict[str, NDArray[np.float32]]:
    """Tensors of `new` that `before` has too, scaled where `new` has them scaled."""
    scaled, values = scaling(new), before
    wanted = {
        name: scaled[name][0] if name in scaled else name_before(name) for name in _floats(new)
    }
    if isinstance(values, Path):
        old = rounded_as_half(onnx.load(values))
        shared = set(wanted.values()).intersection(_floats(old))
        values = tensor_values(old, sorted(shared), call)
    wanted = {name: was for name, was in wanted.items() if was in values}
    expected = {}
    for name, was in wanted.items():
        value = values[was]
        if name in scaled:
            shape = (1, -1, *[1] * (value.ndim - 2))
            value = (value * scaled[name][1].reshape(shape)).astype(np.float32)
        expected[name] = value
    return expected


def locate_compiled(
    graph: Path, artifact: tuple[Path, Target], threads: int, call: Call
) -> Divergence | None:
    """Compare the tensors that a compiled model shares with the graph that it was compiled from.

    To be run in a child process, like `locate`.

    Args:
        graph: ONNX file of the graph.
        artifact: its folder and target.
        threads: that it may use.
        call: of the graph, one image.

    Returns:
        As `locate`; also None where the backend does not show its tensors, and where the fault
        shows only as it runs the whole.
    """
    folder, target = artifact
    old = rounded_as_half(onnx.load(graph))
    quantisers, moving = _quantisers(old), _of_the_image(old)
    names = [name for name in _floats(old) if name in moving and name not in quantisers]
    expected = tensor_values(old, names, call)
    found = isolated_values((folder, target, threads), expected, call)
    # Where the graph is quantised, both round alike.
    rounding = _HALF_ROUNDING if quantisers else _BY_PRECISION[target.precision]
    return _divergence(
        _Part(node, expected[name], found[name], rounding)
        for node in old.graph.node
        for name in node.output
        if name in found
    )


def _divergence(parts: Iterable[_Part]) -> Divergence | None:
    differences = [part.difference() for part in parts]
    if all(one.size <= _ROUNDING for one in differences):
        return None
    first = next((one for one in differences if one.beyond), None)
    return Divergence(first, max(differences, key=_share))


def _share(one: Difference) -> float:
    """Of the rounding that is explained."""
    return np.inf if np.isnan(one.size) else one.size / one.rounding


def _size(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Of the largest difference, INT8 leaves too much in a value that it may clip."""
    if expected.shape != found.shape:
        return float("inf")
    before, after = expected.astype(np.float64), found.astype(np.float64)
    alike = (before == after) | (np.isnan(before) & np.isnan(after))
    if alike.all():
        return 0.0
    off = np.where(alike, 0.0, after - np.where(alike, 0.0, before))
    finite = before[np.isfinite(before)]
    magnitude = float(np.sqrt(np.square(finite).mean())) if finite.size else 0.0
    size = float(np.sqrt(np.square(off).mean())) / (magnitude or 1.0)
    return size if np.isfinite(size) else float("nan")


def _floats(model: onnx.ModelProto) -> dict[str, None]:
    """Names of float32 tensors that nodes give, in order of computation."""
    view = GraphView(model)
    names = (name for node in model.graph.node for name in node.output if name)
    return dict.fromkeys(name for name in names if view.dtype(name) == TensorProto.FLOAT)


def _of_the_image(model: onnx.ModelProto) -> frozenset[str]:
    """Names of tensors that are not the same for all images, as dequantised weights are."""
    found = {INPUT_NAME}
    for node in model.graph.node:
        if not found.isdisjoint(tensors_read(node)):
            found.update(node.output)
    return frozenset(found)


def _quantisers(model: onnx.ModelProto) -> dict[str, str]:
    """By the name of what a pair of quantisers gives, the tensor that it reads."""
    reads = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    return {
        node.output[0]: reads[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in reads
    }


class _Precisions:
    """What the parts of a graph round to.

    Args:
        model: the graph, float16 spelt out as rounding.
        ends: tensors that parts are fed.
        scaled: those among the model's that clip as INT8 does: see `calibration.equalisation`.
    """

    def __init__(
        self, model: onnx.ModelProto, ends: frozenset[str], scaled: frozenset[str]
    ) -> None:
        self._makers: dict[str, onnx.NodeProto] = {
            name: node for node in model.graph.node for name in node.output
        }
        self._ends = ends
        self._scaled = scaled

    def maker_of(self, name: str) -> onnx.NodeProto:
        """The node that makes a tensor, before the casts that spell out float16."""
        node = self._makers[name]
        while node.op_type == "Cast" and node.name.endswith("/rounding"):
            node = self._makers[node.input[0]]
        return node

    def rounding_of(self, name: str) -> float:
        """That the part explains which makes a tensor."""
        if name in self._scaled:
            return _INT8_ROUNDING
        found, stack = _ROUNDING, [self._makers[name]]
        seen: set[str] = set()
        while stack:
            node = stack.pop()
            if node.output[0] in seen:
                continue
            seen.add(node.output[0])
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                return _INT8_ROUNDING
            if node.op_type == "Cast" and _casts_to_half(node):
                found = _HALF_ROUNDING
            stack += [
                self._makers[each]
                for each in tensors_read(node)
                if each in self._makers and each not in self._ends
            ]
        return found


def _casts_to_half(node: onnx.NodeProto) -> bool:
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return any(each.name == "to" and each.i in halves for each in node.attribute)
