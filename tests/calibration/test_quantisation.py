import sys
from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from vadexport.backends.child import Child
from vadexport.backends.registry import get_backend
from vadexport.calibration import quantise
from vadexport.contract import ImageInput
from vadexport.detectors.diffusion import DiffusionConfig
from vadexport.detectors.diffusion import fit as fit_diffusion
from vadexport.errors import BackendError, InputError, MissingPackageError
from vadexport.images import ImageFile
from vadexport.images.colouring import save_png
from vadexport.passes import DEFAULT_PASSES, apply_passes
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


def quantised(graph, files, image_input, folder):
    """Quantise in a child process, as a build does."""
    onnx.save(graph.model, folder / "float.onnx")
    hearer = Hearer([])
    with Child("INT8 calibration") as child:
        layers = child.run(
            quantise,
            folder / "float.onnx",
            folder / "int8.onnx",
            graph.network_nodes(),
            files,
            image_input,
            progress=hearer,
        )
    return layers, onnx.load(folder / "int8.onnx"), hearer.told


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
    layers, model, told = quantised(graph, files[name], image_input, folder)
    images = np.stack(request.getfixturevalue({"plain": "crops", "resizing": "coloured"}[name]))
    return SimpleNamespace(
        detector=detector,
        batch=batch,
        graph=graph,
        layers=layers,
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
        assert case.layers == len(convs) == len(backbone)
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
            assert after[node.name].SerializeToString() == node.SerializeToString()
            for name in node.input:
                if name in before:
                    np.testing.assert_array_equal(values[name], before[name])

    def test_only_pairs_of_quantisers_are_new(self, case):
        known = {node.name for node in case.graph.model.graph.node}
        new = Counter(n.op_type for n in case.model.graph.node if n.name not in known)
        assert new.keys() == {"QuantizeLinear", "DequantizeLinear"}
        assert known <= {node.name for node in case.model.graph.node}
        assert new["DequantizeLinear"] == new["QuantizeLinear"] + case.layers

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
        assert len(weights) == case.layers
        for node in weights:
            weight, scale = values[node.input[0]], values[node.input[1]]
            assert weight.dtype == np.int8
            assert weight.ndim == 4
            assert scale.shape == weight.shape[:1]
            assert np.abs(weight.astype(int)).max() <= 127
        read_by_q = {node.input[0] for node in q_nodes(case.model)}
        assert not any(values[name].dtype == np.int32 for name in read_by_q & values.keys())

    def test_weights_are_the_float_ones_rounded(self, case):
        before, values = tensors(case.graph.model), tensors(case.model)
        convs = {node.name: node for node in case.graph.model.graph.node if node.op_type == "Conv"}
        dequantised = {node.output[0]: node for node in q_nodes(case.model)}
        for node in case.model.graph.node:
            if node.name not in convs:
                continue
            original = before[convs[node.name].input[1]]
            pair = dequantised[node.input[1]]
            scale = values[pair.input[1]][:, None, None, None]
            found = values[pair.input[0]].astype(np.float64) * scale
            assert (np.abs(found - original) <= 0.501 * scale).all()

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
        reach = float(x.abs().max())
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
        layers = runner.execution.layers
        assert not {"bf16", "f16"} & layers.keys()
        assert layers["f32"] > 5
        assert runner.execution.precision == "INT8 network, float32 score head"
        images = case.unseen[: case.batch or 5]
        session = onnxruntime.InferenceSession(case.path, providers=["CPUExecutionProvider"])
        (expected,) = session.run(["anomaly_map"], {"image": images})
        # Both round to eight bits, not always to the same side.
        correlation = np.corrcoef(runner.infer(images)["anomaly_map"].ravel(), expected.ravel())
        assert correlation[0, 1] > 0.99


def test_every_image_is_seen_and_told(case):
    assert case.told == [(number, 12) for number in range(1, 13)]


def test_gives_the_same_bytes_every_time(graph_of, files, resizing, tmp_path):
    graph = graph_of("resizing", 1)[1]
    data = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        quantised(graph, files["resizing"][:2], resizing.image_input, tmp_path / name)
        data.append((tmp_path / name / "int8.onnx").read_bytes())
    assert data[0] == data[1]
    assert str(tmp_path).encode() not in data[0]


class TestRefused:
    def test_no_image(self, graph_of, resizing, tmp_path):
        with pytest.raises(InputError, match="calibration set holds no normal image"):
            quantised(graph_of("resizing", 1)[1], (), resizing.image_input, tmp_path)

    def test_an_image_of_another_size_is_named(self, graph_of, resizing, files, tmp_path):
        path = tmp_path / "small.png"
        save_png(np.zeros((20, 20, 3), np.uint8), path)
        images = (*files["resizing"][:2], ImageFile(path, "small.png", None))
        with pytest.raises(InputError, match=r"small\.png"):
            quantised(graph_of("resizing", 1)[1], images, resizing.image_input, tmp_path)
        assert not (tmp_path / "int8.onnx").exists()

    def test_a_network_without_layers(self, graph_of, resizing, files, tmp_path):
        graph = graph_of("resizing", 1)[1]
        nothing = replace(graph, seams=("preprocessed", "preprocessed"))
        assert nothing.network_nodes() == frozenset()
        with pytest.raises(BackendError, match="nothing to quantise"):
            quantised(nothing, files["resizing"][:2], resizing.image_input, tmp_path)

    def test_without_nncf(self, resizing, files, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "nncf", None)
        with pytest.raises(MissingPackageError, match=r"nncf is not installed here.*\[int8\]"):
            quantise(
                tmp_path / "float.onnx",
                tmp_path / "int8.onnx",
                frozenset(),
                files["resizing"],
                resizing.image_input,
                print,
            )


@pytest.mark.slow
def test_every_denoising_step_gets_the_ranges_of_its_own_input(crops, files, tmp_path):
    config = DiffusionConfig(width=8, steps=3, denoise_steps=3, blur_sigma=0.5)
    detector = fit_diffusion(crops, config, ImageInput(96, 96, 1), size=(32, 32))
    graph = simplify(trace(detector, detector.image_input))
    _, model, _ = quantised(graph, files["plain"], detector.image_input, tmp_path)
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
