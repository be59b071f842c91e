"""A gray image is repeated to the channels of a network before its normalisation, not by it."""

from typing import ClassVar, Final

import onnx

from vadexport.passes.base import GraphView

_ELEMENTWISE: Final = ("Sub", "Add", "Mul", "Div")
#: A camera's image is made of no more; of feature maps there may be hundreds.
_MOST_CHANNELS: Final = 4


class GrayChannels:
    """`x − mean` of one channel and C means becomes `concat(x, …, x) − mean`.

    The arithmetic is the same, bit for bit. OpenVINO computes a whole normalisation on the way to
    the first convolution, but not where one of its steps turns one channel into three.

    Must not apply where the image is not float32 `[N, 1, H, W]` of a static size with more than one
    pixel, or the other operand is no constant with one value for each of 2 to 4 channels.
    """

    name: ClassVar[str] = "gray-channels"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        view = GraphView(model)
        matches = [
            (node, place, channels)
            for node in model.graph.node
            if node.op_type in _ELEMENTWISE
            for place in (0, 1)
            if (channels := _channels(node, place, view))
        ]
        for node, place, channels in matches:
            repeated = f"{node.output[0]}/repeated"
            concat = onnx.helper.make_node(
                "Concat", channels * [node.input[place]], [repeated], name=repeated, axis=1
            )
            node.input[place] = repeated
            model.graph.node.insert(list(model.graph.node).index(node), concat)
        return len(matches)


def _channels(node: onnx.NodeProto, place: int, view: GraphView) -> int:
    """How often an operand is repeated along its channels; 0 where the rule does not hold."""
    image, other = node.input[place], view.constant(node.input[1 - place])
    shape = view.shape(image)
    if shape is None or len(shape) != 4 or shape[1] != 1 or other is None:
        return 0
    height, width = shape[2:]
    if height is None or width is None or height * width == 1:
        return 0
    if view.dtype(image) != onnx.TensorProto.FLOAT or other.ndim not in (3, 4):
        return 0
    channels = int(other.shape[-3])
    return channels if 1 < channels == other.size <= _MOST_CHANNELS else 0
