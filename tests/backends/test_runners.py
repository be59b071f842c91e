import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from vadexport import contract
from vadexport.backends.base import ExecutedLayer, available_threads
from vadexport.backends.inner import executed_layers
from vadexport.backends.pytorch import PyTorchRunner
from vadexport.backends.registry import get_backend, opener
from vadexport.errors import BackendError, InputError, MissingPackageError
from vadexport.targets import PRECISIONS, Target

BACKENDS = ["openvino", "onnxruntime"]
CASES = [("resizing", 1), ("resizing", None), ("plain", 3)]


@pytest.fixture(scope="module", params=BACKENDS)
def name(request):
    return request.param


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}@{case[1] or 'dynamic'}")
def case(request, name, graph_of, tmp_path_factory):
    """A compiled detector, opened, and images that it was not fitted on."""
    detector_name, batch = request.param
    folder = tmp_path_factory.mktemp(name)
    (folder / "artifact").mkdir()
    onnx.save(graph_of(detector_name, batch)[1].model, folder / "graph.onnx")
    target = Target(name, "fp32")
    get_backend(name).compile_graph(folder / "graph.onnx", folder / "artifact", target)
    (folder / "graph.onnx").unlink()  # an artifact stands alone
    fixture = {"plain": "crops", "resizing": "coloured"}[detector_name]
    unseen = np.stack([255 - image[::-1] for image in request.getfixturevalue(fixture)])
    return SimpleNamespace(
        name=name,
        folder=folder / "artifact",
        detector=request.getfixturevalue(detector_name),
        count=batch or 2,
        batch=batch,
        images=unseen,
        runner=opener(Target(name, "fp32"), folder / "artifact", 2)(),
    )


def assert_equal_to_pytorch(case, found, images):
    with torch.inference_mode():
        expected = case.detector(torch.from_numpy(np.array(images)))
    spread = case.detector.thresholds.maximum - case.detector.thresholds.minimum
    for key in ("raw_score", "anomaly_map"):
        difference = np.abs(found[key] - expected[key].numpy()).max()
        assert difference < 1e-4 * spread, key
    np.testing.assert_array_equal(found["pred_label"], expected["pred_label"].numpy())


class TestRunner:
    def test_gives_the_outputs_of_the_contract(self, case):
        outputs = case.runner.infer(case.images[: case.count])
        assert tuple(outputs) == contract.OUTPUT_NAMES
        size = case.detector.preprocessing.config.size
        for key, dtype, shape in [
            ("pred_score", np.float32, ()),
            ("raw_score", np.float32, ()),
            ("pred_label", bool, ()),
            ("anomaly_map", np.float32, (1, *size)),
            ("pred_mask", bool, (1, *size)),
        ]:
            assert outputs[key].dtype == dtype, key
            assert outputs[key].shape == (case.count, *shape), key

    def test_agrees_with_pytorch(self, case):
        for start in range(0, 6, case.count):
            images = case.images[start : start + case.count]
            assert_equal_to_pytorch(case, case.runner.infer(images), images)

    @pytest.mark.parametrize("case", [("resizing", None)], indirect=True, ids=["dynamic"])
    def test_a_dynamic_batch_takes_any_number(self, case):
        for count in (1, 5, 2):
            images = case.images[:count]
            assert_equal_to_pytorch(case, case.runner.infer(images), images)

    def test_outputs_are_the_callers_own(self, case):
        first = case.runner.infer(case.images[: case.count])
        kept = {key: value.copy() for key, value in first.items()}
        case.runner.infer(255 - case.images[: case.count])
        for key, value in kept.items():
            np.testing.assert_array_equal(first[key], value)

    def test_the_memory_layout_of_an_image_does_not_matter(self, case):
        images = case.images[: case.count]
        expected = case.runner.infer(np.ascontiguousarray(images))
        read_only = images.copy()
        read_only.setflags(write=False)
        for other in (np.asfortranarray(images), images[:, ::-1].copy()[:, ::-1], read_only):
            found = case.runner.infer(other)
            for key, value in expected.items():
                np.testing.assert_array_equal(found[key], value)

    def test_leaves_its_input_alone(self, case):
        images = case.images[: case.count].copy()
        case.runner.infer(images)
        np.testing.assert_array_equal(images, case.images[: case.count])

    def test_says_how_it_runs(self, case):
        execution = case.runner.execution
        words = {"openvino": "OpenVINO 20", "onnxruntime": "ONNX Runtime 1."}
        assert execution.backend.startswith(words[case.name])
        assert execution.precision == "float32"
        assert execution.threads == 2
        assert execution.device

    def test_computes_in_float32_whatever_the_processor_offers(self, case):
        target = Target(case.name, "fp32")
        layers = executed_layers(case.folder, target, 2)
        backbone = [m for m in case.detector.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
        convolutions = [one for one in layers if "Conv" in one.operator and one.name]
        found = [one for one in convolutions if one.precision in ("f32", "float32")]
        assert len(found) >= len(backbone)
        kinds = {one.precision for one in layers}
        assert kinds <= {"f32", "i32", "i64", "u8", "boolean", "float32", "int64", "uint8"}

    def test_layers_are_counted_by_precision(self, case):
        layers = [ExecutedLayer("a", "Conv", "u8"), ExecutedLayer("b", "Add", "f32")]
        execution = case.runner.execution.with_layers([*layers, *layers[:1]])
        assert list(execution.layers.items()) == [("f32", 1), ("u8", 2)]
        assert execution.executed_layers == (*layers, layers[0])


class TestCompiler:
    def test_writes_its_files_and_no_others(self, case):
        wanted = {"openvino": ["model.bin", "model.xml"], "onnxruntime": ["model.onnx"]}
        assert sorted(path.name for path in case.folder.iterdir()) == wanted[case.name]

    @pytest.mark.parametrize("name", ["openvino"], indirect=True)
    def test_weights_stay_float32_which_openvino_must_be_told(self, case):
        text = (case.folder / "model.xml").read_text()
        assert 'element_type="f16"' not in text
        assert 'element_type="f32"' in text

    def test_files_hold_no_path(self, case):
        for path in case.folder.iterdir():
            data = path.read_bytes()
            for word in (b"/work", b"/tmp", b"/root", b"site-packages"):
                assert word not in data, path.name

    @pytest.mark.parametrize(
        "data",
        [b"", b"no graph", b"\x08\x0a" * 50, None],
        ids=["empty", "text", "bytes", "truncated"],
    )
    def test_a_broken_graph_is_the_backends_error(self, name, tmp_path, graph_of, data):
        path = tmp_path / "graph.onnx"
        whole = graph_of("resizing", 1)[1].model.SerializeToString()
        path.write_bytes(whole[: len(whole) // 2] if data is None else data)
        assert_refused(name, path, tmp_path)

    def test_an_unknown_operator_is_the_backends_error(self, name, tmp_path):
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
        node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="nobody.knows")
        graph = helper.make_graph([node], "graph", [value], [output])
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nobody.knows", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "g.onnx")
        text = assert_refused(name, tmp_path / "g.onnx", tmp_path)
        assert "NoSuchOperator" in text


def assert_refused(name, path, tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    with pytest.raises(BackendError) as caught:
        get_backend(name).compile_graph(path, folder, Target(name, "fp32"))
    text = str(caught.value)
    assert text.startswith({"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}[name])
    assert len(text.splitlines()) == 1
    assert list(folder.iterdir()) == []
    return text


class TestMissingPackage:
    def test_every_way_in_names_the_extra(self, name, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, name, None)
        backend, target = get_backend(name), Target(name, "fp32")
        for call in (
            backend.version,
            lambda: backend.compile_graph(tmp_path / "graph.onnx", tmp_path, target),
            lambda: backend.open_runner(tmp_path, target, 1),
            opener(Target(name, "fp32"), tmp_path, 1),
        ):
            with pytest.raises(MissingPackageError) as caught:
                call()
            assert caught.value.package == name
            assert str(caught.value).startswith(f"{name} is not installed here: pip install ")

    def test_a_package_that_is_here_gives_its_version(self, name):
        assert get_backend(name).version()[0].isdigit()


class TestRegistry:
    def test_knows_the_backends_of_all_targets(self):
        assert set(PRECISIONS) == {*BACKENDS, "tensorrt", "tensorrt-rtx"}
        for backend in PRECISIONS:
            assert backend.replace("-", "_") == get_backend(backend).PACKAGE

    def test_an_unknown_backend_is_refused(self):
        with pytest.raises(InputError, match="unknown backend 'pytorch'; known: openvino"):
            get_backend("pytorch")


class TestPyTorch:
    def test_is_the_detector_itself(self, resizing, coloured):
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        try:
            runner = PyTorchRunner(resizing, 1)
            images = np.stack(coloured[:2])
            found = runner.infer(images)
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
        with torch.inference_mode():
            expected = resizing(torch.from_numpy(images))
        assert tuple(found) == contract.OUTPUT_NAMES
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value.numpy(), rtol=1e-4, atol=1e-4)
        assert runner.execution.precision == "float32"
        assert runner.execution.backend.startswith("PyTorch 2.")
        assert runner.execution.threads == 1


def test_available_threads_are_those_of_the_process():
    assert 1 <= available_threads() <= 4096
