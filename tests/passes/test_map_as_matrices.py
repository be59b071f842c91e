from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx import helper
from torch.nn import functional

from tests.passes.resized_maps import REPEATED, TAPS, Case, rewritten, run
from vadexport.passes.map_as_matrices import (
    correlation_matrix,
    linear_resize_matrix,
    reflect_pad_matrix,
)


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

    @given(
        factors=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        lengths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        repeated=st.booleans(),
        seed=st.integers(0, 2**32),
    )
    @settings(deadline=None)
    def test_one_kernel_of_two_axes(self, factors, lengths, repeated, seed):
        # As kornia, and anomalib with it, write a Gaussian blur.
        rng = np.random.default_rng(seed)
        down, along = (rng.normal(size=length).astype(np.float32) for length in lengths)
        target = (4 * factors[0], 6 * factors[1])
        case = Case(
            (4, 6),
            target,
            kernels=((0, np.outer(down, along)),),
            margins=(lengths[0] // 2, lengths[1] // 2) * 2,
            resize=REPEATED if repeated else {},
        )
        assume(max(case.margins[0] - target[0], case.margins[1] - target[1]) < 0)
        model, image = case.model(), case.image()
        result, places = rewritten(model)
        assert places == 1
        assert [node.op_type for node in result.graph.node] == ["MatMul", "MatMul"]
        before, after = run(model, image)["y"], run(result, image)["y"]
        limit = 1e-5 * case.gain() * np.abs(image).max()
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
