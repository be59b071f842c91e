from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tests.calibration.planning import (
    FORMS,
    IMAGES,
    RANDOM,
    block,
    constants,
    largest_for_openvino,
    normal,
    planned,
)
from tests.passes.half_graphs import graph
from vadexport.backends.inner import executed_layers
from vadexport.backends.onnxruntime import open_session
from vadexport.backends.registry import get_backend
from vadexport.building.integers import form_of
from vadexport.calibration.qdq import Form, least_scales, quantised
from vadexport.targets import Target


def fake(values, reach, unsigned):
    """Round to steps, as ONNX says it: half to even, then cut."""
    low, high = (0, 255) if unsigned else (-128, 127)
    step = np.float32(reach / high)
    return (np.clip(np.rint(values / step), low, high) * step).astype(np.float32)


def by_numpy(case, form, image, float_nodes=frozenset()):
    """Outputs of the quantised network: quantisers in numpy, layers by ONNX's reference."""
    values = {**constants(case.model), "image": image}
    layers = {each.node: each for each in case.plan.layers if each.node not in float_nodes}
    before = {each.activation for each in layers.values()}
    makers = {node.output[0] for node in case.model.graph.node if node.name in layers}
    for node in case.model.graph.node:
        read = {name: values[name] for name in node.input}
        if node.name in layers:
            layer = layers[node.name]
            weight = case.plan.weights[layer.weight]
            shape = [1] * weight.values.ndim
            shape[layer.axis] = -1
            unsigned = not form.signed and layer.activation in case.plan.never_negative
            reach = case.plan.reach[layer.activation]
            read[layer.activation] = fake(values[layer.activation], reach, unsigned)
            read[layer.weight] = weight.values * weight.scales.reshape(shape)
            if layer.bias:
                read[layer.bias] = read[layer.bias] - case.plan.shifts[layer.node][
                    int(form.signed)
                ].astype("f4")
        elif node.op_type == "Add" and node.name in case.network:
            both = form.sums and all(name in makers | before for name in node.input)
            for name in node.input:
                if name in before or both:
                    unsigned = not form.signed and name in case.plan.never_negative
                    read[name] = fake(values[name], case.plan.reach[name], unsigned)
        alone = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(each.dtype), each.shape
                )
                for name, each in read.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in node.output],
        )
        opsets = [helper.make_opsetid("", 20)]
        one = helper.make_model(alone, opset_imports=opsets, ir_version=9)
        found = ReferenceEvaluator(one).run(None, read)
        values.update(zip(node.output, found, strict=True))
    return values


def by_ort(model, image, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, rows=("y",)):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = open_session(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(list(rows), {"image": image})


OFF = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def apart(found, expected):
    """Mean difference, of the outputs' largest value."""
    return np.abs(found - expected).mean() / np.abs(expected).max()


def pairs(model):
    """(node, step, zero) of all quantisers of activations, and of weights."""
    values = constants(model)
    return [
        (node, values[node.input[1]], values[node.input[2]])
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]


def quantisers(model):
    """What is quantised."""
    return [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def clipped(model, name):
    """What ReLUs and clips make of a tensor."""
    nodes = (node for node in model.graph.node if node.op_type in ("Relu", "Clip"))
    return [node.output[0] for node in nodes if node.input[0] == name]


@pytest.fixture(scope="module")
def case():
    return planned(block(), IMAGES)


class TestNumbers:
    @pytest.mark.parametrize("form", FORMS, ids=str)
    @pytest.mark.parametrize("names", ["", "c2", "c3 c5"])  # text: sets print in any order
    def test_are_those_of_fake_quantisation(self, case, form, names):
        float_nodes = frozenset(names.split())
        made = case.made(form, float_nodes)
        for image in IMAGES[:2]:
            expected = by_numpy(case, form, image, float_nodes)["y"]
            (found,) = by_ort(made, image, OFF)
            # Biases are rounded to steps of products, and a value may fall to the other side.
            assert apart(found, expected) < 1e-3
            (plain,) = by_ort(case.model, image, OFF)
            assert apart(plain, expected) > 4 * apart(found, expected)

    def test_all_in_float_are_the_float_graphs(self, case):
        every = frozenset(layer.node for layer in case.plan.layers)
        made = case.made(Form(sums=True), every)
        assert pairs(made) == []
        np.testing.assert_array_equal(*by_ort(made, IMAGES[0]), *by_ort(case.model, IMAGES[0]))

    def test_shifts_are_taken_off(self):
        plain, shifted = (planned(block(), IMAGES, shift).made() for shift in (0.0, 0.25))
        rows = ("c1",)
        for made in (plain, shifted):
            made.graph.output.append(onnx.ValueInfoProto(name="c1"))
        (before,), (after,) = (by_ort(each, IMAGES[0], OFF, rows) for each in (plain, shifted))
        np.testing.assert_allclose(before - after, 0.25, atol=2e-3)

    @pytest.mark.parametrize("form", FORMS, ids=str)
    def test_onnx_runtimes_optimisations_change_rounding_alone(self, case, form):
        made = case.made(form)
        for image in IMAGES:
            (all_on,), (all_off,) = (by_ort(made, image), by_ort(made, image, OFF))
            assert apart(all_on, all_off) < 3e-3

    @pytest.mark.parametrize("form", FORMS, ids=str)
    def test_openvino_agrees_with_onnx_runtime(self, form, tmp_path):
        model = planned(block(), IMAGES, largest=largest_for_openvino()).made(form)
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        core = pytest.importorskip("openvino").Core()
        hint = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(path), "CPU", hint)
        for image in IMAGES:
            (found,) = by_ort(model, image)
            assert apart(compiled([image])["y"], found) < 3e-3


class TestForm:
    def test_signed_is_int8_throughout(self, case):
        for form in (Form(), Form(sums=True)):
            assert {zero.dtype for _, _, zero in pairs(case.made(form))} == {np.dtype(np.int8)}

    def test_unsigned_is_uint8_behind_clips_alone(self, case):
        found = {
            node.input[0]: zero.dtype.name
            for node, _, zero in pairs(case.made(Form(signed=False)))
            if node.op_type == "QuantizeLinear"
        }
        assert found == {
            "image": "int8",
            "x1": "uint8",
            "x2": "uint8",
            "c3": "int8",
            "x4": "uint8",
            "s": "int8",
        }

    def test_offset_is_uint8_throughout_and_says_the_same(self, case):
        form = Form(signed=False, sums=True)
        made = case.made(replace(form, offset=True))
        zeros = {
            node.input[0]: (zero.dtype.name, int(zero))
            for node, _, zero in pairs(made)
            if node.op_type == "QuantizeLinear"
        }
        assert zeros["x1"] == zeros["x2"] == zeros["x4"] == ("uint8", 0)
        assert zeros["image"] == zeros["c3"] == zeros["c5"] == zeros["s"] == ("uint8", 128)
        for image in IMAGES:
            found, expected = (by_ort(model, image, OFF) for model in (made, case.made(form)))
            np.testing.assert_array_equal(found, expected)

    def test_onnx_runtime_runs_every_layer_of_its_form_in_int8(self, case, tmp_path):
        target = Target("onnxruntime", "int8")
        made = case.made(form_of(target))
        onnx.save(made, tmp_path / "model.onnx")
        layers = executed_layers(tmp_path, target, 1)
        found = {layer.name: layer.precision for layer in layers if "Conv" in layer.operator}
        assert found.keys() == {layer.node for layer in case.plan.layers}
        quantised_again = set(quantisers(made))
        outputs = {node.name: node.output[0] for node in made.graph.node}
        for name, precision in found.items():  # what gives float to the head computes in float
            again = quantised_again & {outputs[name], *clipped(made, outputs[name])}
            assert precision == ("int8" if again else "float32"), name
        assert list(found.values()).count("int8") >= len(found) - 1

    def test_all_is_symmetric_and_weights_have_a_scale_a_channel(self, case):
        made = case.made(Form(signed=False, sums=True))
        values = constants(made)
        for node, step, zero in pairs(made):
            assert (zero == 0).all()
            assert step.dtype == np.float32
            assert (step > 0).all()
            if node.input[0] in values:
                assert values[node.input[0]].dtype == np.int8
                assert values[node.input[0]].min() >= -127
                assert step.shape == zero.shape == values[node.input[0]].shape[:1]
            else:
                assert step.shape == zero.shape == ()

    @pytest.mark.parametrize(("sums", "both"), [(False, ["c3"]), (True, ["c3", "c5"])])
    def test_sums_say_which_sides_of_an_add_are_quantised(self, case, sums, both):
        made = case.made(Form(sums=sums))
        (add,) = (node for node in made.graph.node if node.op_type == "Add")
        quantisers = {f"{name}/dequantised" for name in both}
        assert set(add.input) == quantisers | ({"c3", "c5"} - set(both))

    def test_the_sum_of_a_float_layer_stays_in_float(self, case):
        made = case.made(Form(sums=True), frozenset({"c5"}))
        (add,) = (node for node in made.graph.node if node.op_type == "Add")
        assert set(add.input) == {"c3/dequantised", "c5"}

    def test_float_nodes_are_as_they_were(self, case):
        made = case.made(Form(), frozenset({"c2"}))
        after = {node.name: node for node in made.graph.node}
        before = {node.name: node for node in case.model.graph.node}
        assert after["c2"] == before["c2"]
        np.testing.assert_array_equal(constants(made)["w2"], constants(case.model)["w2"])
        assert not any("x1" in node.input[0] for node, _, _ in pairs(made))

    def test_nothing_is_left_that_nobody_reads(self, case):
        made = case.made()
        read = {name for node in made.graph.node for name in node.input}
        assert constants(made).keys() <= read
        assert "w1" not in constants(made)

    def test_nodes_stand_in_order_and_the_graph_is_left_alone(self, case):
        before = case.model.SerializeToString()
        known = {"image", *constants(case.made())}
        for node in case.made().graph.node:
            assert set(node.input) <= known, node.name
            known.update(node.output)
        assert case.model.SerializeToString() == before

    def test_tensorrt_takes_the_signed_form(self, case, tmp_path):
        pytest.importorskip("tensorrt_rtx", reason="engines are built by tensorrt_rtx")
        from vadexport.backends.tensorrt.limits import check_limits
        from vadexport.backends.tensorrt.settings import TensorRTSettings

        made = case.made()
        check_limits(made, 2)
        onnx.save(made, tmp_path / "model.onnx")
        (tmp_path / "artifact").mkdir()
        target = Target("tensorrt-rtx", "int8", "sm86")
        facts = get_backend("tensorrt-rtx").compile_graph(
            tmp_path / "model.onnx", tmp_path / "artifact", target, TensorRTSettings()
        )
        assert facts["layers"]["quantize int8"] >= 6


class TestRanges:
    @pytest.mark.parametrize("signed", [True, False])
    def test_never_end_beyond_their_reach(self, case, signed):
        steps = np.float32(127 if signed else 255)
        some = [6.0, 1e-17, 1e30, *np.random.default_rng(5).uniform(0.1, 9, 60)]
        # In float32, as ONNX Runtime computes it where it drops a ReLU6 that the range implies.
        assert any(np.float32(each / float(steps)) * steps > np.float32(each) for each in some)
        for reach in some:
            plan = replace(case.plan, reach={**case.plan.reach, "x1": float(reach)})
            made = quantised(case.model, plan, case.network, Form(signed=signed))
            step = constants(made)["x1/step"]
            assert step * steps <= np.float32(reach)
            assert step * steps == pytest.approx(reach, rel=1e-6)


class TestBiases:
    def test_are_whole_multiples_of_a_products_step(self, case):
        made = case.made(Form(signed=False))
        values = constants(made)
        for layer in case.plan.layers:
            bias = values[f"{layer.node}/bias"].astype(np.float64)
            step = values[f"{layer.activation}/step"] * values[f"{layer.weight}/scales"]
            steps = bias / step.astype(np.float64)
            np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
            assert np.abs(steps).max() < 2**31
            before = constants(case.model).get(layer.bias, np.zeros_like(bias))
            assert (np.abs(bias - before) <= 0.5001 * step).all()
            assert bias.dtype == np.float64
            assert values[f"{layer.node}/bias"].dtype == np.float32

    def test_no_bias_is_dequantised(self, case):
        made = case.made()
        values = constants(made)
        read = {node.input[0] for node, _, _ in pairs(made)} & values.keys()
        assert {values[name].dtype.name for name in read} == {"int8"}

    @pytest.mark.parametrize("bias", [1e-3, 1.0, 1e6])
    @pytest.mark.parametrize("reach", [1e-10, 1.0, 100.0])
    @pytest.mark.parametrize("scale", [1e-30, 1e-9, 0.1])
    @pytest.mark.parametrize("signed", [True, False])
    def test_fit_an_int32_with_the_least_scales(self, case, bias, reach, scale, signed):
        layer = case.plan.layers[0]
        scales = least_scales(layer, np.array([bias, -bias]), reach, np.full(2, scale))
        assert (scales >= scale).all()
        step = reach / (127 if signed else 255)
        assert (bias / (step * scales) <= 2**30 * 1.001).all()
        assert (np.float32(step) * scales.astype(np.float32) >= np.finfo(np.float32).tiny).all()

    def test_products_of_steps_are_never_0_in_float32(self, case):
        layer = replace(case.plan.layers[0], bias="")
        for reach in (1e-18, 1.0, 1e18):
            scales = least_scales(layer, np.zeros(1), reach, np.array([1e-45, 0.1]))
            stored = scales.astype(np.float32)
            assert (stored >= np.finfo(np.float32).tiny).all()
            assert (np.float32(reach / 255) * stored >= 0.99 * np.finfo(np.float32).tiny).all()
            assert stored[1] == np.float32(0.1)

    def test_scales_that_do_are_left_alone(self, case):
        scales = np.array([0.01, 0.02])
        found = least_scales(case.plan.layers[0], np.ones(2), 6.0, scales)
        np.testing.assert_array_equal(found, scales)


class TestKinds:
    @pytest.mark.parametrize("form", FORMS, ids=str)
    def test_products_with_matrices_and_transposed_convolutions(self, form):
        model = graph(
            "float[2,3,4,4] image",
            """
            t = ConvTranspose<strides = [2,2]>(image, wt, bt)
            r = Relu(t)
            rows = Transpose<perm = [0,2,3,1]>(r)
            m = MatMul(rows, wm)
            flat = Reshape(m, shape)
            g = Gemm(flat, wg, bg)
            y = Gemm<transB = 1>(g, wh, bh)
            """,
            "float[2,3] y",
            wt=normal(3, 5, 2, 2),
            bt=RANDOM.normal(size=5),
            wm=normal(5, 4),
            wg=normal(256, 6) * 4,
            bg=RANDOM.normal(size=(1, 6)),
            wh=normal(3, 6),
            bh=np.array([0.5]),
            shape=np.array([2, 256]),
        )
        images = [each[:, :, :4, :4] for each in IMAGES]
        case = planned(model, images)
        assert [layer.kind for layer in case.plan.layers] == [
            *("ConvTranspose", "MatMul", "Gemm", "Gemm")
        ]
        made = case.made(form)
        for image in images:
            expected = by_numpy(case, form, image)["y"]
            for level in (OFF, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL):
                (found,) = by_ort(made, image, level)
                assert apart(found, expected) < 5e-3

    def test_layers_that_share_weights_and_biases(self):
        # As a denoiser's that is unrolled: the same weights, other ranges at each step.
        model = graph(
            "float[2,3,10,10] image",
            "a = Conv(image, w, b)\n b1 = Conv(a, w, b)\n y = Conv(b1, w, b)",
            "float[2,3,10,10] y",
            w=2 * normal(3, 3, 1, 1),
            b=RANDOM.normal(size=3),
        )
        case = planned(model, IMAGES)
        made = case.made()
        weights = [n for n in made.graph.node if n.name == "w/dequantise"]
        assert len(weights) == 1
        values = constants(made)
        assert not np.array_equal(values["a/bias"], values["b1/bias"])
        for node, read in (("a", "image"), ("b1", "a"), ("y", "b1")):
            step = values[f"{read}/step"] * values["w/scales"]
            assert (np.abs(values[f"{node}/bias"] - constants(model)["b"]) <= 0.5001 * step).all()
        for image in IMAGES:
            expected = by_numpy(case, Form(), image)["y"]
            (found,) = by_ort(made, image, OFF)
            assert apart(found, expected) < 3e-3

    def test_the_types_of_a_graphs_values_are_onnxs(self, case):
        made = case.made(Form(signed=False))
        inferred = onnx.shape_inference.infer_shapes(made, strict_mode=True).graph
        types = {each.name: each.type.tensor_type.elem_type for each in inferred.value_info}
        assert types["x1/quantised"] == TensorProto.UINT8
        assert types["c3/quantised"] == TensorProto.INT8
        assert types["x1/dequantised"] == TensorProto.FLOAT
