"""Small graphs from text, and float16 storage written down once more, in numpy."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vadexport.passes.half_precision import plan_half, to_half

OPSET = 20
_RNG = np.random.default_rng(3)
#: Of `residual_network`.
WEIGHTS = {
    "w1": _RNG.normal(size=(8, 3, 3, 3)) / 4,
    "b1": _RNG.normal(size=8),
    "w2": _RNG.normal(size=(8, 8, 3, 3)) / 6,
    "w3": _RNG.normal(size=(4, 8, 1, 1)) / 2,
}


def graph(inputs, nodes, outputs, **weights):
    """A graph whose nodes are named after what they give.

    `inputs` and `outputs` are as ONNX writes them ("float[1,3] x"), `nodes` one a line.
    """
    text = f'<ir_version: 9, opset_import: ["" : {OPSET}]> g ({inputs}) => ({outputs}) {{{nodes}}}'
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = next(name for name in node.output if name)
    for name, value in weights.items():
        kept = value if np.asarray(value).dtype.kind in "iu" else np.asarray(value, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(kept), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def names(model):
    return frozenset(node.name for node in model.graph.node)


def residual_network():
    """A residual block, pooling, a resize; then a score head that squares and sums."""
    return graph(
        "float[2,3,16,16] image",
        """
        c1 = Conv<pads = [1,1,1,1]>(image, w1, b1)
        r1 = Relu(c1)
        c2 = Conv<pads = [1,1,1,1]>(r1, w2)
        sum = Add(c2, r1)
        r2 = Relu(sum)
        pooled = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r2)
        c3 = Conv(pooled, w3)
        heat = Resize<mode = "linear">(c3, , scales)
        squared = Mul(heat, heat)
        score = ReduceSum<keepdims = 0>(squared, axes)
        """,
        "float[2,4,16,16] heat, float[2] score",
        **WEIGHTS,
        scales=np.array([1, 1, 2, 2.0]),
        axes=np.array([1, 2, 3]),
    )


def in_network(model):
    return names(model) - {"squared", "score"}


def planned(model, largest=None, network_nodes=None, in_full=None):
    plan = plan_half(model, network_nodes or names(model), largest or {}, in_full or {})
    return plan, to_half(model, plan)


def run(model, **feeds):
    """All outputs by name, of ONNX Runtime on the processor."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, feeds)
    return {each.name: value for each, value in zip(session.get_outputs(), found, strict=True)}


def stored_as_half(model, **feeds):
    """All outputs by name, where every float16 tensor is rounded, and all sums are float32.

    Each node is computed alone by ONNX's reference in float32; then what the graph types as
    float16 is rounded by numpy.
    """
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {each.name: each.type.tensor_type.elem_type for each in inferred.value_info}
    types |= {each.name: each.type.tensor_type.elem_type for each in inferred.output}
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer} | feeds
    for node in model.graph.node:
        found = _alone(node, [widened(values[name]) for name in node.input if name])
        for name, value in zip(node.output, found, strict=True):
            half = types[name] == TensorProto.FLOAT16
            values[name] = value.astype(np.float16) if half else value
    return {each.name: values[each.name] for each in model.graph.output}


def widened(value):
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _alone(node, values):
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    for attribute in copy.attribute:
        if copy.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
    read = [name for name in copy.input if name]
    feeds = dict(zip(read, values, strict=True))
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
        for name, value in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in copy.output]
    one = helper.make_graph([copy], "one", inputs, outputs)
    opsets = [helper.make_opsetid("", OPSET)]
    evaluator = ReferenceEvaluator(helper.make_model(one, opset_imports=opsets, ir_version=9))
    return evaluator.run(None, feeds)
