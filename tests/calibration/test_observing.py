from itertools import pairwise

import numpy as np
import pytest

from tests.passes.half_graphs import graph, names
from vadexport.calibration import observing
from vadexport.calibration.network import Layer, find_layers
from vadexport.calibration.observing import extremes, turns

RANDOM = np.random.default_rng(11)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


STEPS = (0.25, 0.5)


def moments(model, layers, calls, of):
    """Of tensors whose integers have the same steps."""
    steps = {layer.activation: STEPS for layer in layers}
    return observing.moments(model, layers, steps, calls, of)


class TestExtremes:
    MODEL = graph(
        "float[2,3,5,7] image",
        "y = Relu(image)\n flat = ReduceMean<keepdims = 0>(image, axes)",
        "float[2,3,5,7] y, float[2,3] flat",
        axes=np.array([2, 3]),
    )

    def test_are_numpys_over_all_calls(self):
        calls = [normal(2, 3, 5, 7) for _ in range(4)]
        found = extremes(self.MODEL, ("image", "y", "flat"), iter(calls))
        every = np.concatenate(calls)
        for name, values in (("image", every), ("y", np.maximum(every, 0))):
            np.testing.assert_array_equal(found[name].low, values.min(axis=(0, 2, 3)))
            np.testing.assert_array_equal(found[name].high, values.max(axis=(0, 2, 3)))
            magnitude = np.abs(values).max(axis=(0, 2, 3))
            np.testing.assert_array_equal(found[name].magnitude, magnitude)
        flat = every.mean(axis=(2, 3))
        # Of two axes the second may be features: taken whole.
        assert found["flat"].low == pytest.approx([flat.min()], rel=1e-5)
        assert found["flat"].high == pytest.approx([flat.max()], rel=1e-5)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("place", [0, 17, 34])
    @pytest.mark.parametrize("call", [0, 1])
    def test_what_is_not_finite_shows_wherever_it_stands(self, value, place, call):
        calls = [normal(2, 3, 5, 7) for _ in range(2)]
        calls[call][1, 1].reshape(-1)[place] = value
        found = extremes(self.MODEL, ("image",), calls)["image"].magnitude
        assert np.isfinite(found).tolist() == [True, False, True]

    def test_leave_the_graph_alone(self):
        before = self.MODEL.SerializeToString()
        extremes(self.MODEL, ("y",), [normal(2, 3, 5, 7)])
        assert self.MODEL.SerializeToString() == before


def padded(values, attributes, kernel, strides, dilations):
    """The input with its zeros, by ONNX's text: SAME gives ceil(size / stride) places."""
    automatic = attributes.get("auto_pad", "NOTSET")
    pads = attributes.get("pads", (0, 0, 0, 0))
    if automatic.startswith("SAME"):
        pads = [0] * 4
        for axis in range(2):
            size = values.shape[2 + axis]
            places = -(-size // strides[axis])
            span = dilations[axis] * (kernel[axis] - 1) + 1
            total = max(0, strides[axis] * (places - 1) + span - size)
            half = [total // 2, total - total // 2]
            pads[axis], pads[2 + axis] = half if automatic == "SAME_UPPER" else half[::-1]
    elif automatic == "VALID":
        pads = (0, 0, 0, 0)
    return np.pad(values, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))


def columns_of(values, shape, attributes):
    """All windows `[G, places, D]` in float64, one after the other, in loops."""
    groups = attributes.get("group", 1)
    strides = attributes.get("strides", (1, 1))
    dilations = attributes.get("dilations", (1, 1))
    full = padded(values.astype(np.float64), attributes, shape[2:], strides, dilations)
    spans = [dilations[a] * (shape[2 + a] - 1) + 1 for a in range(2)]
    rows = []
    for image in full:
        for top in range(0, full.shape[2] - spans[0] + 1, strides[0]):
            for left in range(0, full.shape[3] - spans[1] + 1, strides[1]):
                window = image[
                    :,
                    top : top + spans[0] : dilations[0],
                    left : left + spans[1] : dilations[1],
                ]
                rows.append(window.reshape(groups, -1))
    return np.stack(rows, axis=1)


def text(attributes):
    parts = [
        f"{key} = {list(value)}" if isinstance(value, tuple) else f'{key} = "{value}"'
        for key, value in attributes.items()
        if key != "group"
    ]
    parts += [f"group = {attributes['group']}"] if "group" in attributes else []
    return f"<{', '.join(parts)}>" if parts else ""


CONVOLUTIONS = {
    "plain": ((5, 4, 3, 3), {}),
    "pads": ((5, 4, 3, 3), {"pads": (1, 2, 0, 3)}),
    "strides": ((5, 4, 3, 3), {"strides": (2, 3), "pads": (1, 1, 1, 1)}),
    "dilations": ((5, 4, 3, 2), {"dilations": (2, 3), "pads": (2, 1, 2, 1)}),
    "groups": ((6, 2, 3, 3), {"group": 2}),
    "depthwise": ((4, 1, 3, 3), {"group": 4, "pads": (1, 1, 1, 1), "strides": (2, 2)}),
    "one by one": ((5, 4, 1, 1), {"strides": (2, 2)}),
    "even": ((3, 4, 2, 4), {"pads": (0, 1, 1, 2)}),
    "valid": ((5, 4, 3, 3), {"auto_pad": "VALID", "strides": (2, 2)}),
    "same, upper": ((5, 4, 2, 4), {"auto_pad": "SAME_UPPER", "strides": (2, 1)}),
    "same, lower": ((5, 4, 2, 4), {"auto_pad": "SAME_LOWER", "strides": (2, 3)}),
    "not set": ((5, 4, 3, 3), {"auto_pad": "NOTSET", "pads": (0, 1, 2, 3)}),
}


class TestMoments:
    @pytest.mark.parametrize("name", CONVOLUTIONS)
    @pytest.mark.parametrize("batch", [1, 3])
    def test_of_convolutions_are_those_of_all_windows(self, name, batch):
        shape, attributes = CONVOLUTIONS[name]
        model = graph(
            f"float[{batch},4,11,13] image",
            f"y = Conv{text(attributes)}(image, w)",
            f"float[{batch},{shape[0]},h,v] y",
            w=normal(*shape),
        )
        (layer,) = find_layers(model, names(model))
        calls = [normal(batch, 4, 11, 13) + 2 for _ in range(3)]
        found = moments(model, [layer], calls, 3)["w"]
        windows = np.concatenate([columns_of(each, shape, attributes) for each in calls], axis=1)
        # The windows are ONNX Runtime's: its output is their product with the weights.
        weights = (
            model_weights(model).astype(np.float64).reshape(layer.groups, -1, windows.shape[2])
        )
        from vadexport.calibration.observing import run_graph

        outputs = [values[0] for values in run_graph(model, calls)]
        expected = np.einsum("gpd,god->pgo", windows, weights)
        ordered = np.concatenate([o.transpose(0, 2, 3, 1).reshape(-1, shape[0]) for o in outputs])
        np.testing.assert_allclose(expected.reshape(ordered.shape), ordered, atol=1e-4)
        mean = windows.mean(axis=1)
        apart = windows - mean[:, None]
        np.testing.assert_allclose(found.mean, mean, atol=1e-5)
        covariance = apart.transpose(0, 2, 1) @ apart / windows.shape[1]
        np.testing.assert_allclose(found.covariance, covariance, atol=1e-4)

    def test_of_matrices_are_those_of_all_rows(self):
        model = graph(
            "float[2,6,4] image",
            "y = MatMul(image, w)\n r = Reshape(image, shape)\n z = Gemm<transB = 1>(r, v, b)",
            "float[2,6,5] y, float[12,3] z",
            w=normal(4, 5),
            v=normal(3, 4),
            b=normal(3),
            shape=np.array([12, 4]),
        )
        layers = find_layers(model, names(model))
        assert [layer.axis for layer in layers] == [1, 0]
        calls = [normal(2, 6, 4) + 1 for _ in range(2)]
        rows = np.concatenate(calls).astype(np.float64).reshape(-1, 4)
        found = moments(model, layers, calls, 2)
        for each in found.values():
            np.testing.assert_allclose(each.mean[0], rows.mean(axis=0), atol=1e-6)
            np.testing.assert_allclose(each.covariance[0], np.cov(rows.T, bias=True), atol=1e-5)

    def test_of_many_windows_are_close_to_those_of_all_and_the_same_again(self):
        model = graph(
            "float[2,2,160,160] image",
            "y = Conv(image, w)",
            "float[2,3,158,158] y",
            w=normal(3, 2, 3, 3),
        )
        layers = find_layers(model, names(model))
        smooth = normal(2, 2, 1, 1) + 0.3 * normal(2, 2, 160, 160)
        found, again = (moments(model, layers, [smooth], 1)["w"] for _ in range(2))
        np.testing.assert_array_equal(found.covariance, again.covariance)
        windows = columns_of(smooth, (3, 2, 3, 3), {})
        expected = np.cov(windows[0].T, bias=True)
        assert np.abs(found.covariance[0] - expected).max() < 0.1 * np.abs(expected).max()

    def test_rounded_is_the_mean_of_whole_steps(self):
        model = graph("float[5,4] image", "y = MatMul(image, w)", "float[5,2] y", w=normal(4, 2))
        rows = normal(5, 4)
        found = moments(model, find_layers(model, names(model)), [rows], 1)["w"]
        for number, step in enumerate(STEPS):
            whole = np.round(rows.astype(np.float64) / step) * step
            np.testing.assert_allclose(found.rounded[number, 0], whole.mean(axis=0), atol=1e-6)
        assert np.abs(found.rounded[1] - found.mean).max() > 1e-3

    def test_layers_that_share_weights_share_moments(self):
        model = graph(
            "float[1,2,9,9] image",
            "a = Conv<pads = [1,1,1,1]>(image, w)\n y = Conv<pads = [1,1,1,1]>(a, w)",
            "float[1,2,9,9] y",
            w=normal(2, 2, 3, 3),
        )
        call = normal(1, 2, 9, 9)
        found = moments(model, find_layers(model, names(model)), [call], 1)
        assert found.keys() == {"w"}
        alone = [
            moments(model, [layer], [call], 1)["w"].mean
            for layer in find_layers(model, names(model))
        ]
        np.testing.assert_allclose(found["w"].mean, np.mean(alone, axis=0), atol=1e-6)


def model_weights(model):
    from onnx import numpy_helper

    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w")


class TestTurns:
    def test_hold_all_layers_and_none_too_many(self):
        layers = [Layer(f"n{n}", "Conv", "x", f"w{n}", "", 0, 1) for n in range(10)]
        columns = {layer.node: 2304 for layer in layers}  # 42 MB each
        lots = turns(layers, columns)
        assert [layer for lot in lots for layer in lot] == layers
        sizes = [sum(8 * columns[layer.node] ** 2 for layer in lot) for lot in lots]
        assert max(sizes) <= 400e6
        assert all(a + b > 400e6 for a, b in pairwise(sizes))

    def test_what_shares_weights_stays_together_and_counts_once(self):
        layers = [Layer(f"n{n}", "Conv", "x", f"w{n % 3}", "", 0, 1) for n in range(60)]
        lots = turns(layers, {layer.node: 4000 for layer in layers})  # 128 MB each
        assert len(lots) == 1
        lots = turns(layers, {layer.node: 6000 for layer in layers})  # 288 MB each
        assert [{layer.weight for layer in lot} for lot in lots] == [{"w0"}, {"w1"}, {"w2"}]

    def test_one_that_is_too_large_alone_has_a_turn(self):
        layers = [Layer(f"n{n}", "Conv", "x", f"w{n}", "", 0, 64) for n in range(2)]
        assert [len(lot) for lot in turns(layers, dict.fromkeys(("n0", "n1"), 2304))] == [1, 1]


class TestFindLayers:
    def found(self, nodes, inputs="float[1,4,6,6] x", output="float y", **weights):
        text_of = f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => ({output}) {{{nodes}}}'
        import onnx
        from onnx import numpy_helper

        model = onnx.parser.parse_model(text_of)
        for node in model.graph.node:
            node.name = node.output[0]
        for name, value in weights.items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return [layer.node for layer in find_layers(model, names(model))]

    def test_weights_that_are_no_float32_constant_are_left_out(self):
        assert self.found("y = Conv(x, w)", w=normal(4, 4, 1, 1)) == ["y"]
        assert self.found("y = Conv(x, w)", w=normal(4, 4, 1, 1).astype(np.float16)) == []
        assert self.found("y = Conv(x, w)", w=normal(4, 4, 1, 1).astype(np.float64)) == []
        assert self.found("w = Relu(v)\n y = Conv(x, w)", v=normal(4, 4, 1, 1)) == []
        assert self.found("y = MatMul(x, x)") == []

    def test_transposed_convolutions_in_groups_are_left_out(self):
        weights = {"w": normal(4, 2, 2, 2)}
        assert self.found("y = ConvTranspose(x, w)", **weights) == ["y"]
        assert self.found("y = ConvTranspose<group = 2>(x, w)", **weights) == []

    @pytest.mark.parametrize(
        ("attributes", "shape", "fits"),
        [
            ("", (5,), True),
            ("", (1, 5), True),
            ("", (), True),
            ("", (1,), True),
            ("", (3, 1), False),
            ("", (3, 5), False),
            ("<alpha = 2.0>", (5,), False),
            ("<beta = 0.5>", (5,), False),
            ("<transA = 1>", (5,), False),
        ],
    )
    def test_gemm(self, attributes, shape, fits):
        weights = {"w": normal(4, 5), "b": normal(*shape)}
        inputs = "float[3,4] x"
        found = self.found(f"y = Gemm{attributes}(x, w, b)", inputs, **weights)
        assert found == (["y"] if fits else [])

    def test_weights_that_are_read_along_two_axes_are_left_out(self):
        # An autoencoder's tied weights: one way they have 5 output channels, the other way 4.
        nodes = "a = Gemm(x, w)\n y = Gemm<transB = 1>(a, w)"
        assert self.found(nodes, "float[3,4] x", w=normal(4, 5)) == []
        nodes = "a = Gemm(x, w)\n y = Gemm(a, w)"
        assert self.found(nodes, "float[3,4] x", w=normal(4, 4)) == ["a", "y"]
