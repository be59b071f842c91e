import importlib.util
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from tests.passes.half_graphs import graph as small_graph
from vadexport.backends.child import Child
from vadexport.backends.inner import executed_layers
from vadexport.backends.openvino.saturation import adds_exactly
from vadexport.backends.registry import get_backend
from vadexport.calibration import plan_int8
from vadexport.calibration.qdq import Form, quantised
from vadexport.calibration.quantisation import Choices
from vadexport.calibration.synthetic_defects import with_defect
from vadexport.contract import ImageInput
from vadexport.detectors.diffusion import DiffusionConfig
from vadexport.detectors.diffusion import fit as fit_diffusion
from vadexport.errors import InputError, UnfitError
from vadexport.images import ImageFile
from vadexport.images.colouring import save_png
from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.passes.scaling import scaled_name
from vadexport.targets import Target
from vadexport.tracing.graph import simplify, trace


@dataclass
class Hearer:
    told: list

    def __call__(self, *counts):
        self.told.append(counts)


@pytest.fixture(scope="module")
def files(crops, coloured, tmp_path_factory):
    """Image files of each detector's images, by the detector's name."""
    made = {}
    for name, images in {"plain": crops, "resizing": coloured}.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = tuple(
            ImageFile(folder / f"{number}.png", f"{number}.png", None)
            for number in range(len(images))
        )
        for file, image in zip(made[name], images, strict=True):
            save_png(image, file.path)
    return made


# Weights that OpenVINO runs as they are on this processor.
ALL = Choices(reduce_range=importlib.util.find_spec("openvino") is not None and not adds_exactly())


def int8(graph, files, image_input, folder, choices=ALL, form=None):
    """Quantise with a plan made in a child process, as a build does."""
    onnx.save(graph.model, folder / "float.onnx")
    hearer = Hearer([])
    with Child("INT8 calibration") as child:
        plan = child.run(
            partial(plan_int8, choices=choices),
            folder / "float.onnx",
            folder / "equalised.onnx",
            graph.network_nodes(),
            files,
            image_input,
            progress=hearer,
        )
    equalised = onnx.load(folder / "equalised.onnx")
    model = quantised(equalised, plan, graph.network_nodes(), form or Form())
    onnx.save(model, folder / "int8.onnx")
    return plan, model, hearer.told


@pytest.fixture(
    scope="module",
    params=[("plain", 3), ("resizing", 1), ("resizing", None)],
    ids=lambda case: f"{case[0]}@{case[1] or 'dynamic'}",
)
def case(request, graph_of, files, tmp_path_factory):
    name, batch = request.param
    detector = request.getfixturevalue(name)
    simplified = graph_of(name, batch)[1]
    graph = replace(simplified, model=apply_passes(simplified.model, DEFAULT_PASSES)[0])
    folder = tmp_path_factory.mktemp("quantised")
    image_input = replace(detector.image_input, batch=batch)
    plan, model, told = int8(graph, files[name], image_input, folder)
    images = np.stack(request.getfixturevalue({"plain": "crops", "resizing": "coloured"}[name]))
    return SimpleNamespace(
        detector=detector,
        batch=batch,
        graph=graph,
        plan=plan,
        equalised=onnx.load(folder / "equalised.onnx"),
        model=model,
        told=told,
        path=folder / "int8.onnx",
        images=images,
        # Patches that are not in the memory bank, of values that calibration saw.
        unseen=np.ascontiguousarray(images[:, ::-1]),
    )


def tensors(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def q_nodes(model):
    return [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]


class TestGraph:
    def test_every_layer_of_the_network_is_quantised(self, case):
        network = case.graph.network_nodes()
        convs = [n for n in case.model.graph.node if n.op_type == "Conv" and n.name in network]
        backbone = [m for m in case.detector.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
        assert len(case.plan.layers) == len(convs) == len(backbone)
        dequantised = {
            n.output[0] for n in case.model.graph.node if n.op_type == "DequantizeLinear"
        }
        for conv in convs:
            assert set(conv.input[:2]) <= dequantised, conv.name

    def test_preprocessing_and_score_head_are_as_they_were(self, case):
        network = case.graph.network_nodes()
        after = {node.name: node for node in case.model.graph.node}
        before, values = tensors(case.graph.model), tensors(case.model)
        outside = [n for n in case.graph.model.graph.node if n.name not in network]
        assert {"ReduceMin", "Sqrt", "MatMul"} <= {node.op_type for node in outside}
        for node in outside:
            assert after[node.name] == node
            for name in node.input:
                if name in before:
                    np.testing.assert_array_equal(values[name], before[name])

    def test_only_pairs_of_quantisers_are_new(self, case):
        known = {node.name for node in case.graph.model.graph.node}
        new = Counter(n.op_type for n in case.model.graph.node if n.name not in known)
        assert new.keys() - {"Mul"} == {"QuantizeLinear", "DequantizeLinear"}
        assert known <= {node.name for node in case.model.graph.node}
        assert new["DequantizeLinear"] == new["QuantizeLinear"] + len(case.plan.layers)
        # Features that were scaled are scaled back for the score head.
        restored = [n.output[0] for n in case.model.graph.node if n.name.endswith("/restore")]
        assert new["Mul"] == len(restored)
        assert set(restored) <= set(case.graph.seams)

    def test_quantisers_are_read_by_the_network_alone(self, case):
        network = case.graph.network_nodes()
        names = {output for node in q_nodes(case.model) for output in node.output}
        for node in case.model.graph.node:
            if names.intersection(node.input):
                assert node.name in network or node.op_type == "DequantizeLinear", node.name

    def test_is_symmetric(self, case):
        values = tensors(case.model)
        for node in q_nodes(case.model):
            scale, zero_point = values[node.input[1]], values[node.input[2]]
            assert (zero_point == 0).all(), node.name
            assert scale.dtype == np.float32
            assert (scale > 0).all()
            assert np.isfinite(scale).all()

    def test_holds_no_uint8_which_tensorrt_takes_for_int8(self, case):
        types = {tensor.name: tensor.data_type for tensor in case.model.graph.initializer}
        assert {types[node.input[2]] for node in q_nodes(case.model)} == {TensorProto.INT8}

    def test_weights_are_int8_per_channel_and_no_bias_is_quantised(self, case):
        values = tensors(case.model)
        weights = [n for n in q_nodes(case.model) if n.input[0] in values]
        assert len(weights) == len(case.plan.layers)
        for node in weights:
            weight, scale = values[node.input[0]], values[node.input[1]]
            assert weight.dtype == np.int8
            assert weight.ndim == 4
            assert scale.shape == weight.shape[:1]
            assert np.abs(weight.astype(int)).max() <= 127
        read_by_q = {node.input[0] for node in q_nodes(case.model)}
        assert not any(values[name].dtype == np.int32 for name in read_by_q & values.keys())

    def test_weights_are_the_equalised_ones_rounded(self, case):
        before = tensors(case.equalised)
        steps = []
        for layer in case.plan.layers:
            weight = case.plan.weights[layer.weight]
            error = weight.values - before[layer.weight] / weight.scales[:, None, None, None]
            steps.append(np.abs(error).ravel())
        # Together, not one by one: some are a step or a few away, most are the nearest.
        every = np.concatenate(steps)
        assert (every > 3).mean() < 0.05
        assert 0.01 < (every > 0.501).mean() < 0.6

    def test_the_equalised_graph_is_the_float_graph(self, case):
        images = case.unseen[: case.batch or 5]
        found, expected = (
            onnxruntime.InferenceSession(
                model.SerializeToString(), providers=["CPUExecutionProvider"]
            ).run(["anomaly_map"], {"image": images})[0]
            for model in (case.equalised, case.graph.model)
        )
        assert np.abs(found - expected).max() < 0.02 * np.ptp(expected)

    def test_ranges_reach_what_the_images_reach(self, case):
        # Minima and maxima, not their mean over the images, which clips.
        values = tensors(case.model)
        (node,) = [
            n
            for n in case.model.graph.node
            if n.op_type == "QuantizeLinear" and n.input[0] == "preprocessed"
        ]
        with torch.inference_mode():
            x = case.detector.preprocessing(torch.from_numpy(case.images))
            spoiled = [with_defect(image, n) for n, image in enumerate(case.images)]
            y = case.detector.preprocessing(torch.from_numpy(np.stack(spoiled)))
        reach = max(float(x.abs().max()), float(y.abs().max()))
        assert values[node.input[1]].item() * 127 == pytest.approx(reach, rel=0.01)

    def test_inputs_and_outputs_stay(self, case):
        for part in ("input", "output"):
            before, after = (getattr(m.graph, part) for m in (case.graph.model, case.model))
            assert [value.SerializeToString() for value in after] == [
                value.SerializeToString() for value in before
            ]


class TestScores:
    @pytest.fixture
    def found(self, case):
        """Outputs of the quantised graph, and the features that its score head got."""
        marked = onnx.ModelProto()
        marked.CopyFrom(case.model)
        known = {output.name for output in marked.graph.output}
        seams = case.graph.seams
        marked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in seams)
        session = onnxruntime.InferenceSession(
            marked.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        names = [*known, *seams]
        images = case.unseen[: case.batch or 5]
        return images, dict(zip(names, session.run(names, {"image": images}), strict=True))

    def test_are_those_of_the_untouched_head_for_quantised_features(self, case, found):
        _, outputs = found
        x, *features = (torch.from_numpy(outputs[name]) for name in case.graph.seams)
        with torch.inference_mode():
            expected = case.detector.postprocess(*case.detector.score(x, features))
        limits = case.detector.thresholds
        for name in ("raw_score", "anomaly_map"):
            difference = np.abs(outputs[name] - expected[name].numpy()).max()
            assert difference < 1e-4 * (limits.maximum - limits.minimum), name

    def test_features_carry_the_noise_of_eight_bits(self, case, found):
        images, outputs = found
        with torch.inference_mode():
            features = case.detector.network(case.detector.preprocessing(torch.from_numpy(images)))
        for name, feature in zip(case.graph.seams[1:], features, strict=True):
            expected = feature.numpy()
            correlation = np.corrcoef(outputs[name].ravel(), expected.ravel())[0, 1]
            # Wrong ranges or a wrong sign would leave next to nothing of it.
            assert 0.9 < correlation < 1 - 1e-6, name

    def test_layers_run_in_int8_and_the_head_in_float32(self, case, tmp_path):
        backend = get_backend("openvino")
        target = Target("openvino", "int8")
        backend.compile_graph(case.path, tmp_path, target)
        runner = backend.open_runner(tmp_path, target, 2)
        executed = executed_layers(tmp_path, target, 2)
        layers = runner.execution.with_layers(executed).layers
        assert not {"bf16", "f16"} & layers.keys()
        convolutions = {one.precision for one in executed if one.operator == "Convolution"}
        assert convolutions <= {"u8", "i8"}
        assert layers["f32"] > 5
        assert runner.execution.precision == "INT8 network, float32 score head"
        images = case.unseen[: case.batch or 5]
        session = onnxruntime.InferenceSession(case.path, providers=["CPUExecutionProvider"])
        (expected,) = session.run(["anomaly_map"], {"image": images})
        # Both round to eight bits, not always to the same side.
        correlation = np.corrcoef(runner.infer(images)["anomaly_map"].ravel(), expected.ravel())
        assert correlation[0, 1] > 0.99


def test_every_image_is_seen_and_told(case):
    # For ranges, with planted defects, and for rounding, in calls of a batch.
    counts = [done for done, _ in case.told]
    assert {total for _, total in case.told} == {36}
    assert counts == sorted(set(counts))
    assert counts[-1] == 36
    size = case.batch or 1
    assert counts == list(range(size, 37, size))


def test_gives_the_same_bytes_every_time(graph_of, files, resizing, tmp_path):
    graph = graph_of("resizing", 1)[1]
    data = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        int8(graph, files["resizing"][:2], resizing.image_input, tmp_path / name)
        data.append((tmp_path / name / "int8.onnx").read_bytes())
    assert data[0] == data[1]
    assert str(tmp_path).encode() not in data[0]


@pytest.fixture(scope="module")
def chosen(graph_of, files, resizing, tmp_path_factory):
    choices = Choices(equalising=False, rounding=False, planted=False)
    folder = tmp_path_factory.mktemp("choices")
    graph = graph_of("resizing", 1)[1]
    plan, _, told = int8(
        graph, files["resizing"][:4], resizing.image_input, folder, choices=choices
    )
    return SimpleNamespace(plan=plan, graph=graph, told=told, folder=folder)


class TestChoices:
    def test_without_equalising_the_graph_stays(self, chosen):
        made = onnx.load(chosen.folder / "equalised.onnx")
        assert made == chosen.graph.model

    def test_without_rounding_weights_are_the_nearest(self, chosen):
        before = tensors(chosen.graph.model)
        for layer in chosen.plan.layers:
            weight = chosen.plan.weights[layer.weight]
            error = weight.values - before[layer.weight] / weight.scales[:, None, None, None]
            assert np.abs(error).max() <= 0.501
        assert chosen.plan.shifts == {}

    def test_ranges_are_those_of_normal_images_with_headroom(self, chosen, coloured, resizing):
        with torch.inference_mode():
            x = resizing.preprocessing(torch.from_numpy(np.stack(coloured[:4])))
        assert chosen.plan.reach["preprocessed"] == pytest.approx(float(x.abs().max()), rel=1e-3)
        assert chosen.told[-1] == (4, 4)


class TestBatches:
    """Of a small network: the same plan, however many images a call takes."""

    def planned(self, files, folder, batch, count=7):
        image_input = ImageInput(96, 96, 1, batch)
        model = small_graph(f"uint8[{batch},96,96,1] image", NODES, OUTPUT, **WEIGHTS)
        return plan(model, files["plain"][:count], image_input, folder)

    def test_do_not_change_the_ranges(self, files, tmp_path):
        plans = [self.planned(files, tmp_path, batch) for batch in (1, 3, 7)]
        for name, reach in plans[0].reach.items():
            for other in plans[1:]:
                assert other.reach[name] == pytest.approx(reach, rel=1e-5)

    def test_do_not_change_how_many_windows_round(self, files, tmp_path, monkeypatch):
        from vadexport.calibration import observing

        drawn = []
        columns = observing._columns

        def count(*arguments):
            made = columns(*arguments)
            drawn[-1] += made.shape[1]
            return made

        monkeypatch.setattr(observing, "_columns", count)
        for batch in (1, 3, 7):
            drawn.append(0)
            self.planned(files, tmp_path, batch)
        assert max(drawn) <= 1.4 * min(drawn)  # the last call is filled up


NODES = """
    floats = Cast<to = 1>(image)
    grey = Transpose<perm = [0,3,1,2]>(floats)
    x = Div(grey, white)
    c = Conv<strides = [2,2]>(x, w, b)
    r = Relu(c)
    y = Conv(r, u)
    raw_score = ReduceMax<keepdims = 0>(y, axes)
"""
OUTPUT = "float[n] raw_score"
WEIGHTS = {
    "w": np.random.default_rng(0).normal(size=(4, 1, 3, 3)),
    "b": np.random.default_rng(1).normal(size=4),
    "u": np.random.default_rng(2).normal(size=(3, 4, 1, 1)),
    "white": np.array(255.0),
    "axes": np.array([1, 2, 3]),
}
NETWORK = {"c", "r", "y"}


def plan(model, files, image_input, folder, choices=ALL):
    onnx.save(model, folder / "float.onnx")
    return plan_int8(
        *(folder / "float.onnx", folder / "equalised.onnx", frozenset(NETWORK)),
        *(files, image_input, choices, lambda *_: None),
    )


CLIPPED = """
    floats = Cast<to = 1>(image)
    grey = Transpose<perm = [0,3,1,2]>(floats)
    x = Div(grey, white)
    c = Conv<strides = [2,2]>(x, w, b)
    r = Clip(c, low, six)
    y = Conv(r, u)
    raw_score = ReduceMax<keepdims = 0>(y, axes)
"""


class TestPlans:
    """What a plan says, against the graph that it is for, run on the images that it was made of."""

    def made(self, files, tmp_path, low, gain=1.0, **choices):
        weights = {**WEIGHTS, "low": np.array(low), "six": np.array(6.0)}
        weights["w"] = gain * WEIGHTS["w"]
        model = small_graph("uint8[1,96,96,1] image", CLIPPED, OUTPUT, **weights)
        image_input = ImageInput(96, 96, 1)
        chosen = Choices(planted=False, **choices)
        found = plan(model, files["plain"][:3], image_input, tmp_path, choices=chosen)
        return found, onnx.load(tmp_path / "equalised.onnx")

    def values(self, model, crops, name):
        marked = onnx.ModelProto.FromString(model.SerializeToString())
        marked.graph.output.append(onnx.ValueInfoProto(name=name))
        session = onnxruntime.InferenceSession(
            marked.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return np.stack([session.run([name], {"image": crop[None]})[0] for crop in crops[:3]])

    def test_ranges_are_of_the_equalised_graph(self, files, crops, tmp_path):
        found, equalised = self.made(files, tmp_path, 0.0)
        assert not np.array_equal(tensors(equalised)["u"], WEIGHTS["u"].astype(np.float32))
        for name in ("x", scaled_name("r")):
            reached = float(np.abs(self.values(equalised, crops, name)).max())
            assert found.reach[name] == pytest.approx(reached, rel=1e-4)

    def test_ranges_end_where_a_clip_does(self, files, tmp_path):
        found, _ = self.made(files, tmp_path, 0.0, gain=20.0, headroom=2.0)
        assert found.reach[scaled_name("r")] == 6

    def test_a_clip_whose_lower_end_is_further_does_not_cut_the_range(self, files, crops, tmp_path):
        found, equalised = self.made(files, tmp_path, -50.0, gain=20.0)
        values = self.values(equalised, crops, "r")
        assert values.max() <= 6 < -values.min()
        assert found.reach["r"] == pytest.approx(-values.min(), rel=1e-4)
        assert found.never_negative == frozenset()

    def test_shifts_are_what_rounding_adds_on_average(self, files, crops, tmp_path):
        found, equalised = self.made(files, tmp_path, 0.0)
        for form in (Form(), Form(signed=False)):
            bare = replace(found, shifts={})
            for node, name in (("c", scaled_name("c")), ("y", "y")):
                layer = next(each for each in found.layers if each.node == node)
                before = self.values(equalised, crops, name)
                # Of this layer alone: what stands before it is in float.
                others = frozenset(NETWORK) - {node}
                made = quantised(equalised, bare, frozenset(NETWORK), form, others)
                after = self.values(made, crops, name)
                expected = (after - before).astype(np.float64).mean(axis=(0, 1, 3, 4))
                shift = found.shifts[layer.node][int(form.signed)]
                assert np.abs(expected).max() > 1e-5
                # Of windows that were drawn, and biases are rounded as well.
                assert np.abs(shift - expected).max() < 0.3 * np.abs(expected).max(), name


class TestBadNetworks:
    """A plan, or a refusal, for weights that are not as they should be."""

    @pytest.fixture
    def made(self, files, tmp_path):
        def make(nodes=NODES, **weights):
            given = {**WEIGHTS, **weights}
            model = small_graph("uint8[1,96,96,1] image", nodes, OUTPUT, **given)
            found = plan(model, files["plain"][:3], ImageInput(96, 96, 1), tmp_path)
            equalised = onnx.load(tmp_path / "equalised.onnx")
            for form in (Form(), Form(signed=False, sums=True)):
                model = quantised(equalised, found, frozenset(NETWORK), form)
                onnx.checker.check_model(model, full_check=True)
                for tensor in model.graph.initializer:
                    assert np.isfinite(numpy_helper.to_array(tensor)).all(), tensor.name
            return found, model

        return make

    @pytest.mark.parametrize("name", ["w", "b", "u"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_weights_that_are_not_finite_are_named(self, made, name, value):
        damaged = WEIGHTS[name].copy()
        damaged.reshape(-1)[-1] = value
        with pytest.raises(InputError, match=f"weights {name} are not finite") as caught:
            made(**{name: damaged})
        assert caught.value.exit_status == 2

    def test_values_whose_squares_overflow_are_named(self, made):
        with pytest.raises(InputError, match=r"tensor r takes values .* beyond 1e\+15"):
            made(w=WEIGHTS["w"] * 1e20)

    def test_values_that_overflow_are_named(self, made):
        with pytest.raises(InputError, match=r"tensor (c|r) takes values that are not finite"):
            made(w=WEIGHTS["w"] * 1e37, b=np.full(4, 3e38))

    def test_nan_that_the_network_makes_itself_is_named(self, made):
        # From finite weights: a channel that is infinite minus infinite.
        nodes = NODES.replace("r = Relu(c)", "e = Exp(c)\n r = Sub(e, e)").replace(
            "y = Conv(r, u)", "y = Conv(r, u)"
        )
        with pytest.raises(InputError, match="tensor r takes values that are not finite"):
            made(nodes, w=WEIGHTS["w"] * 1e4)

    def test_layers_that_only_read_zeros_stay_in_float(self, made):
        found, model = made(w=np.zeros((4, 1, 3, 3)), b=-np.ones(4))
        assert [layer.node for layer in found.layers] == ["c"]
        after = {node.name: node for node in model.graph.node}
        assert after["y"].input[:2] == ["r", "u"]

    def test_a_network_that_only_reads_zeros_is_refused(self, made):
        with pytest.raises(UnfitError, match="only ever reads zeros") as caught:
            made(NODES.replace("x = Div(grey, white)", "x = Sub(grey, grey)"), b=-np.ones(4))
        assert caught.value.exit_status == 2

    def test_no_layer(self, files, tmp_path):
        model = small_graph(
            "uint8[1,96,96,1] image",
            "c = Cast<to = 1>(image)\n raw_score = ReduceMax<keepdims = 0>(c, axes)",
            OUTPUT,
            axes=np.array([1, 2, 3]),
        )
        with pytest.raises(UnfitError, match="nothing to quantise") as caught:
            plan(model, files["plain"], ImageInput(96, 96, 1), tmp_path)
        assert caught.value.exit_status == 2

    @pytest.mark.parametrize("size", [1e-45, 1e-39, 1e-30, 1e-10])
    def test_weights_that_are_next_to_nothing(self, made, size):
        weight = WEIGHTS["w"].copy()
        weight[1] *= size / np.abs(weight[1]).max()
        found, _ = made(w=weight)
        assert len(found.layers) == 2
        assert (found.weights["w"].scales >= np.finfo(np.float32).tiny).all()

    @pytest.mark.parametrize("size", [1e-45, 1e-39, 1e-20])
    def test_all_weights_of_a_layer_next_to_nothing(self, made, size):
        found, _ = made(u=WEIGHTS["u"] * size)
        assert [layer.node for layer in found.layers] == ["c", "y"]

    def test_a_channel_of_zeros_keeps_its_bias(self, made):
        weight = WEIGHTS["w"].copy()
        weight[2] = 0
        _, model = made(w=weight, b=np.array([0.1, 0.2, 0.3, 0.4]))
        values = tensors(model)
        reached = values["c/bias"][2] / values["c/bias"][3]
        assert values["c/bias"][2] > 0
        assert np.isfinite(reached)

    def test_steps_that_overflow_are_named(self, made):
        # 1e38 of something that reaches 1 is finite; its bias in an int32 of 1e-9 is not.
        with pytest.raises(InputError, match=r"too large for INT8|not finite"):
            made(
                NODES.replace("x = Div(grey, white)", "x = Mul(grey, tiny)"),
                tiny=np.array(1e-19),
                w=WEIGHTS["w"],
                b=np.full(4, 1e38),
            )


class TestKindsOfLayers:
    def test_convolutions_of_one_and_three_dimensions_are_rounded_to_the_nearest(
        self, files, tmp_path
    ):
        for axes, dims in (([9, 1024], 1), ([9, 32, 32], 2), ([9, 16, 8, 8], 3)):
            shape = "shape"
            weights = {
                **WEIGHTS,
                "w": np.random.default_rng(0).normal(size=(4, 9, *[1] * dims)),
                "u": np.random.default_rng(2).normal(size=(3, 4, *[1] * dims)),
                "shape": np.array([1, *axes]),
                "axes": np.array(range(1, dims + 2)),
            }
            nodes = NODES.replace(
                "x = Div(grey, white)", f"z = Div(grey, white)\n x = Reshape(z, {shape})"
            )
            model = small_graph(
                "uint8[1,96,96,1] image", nodes.replace("<strides = [2,2]>", ""), OUTPUT, **weights
            )
            choices = Choices(equalising=False)
            found = plan(
                model, files["plain"][:2], ImageInput(96, 96, 1), tmp_path, choices=choices
            )
            weight = found.weights["w"]
            scales = weight.scales.reshape(-1, *[1] * (weights["w"].ndim - 1))
            error = np.abs(weight.values - weights["w"].astype(np.float32) / scales).max()
            assert ("c" in found.shifts) == (dims == 2)
            assert (error <= 0.501) == (dims != 2)
            model = quantised(
                onnx.load(tmp_path / "equalised.onnx"), found, frozenset(NETWORK), Form()
            )
            onnx.checker.check_model(model, full_check=True)


class TestRefused:
    def test_no_image(self, graph_of, resizing, tmp_path):
        with pytest.raises(InputError, match="calibration set holds no normal image"):
            int8(graph_of("resizing", 1)[1], (), resizing.image_input, tmp_path)

    def test_an_image_of_another_size_is_named(self, graph_of, resizing, files, tmp_path):
        path = tmp_path / "small.png"
        save_png(np.zeros((20, 20, 3), np.uint8), path)
        images = (*files["resizing"][:2], ImageFile(path, "small.png", None))
        with pytest.raises(InputError, match=r"small\.png"):
            int8(graph_of("resizing", 1)[1], images, resizing.image_input, tmp_path)
        assert not (tmp_path / "equalised.onnx").exists()

    def test_a_network_without_layers(self, graph_of, resizing, files, tmp_path):
        graph = graph_of("resizing", 1)[1]
        nothing = replace(graph, seams=("preprocessed", "preprocessed"))
        assert nothing.network_nodes() == frozenset()
        with pytest.raises(UnfitError, match="nothing to quantise"):
            int8(nothing, files["resizing"][:2], resizing.image_input, tmp_path)


@pytest.mark.slow
def test_every_denoising_step_gets_the_ranges_of_its_own_input(crops, files, tmp_path):
    config = DiffusionConfig(width=8, steps=3, denoise_steps=3, blur_sigma=0.5)
    detector = fit_diffusion(crops, config, ImageInput(96, 96, 1), size=(32, 32))
    graph = simplify(trace(detector, detector.image_input))
    choices = Choices(planted=False)
    _, model, _ = int8(graph, files["plain"], detector.image_input, tmp_path, choices)
    reached = [0.0, 0.0, 0.0]
    calls = []

    def note(_module, inputs):
        number = len(calls) % 3
        calls.append(number)
        reached[number] = max(reached[number], float(inputs[0].abs().max()))

    detector.denoiser.unet.conv_in.register_forward_pre_hook(note)
    with torch.inference_mode():
        for crop in crops:
            detector(torch.from_numpy(crop)[None])
    producers = {name: node for node in model.graph.node for name in node.output}
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    scales = []
    for node in model.graph.node:
        weight = producers.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is not None and "unet.conv_in" in weight.input[0]:
            scales.append(float(values[producers[node.input[0]].input[1]]))
    assert len(set(scales)) == 3
    assert sorted(scales) == pytest.approx(sorted(each / 127 for each in reached), rel=0.02)
