"""uint8 activations with zero point 0 as int8: TensorRT would read their bytes as int8."""

from typing import ClassVar, Final

import numpy as np
import onnx
from onnx import numpy_helper

from vadexport.passes.base import GraphView

_QUANTISERS: Final = ("QuantizeLinear", "DequantizeLinear")
#: Largest value of uint8 over that of int8: the same range in half as many steps.
_COARSER: Final = np.float32(255 / 127)


class SignedActivations:
    """`QuantizeLinear` and `DequantizeLinear` of uint8, zero point 0, become those of int8.

    NNCF takes uint8 where values are never negative (behind a ReLU6), whatever it is asked for.
    TensorRT knows int8 alone, and takes such bytes for int8 with no more than a warning. The range
    stays, in 127 steps instead of 255: the one graph that all INT8 targets share must mean the same
    to each of them.

    Must not apply where the zero point is not 0, or is no constant; nor to constants (weights),
    whose bytes would have to change as well.
    """

    name: ClassVar[str] = "signed-activations"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        view = GraphView(model)
        graph = model.graph
        made: set[str] = set()
        count = 0
        for node in graph.node:
            if node.op_type not in _QUANTISERS or len(node.input) < 3:
                continue
            if view.constant(node.input[0]) is not None:
                continue
            scale, zero = view.constant(node.input[1]), view.constant(node.input[2])
            if scale is None or zero is None or zero.dtype != np.uint8 or np.any(zero):
                continue
            names = [f"{node.input[1]}/signed", f"{node.input[2]}/signed"]
            values = [scale.astype(np.float32) * _COARSER, zero.astype(np.int8)]
            for name, value in zip(names, values, strict=True):
                if name not in made:
                    made.add(name)
                    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
            node.input[1:3] = names
            count += node.op_type == "QuantizeLinear"
        _drop_descriptions(graph)
        return count


def _drop_descriptions(graph: onnx.GraphProto) -> None:
    """Types that were noted for quantised tensors no longer hold."""
    quantised = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    described = [value for value in graph.value_info if value.name not in quantised]
    del graph.value_info[:]
    graph.value_info.extend(described)
