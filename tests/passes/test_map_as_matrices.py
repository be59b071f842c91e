from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from scipy import ndimage
from torch.nn import functional

from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.passes.map_as_matrices import (
    MapAsMatrices,
    correlation_matrix,
    linear_resize_matrix,
    reflect_pad_matrix,
)

TAPS = np.array([0.1, 0.2, 0.4, 0.2, 0.1], np.float32)


@dataclass
class Case:
    """Resize → Pad → Conv → Conv, as the exporter writes it unless told otherwise."""

    source: tuple[int, int] = (7, 5)
    target: tuple[int, int] = (28, 20)
    kernels: tuple[tuple[int, Any], ...] = ((0, TAPS), (1, TAPS))
    margins: tuple[int, int, int, int] = (2, 2, 2, 2)  # top, left, bottom, right
    opset: int = 20
    batch: int | str = 1
    channels: int = 1
    dtype: Any = np.float32
    scales: tuple[float, float] | None = None
    resize: dict[str, Any] = field(default_factory=dict)
    pad: dict[str, Any] = field(default_factory=dict)
    convs: dict[str, Any] = field(default_factory=dict)
    bias: bool = False
    outputs: tuple[str, ...] = ()
    read_again: str = ""
    static: bool = True

    def input_shape(self):
        return [self.batch, self.channels, *(self.source if self.static else ("h", "w"))]

    def model(self):
        resize = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", **self.resize}
        constants = {"pads": np.array([0, 0, *self.margins[:2], 0, 0, *self.margins[2:]])}
        if self.scales:
            constants["scales"] = np.array([1, 1, *self.scales], np.float32)
            inputs = ["x", "", "scales"]
        else:
            # With a dynamic batch, sizes need the batch: those cases are tested with scales.
            constants["sizes"] = np.array([self.batch, self.channels, *self.target], np.int64)
            inputs = ["x", "", "", "sizes"]
        nodes = [
            helper.make_node("Resize", inputs, ["big"], "resize", **resize),
            helper.make_node("Pad", ["big", "pads"], ["padded"], "pad", mode="reflect"),
        ]
        if self.pad:
            nodes[1] = helper.make_node("Pad", ["big", "pads"], ["padded"], "pad", **self.pad)
        names = ["padded", "once", "y"]
        for number, (axis, taps) in enumerate(self.kernels):
            weights = np.asarray(taps, self.dtype)
            if weights.ndim == 1:
                weights = weights.reshape((-1, 1) if axis == 0 else (1, -1))
            weights = np.broadcast_to(weights, (self.channels, 1, *weights.shape))
            constants[f"w{number}"] = np.ascontiguousarray(weights)
            ends = [names[number], f"w{number}"]
            if self.bias:
                constants["bias"] = np.full(self.channels, 0.5, self.dtype)
                ends.append("bias")
            nodes.append(
                helper.make_node(
                    "Conv",
                    ends,
                    [names[number + 1]],
                    f"conv{number}",
                    group=self.channels,
                    **self.convs,
                )
            )
        outputs = ["y", *self.outputs]
        if self.read_again:
            nodes.append(helper.make_node("Neg", [self.read_again], ["again"], "neg"))
            outputs.append("again")
        element = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        graph = helper.make_graph(
            nodes,
            "map",
            [helper.make_tensor_value_info("x", element, self.input_shape())],
            [helper.make_tensor_value_info(name, element, [None] * 4) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )

    def image(self, count=1, seed=0):
        shape = (count, self.channels, *self.source)
        return np.random.default_rng(seed).normal(size=shape).astype(self.dtype)

    def gain(self):
        """Largest factor by which kernels amplify."""
        return float(np.prod([np.abs(taps).sum() for _, taps in self.kernels]))

    def expected(self, image):
        """In float64, with PyTorch's resize, numpy's padding and scipy's correlation."""
        big = functional.interpolate(
            torch.from_numpy(image).double(), self.target, mode="bilinear", align_corners=False
        ).numpy()
        top, left, bottom, right = self.margins
        result = np.pad(big, [(0, 0), (0, 0), (top, bottom), (left, right)], mode="reflect")
        for axis, taps in self.kernels:
            length = len(taps)
            full = ndimage.correlate1d(
                result, np.asarray(taps, np.float64), axis=2 + axis, mode="constant"
            )
            kept = np.arange(length // 2, full.shape[2 + axis] - (length - 1) // 2)
            result = full.take(kept, axis=2 + axis)
        return result


def run(model, image):
    opened = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(None, {"x": image}), strict=True))


def rewritten(model):
    copy, places = apply_passes(model, DEFAULT_PASSES)
    onnx.checker.check_model(copy, full_check=True)
    return copy, places["map-as-matrices"]


def assert_left_alone(model):
    before = model.SerializeToString(deterministic=True)
    assert MapAsMatrices().apply(model) == 0
    assert model.SerializeToString(deterministic=True) == before


@st.composite
def cases(draw):
    source = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    target = draw(st.tuples(st.integers(2, 40), st.integers(2, 40)))
    axes = draw(st.sampled_from([(0, 1), (1, 0), (0, 0), (1, 1)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = draw(st.tuples(st.integers(2, 9), st.integers(2, 9)))
    margins = draw(st.tuples(*[st.integers(0, 12)] * 4))
    padded = [target[axis] + margins[axis] + margins[axis + 2] for axis in (0, 1)]
    for axis in (0, 1):
        assume(max(margins[axis], margins[axis + 2]) < target[axis])
        used = sum(length - 1 for a, length in zip(axes, lengths, strict=True) if a == axis)
        assume(used < padded[axis])
    kernels = tuple(
        (axis, rng.normal(size=length).astype(np.float32))
        for axis, length in zip(axes, lengths, strict=True)
    )
    mode = draw(st.sampled_from(["half_pixel", "pytorch_half_pixel"]))
    return Case(
        source,
        target,
        kernels,
        margins,
        opset=draw(st.integers(13, 20)),
        batch=draw(st.integers(1, 3)),
        resize={"coordinate_transformation_mode": mode},
        convs=draw(
            st.sampled_from([{}, {"auto_pad": "VALID"}, {"strides": [1, 1], "pads": [0] * 4}])
        ),
    )


class TestRule:
    @given(case=cases())
    @settings(deadline=None)
    def test_outputs_stay_the_same(self, case):
        model = case.model()
        result, places = rewritten(model)
        assert places == 1
        assert [node.op_type for node in result.graph.node] == ["MatMul", "MatMul"]
        image = case.image(case.batch)
        before, after = run(model, image)["y"], run(result, image)["y"]
        limit = 1e-5 * case.gain() * np.abs(image).max()
        assert after.shape == before.shape
        assert np.abs(after - before).max() <= limit
        assert np.abs(after - case.expected(image)).max() <= limit

    @pytest.mark.parametrize("mode", ["half_pixel", "pytorch_half_pixel"])
    @pytest.mark.parametrize("source", [1, 2, 5])
    def test_one_row_stays_the_same(self, source, mode):
        # The two modes differ where an axis has one pixel left.
        case = Case(
            (source, 9),
            (1, 30),
            kernels=((1, TAPS), (1, TAPS)),
            margins=(0, 4, 0, 4),
            resize={"coordinate_transformation_mode": mode},
        )
        model, image = case.model(), case.image()
        result, _ = rewritten(model)
        np.testing.assert_allclose(run(result, image)["y"], run(model, image)["y"], atol=1e-5)

    @given(
        source=st.tuples(st.integers(2, 12), st.integers(2, 12)),
        scales=st.tuples(st.floats(0.5, 6), st.floats(0.5, 6)),
    )
    @example(source=(7, 7), scales=(2.3, 2.3))
    @example(source=(7, 5), scales=(4.0, 4.0))
    @settings(deadline=None)
    def test_outputs_stay_the_same_with_scales(self, source, scales):
        # With scales given, positions are counted with these, not with the sizes' ratio.
        scales = tuple(float(np.float32(scale)) for scale in scales)
        target = tuple(int(np.floor(s * scale)) for s, scale in zip(source, scales, strict=True))
        assume(min(target) > 2)
        case = Case(source, target, scales=scales)
        model, image = case.model(), case.image()
        result, places = rewritten(model)
        before, after = run(model, image)["y"], run(result, image)["y"]
        assert np.abs(after - before).max() <= 1e-5 * np.ptp(image)
        if all(scale == int(scale) for scale in scales):
            assert places == 1

    @pytest.mark.parametrize("count", [1, 4])
    def test_applies_where_the_batch_is_dynamic(self, count):
        case = Case(batch="N", scales=(4.0, 4.0))
        model, image = case.model(), case.image(count)
        result, places = rewritten(model)
        assert places == 1
        np.testing.assert_allclose(run(result, image)["y"], case.expected(image), atol=1e-5)

    def test_applies_to_every_place(self):
        first, second = Case(), Case(source=(3, 4), target=(20, 30), kernels=((1, TAPS), (0, TAPS)))
        merged = onnx.compose.merge_models(
            onnx.compose.add_prefix(first.model(), "a/"),
            onnx.compose.add_prefix(second.model(), "b/"),
            io_map=[],
        )
        result, places = rewritten(merged)
        assert places == 2
        assert Counter(node.op_type for node in result.graph.node) == {"MatMul": 4}

    def test_leaves_the_model_alone_and_drops_what_nobody_reads(self):
        model = Case().model()
        before = model.SerializeToString(deterministic=True)
        result, _ = rewritten(model)
        assert model.SerializeToString(deterministic=True) == before
        assert {tensor.name for tensor in result.graph.initializer} == {"y_rows", "y_columns"}
        shapes = {t.name: tuple(t.dims) for t in result.graph.initializer}
        assert shapes == {"y_rows": (28, 7), "y_columns": (5, 20)}

    def test_what_comes_before_and_after_stays(self):
        model = Case().model()
        graph = model.graph
        graph.node.insert(0, helper.make_node("Abs", ["z"], ["x"], "abs"))
        graph.node.append(helper.make_node("Neg", ["y"], ["last"], "neg"))
        graph.input[0].name, graph.output[0].name = "z", "last"
        result, places = rewritten(model)
        assert places == 1
        assert [node.op_type for node in result.graph.node] == ["Abs", "MatMul", "MatMul", "Neg"]

    def test_applies_once_to_our_own_graphs(self, graph_of, plain, resizing, crops, coloured):
        for name, batch, detector, images in [
            ("plain", 1, plain, crops),
            ("resizing", None, resizing, coloured),
        ]:
            _, graph = graph_of(name, batch)
            result, places = rewritten(graph.model)
            assert places == 1
            types = Counter(node.op_type for node in result.graph.node)
            read = {name for node in result.graph.node for name in node.input}
            read |= {output.name for output in result.graph.output}
            assert all(read.intersection(node.output) for node in result.graph.node)
            assert types["Pad"] == 0
            assert types["Resize"] == 1  # of the features
            image = 255 - np.stack(images[: batch or 2])
            opened = [
                onnxruntime.InferenceSession(
                    model.SerializeToString(), providers=["CPUExecutionProvider"]
                )
                for model in (graph.model, result)
            ]
            before, after = (each.run(["anomaly_map"], {"image": image})[0] for each in opened)
            spread = detector.thresholds.maximum - detector.thresholds.minimum
            assert np.abs(after - before).max() < 1e-5 * spread


class TestMustNotApply:
    @pytest.mark.parametrize(
        "case",
        [
            pytest.param(Case(resize={"mode": "nearest"}), id="nearest"),
            pytest.param(Case(resize={"mode": "cubic"}), id="cubic"),
            pytest.param(
                Case(resize={"coordinate_transformation_mode": "align_corners"}), id="align corners"
            ),
            pytest.param(
                Case(resize={"coordinate_transformation_mode": "asymmetric"}), id="asymmetric"
            ),
            pytest.param(
                Case(opset=19, resize={"coordinate_transformation_mode": "half_pixel_symmetric"}),
                id="half pixel symmetric",
            ),
            pytest.param(Case(opset=18, resize={"antialias": 1}), id="antialias"),
            pytest.param(Case(resize={"exclude_outside": 1}), id="exclude outside"),
            pytest.param(
                Case(target=(28, 30), resize={"keep_aspect_ratio_policy": "not_larger"}),
                id="not larger",
            ),
            pytest.param(Case(channels=2), id="two channels"),
            pytest.param(Case(bias=True), id="bias"),
            pytest.param(Case(convs={"strides": [2, 1]}), id="stride"),
            pytest.param(Case(convs={"dilations": [2, 2]}), id="dilation"),
            pytest.param(Case(convs={"pads": [0, 1, 0, 1]}), id="pads"),
            pytest.param(Case(convs={"auto_pad": "SAME_UPPER"}), id="auto pad"),
            pytest.param(Case(pad={}, kernels=((0, TAPS), (1, np.ones((2, 2))))), id="2-D kernel"),
            pytest.param(Case(kernels=((0, TAPS), (1, np.ones((1, 1))))), id="1×1 kernel"),
            pytest.param(Case(pad={"mode": "constant"}), id="constant pad"),
            pytest.param(Case(pad={"mode": "edge"}), id="edge pad"),
            pytest.param(Case(pad={"mode": "wrap"}), id="wrap pad"),
            pytest.param(Case(margins=(2, 2, 2, -1)), id="crop"),
            pytest.param(
                Case(target=(28, 3), margins=(2, 3, 2, 3)), id="margin as wide as the map"
            ),
            pytest.param(Case(outputs=("big",)), id="resized is an output"),
            pytest.param(Case(outputs=("padded",)), id="padded is an output"),
            pytest.param(Case(outputs=("once",)), id="half blurred is an output"),
            pytest.param(Case(read_again="big"), id="resized is read again"),
            pytest.param(Case(read_again="padded"), id="padded is read again"),
            pytest.param(Case(read_again="once"), id="half blurred is read again"),
            pytest.param(Case(static=False, scales=(4.0, 4.0)), id="dynamic size"),
            pytest.param(Case(dtype=np.float64), id="float64"),
            pytest.param(Case(dtype=np.float16), id="float16"),
        ],
    )
    def test_almost_the_rule(self, case):
        assert_left_alone(case.model())

    def test_a_resize_of_named_axes(self):
        model = Case(opset=18, resize={"axes": [2, 3]}).model()
        for tensor in model.graph.initializer:
            if tensor.name == "sizes":
                tensor.CopyFrom(numpy_helper.from_array(np.array([28, 20]), "sizes"))
        assert_left_alone(model)

    def test_a_pad_of_named_axes(self):
        model = Case(opset=18).model()
        pads = numpy_helper.from_array(np.array([2, 2, 2, 2]), "pads")
        for tensor in model.graph.initializer:
            if tensor.name == "pads":
                tensor.CopyFrom(pads)
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
        model.graph.node[1].input.extend(["", "axes"])
        assert_left_alone(model)

    @pytest.mark.parametrize("name", ["w0", "w1", "pads"])
    def test_a_constant_that_is_an_input_of_the_graph(self, name):
        model = Case().model()
        (tensor,) = [each for each in model.graph.initializer if each.name == name]
        value = helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        model.graph.initializer.remove(tensor)
        model.graph.input.append(value)
        assert_left_alone(model)

    @pytest.mark.parametrize("name", ["w0", "w1", "pads"])
    def test_a_default_that_the_caller_may_replace(self, name):
        model = Case().model()
        (tensor,) = [each for each in model.graph.initializer if each.name == name]
        value = helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(value)
        assert_left_alone(model)

    def test_a_kernel_that_is_computed(self):
        model = Case().model()
        model.graph.node.insert(0, helper.make_node("Abs", ["w0"], ["computed"], "abs"))
        model.graph.node[3].input[1] = "computed"
        assert_left_alone(model)

    @pytest.mark.parametrize("missing", ["pad", "conv0", "conv1"])
    def test_a_part_that_is_missing(self, missing):
        model = Case().model()
        graph = model.graph
        (node,) = [node for node in graph.node if node.name == missing]
        for reader in graph.node:
            for number, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[number] = node.input[0]
        if missing == "conv1":
            graph.node[2].output[0] = "y"
        graph.node.remove(node)
        assert_left_alone(model)

    def test_an_empty_graph(self):
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        assert_left_alone(helper.make_model(helper.make_graph([], "empty", [value], [value])))


class TestMatrices:
    @given(source=st.integers(1, 40), target=st.integers(1, 80))
    @settings(deadline=None)
    def test_resize_is_pytorchs(self, source, target):
        unit = torch.eye(source, dtype=torch.float64)[None]
        expected = functional.interpolate(unit, target, mode="linear", align_corners=False)[0].T
        found = linear_resize_matrix(source, target)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)

    @given(size=st.integers(1, 30), data=st.data())
    def test_reflection_is_numpys(self, size, data):
        before, after = (data.draw(st.integers(0, size - 1)) for _ in range(2))
        values = np.random.default_rng(0).normal(size=size)
        found = reflect_pad_matrix(size, before, after) @ values
        np.testing.assert_array_equal(found, np.pad(values, (before, after), mode="reflect"))

    @given(size=st.integers(1, 30), data=st.data())
    def test_correlation_is_numpys(self, size, data):
        taps = np.random.default_rng(1).normal(size=data.draw(st.integers(1, size)))
        values = np.random.default_rng(2).normal(size=size)
        found = correlation_matrix(size, taps) @ values
        np.testing.assert_allclose(found, np.correlate(values, taps, "valid"), rtol=0, atol=1e-13)
