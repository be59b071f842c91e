from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from vadexport.backends.registry import opener
from vadexport.contract import PREPROCESSED
from vadexport.detectors.steps import EagerPreprocessing, Normalise, Resize
from vadexport.errors import BackendError, CheckError, InputError
from vadexport.targets import Target
from vadexport.verification.ladder import Ladder
from vadexport.verification.limits import Limits


@pytest.fixture(scope="module")
def folder(graph_of, tmp_path_factory):
    """The traced graph of `plain` at batch 3, as ONNX Runtime takes it."""
    folder = tmp_path_factory.mktemp("ladder")
    onnx.save(graph_of("plain", 3)[1].model, folder / "model.onnx")
    return folder


def inference(detector):
    calls = []

    def infer(images):
        calls.append(len(images))
        with torch.inference_mode():
            return {key: value.numpy() for key, value in detector(torch.from_numpy(images)).items()}

    return infer, calls


@pytest.fixture
def ladder(plain, crops):
    infer, calls = inference(plain)
    ladder = Ladder(
        infer, np.stack(crops[:7]), replace(plain.image_input, batch=3), plain.thresholds
    )
    return ladder, calls


def climb(ladder, folder, unit=1.0, precision="fp32"):
    open_runner = opener(Target("onnxruntime", "fp32"), folder, 1)
    return ladder.climb(
        "traced", "onnxruntime:fp32 (traced)", open_runner, unit, Limits.of_rung(precision)
    )


def test_a_true_step_holds(ladder, folder):
    rung = climb(ladder[0], folder)
    assert rung.held
    assert rung.figures.images == 7
    assert 0 < rung.figures.drift_max < 1e-3
    value = rung.to_json()
    assert (value["rung"], value["held"], value["images"]) == ("traced", True, 7)
    assert value["drift_max"] == float(f"{rung.figures.drift_max:.6g}")


def test_the_reference_scores_each_call_once(ladder, folder, plain, crops):
    ladder, calls = ladder
    assert calls == [3, 3, 3]
    with torch.inference_mode():
        expected = plain(torch.from_numpy(np.stack(crops[:7])))["raw_score"].numpy()
    np.testing.assert_allclose(ladder.reference_scores, expected, rtol=1e-4)
    climb(ladder, folder)
    climb(ladder, folder)
    assert calls == [3, 3, 3]


def test_of_graphs_that_take_any_number_few_are_run_at_a_time(plain, crops, graph_of, tmp_path):
    onnx.save(graph_of("plain", None)[1].model, tmp_path / "model.onnx")
    infer, calls = inference(plain)
    images = np.stack(crops[:7])
    ladder = Ladder(infer, images, replace(plain.image_input, batch=None), plain.thresholds)
    assert calls == [4, 4]
    assert climb(ladder, tmp_path).held
    assert len(ladder.reference_scores) == 7


def test_against_another_graph_the_reference_does_not_count(ladder, folder, plain):
    def off(images):
        found = inference(plain)[0](images)
        return {**found, "raw_score": found["raw_score"] * 2}

    found = climb(ladder[0].against(off), folder)
    assert not found.held
    assert found.figures.drift_max == pytest.approx(ladder[0].reference_scores.max(), rel=1e-3)
    assert [check.name for check in found.checks if not check.held] == ["drift"]
    assert climb(ladder[0].against(inference(plain)[0]), folder).held


def test_images_that_another_graph_has_no_score_of_are_left_out(ladder, folder, plain):
    def broken(images):
        found = inference(plain)[0](images)
        return {
            **found,
            "raw_score": np.where(images[:, 0, 0, 0] > cut, np.nan, found["raw_score"]),
        }

    firsts = np.sort([image[0, 0, 0] for image in ladder[0]._images])
    cut = firsts[3]
    found = climb(ladder[0].against(broken), folder)
    assert found.held
    assert found.figures.images == np.count_nonzero(firsts <= cut)


def test_drift_is_counted_in_the_unit(ladder, folder):
    one, thousandth = climb(ladder[0], folder), climb(ladder[0], folder, unit=1e-3)
    assert thousandth.figures.drift_max == pytest.approx(1e3 * one.figures.drift_max)


def test_a_step_that_moves_scores_does_not_hold(plain, crops, folder):
    def moved(images):
        found = inference(plain)[0](images)
        return {**found, "raw_score": found["raw_score"] + np.float32(0.01)}

    images = np.stack(crops[:6])
    rung = climb(
        Ladder(moved, images, replace(plain.image_input, batch=3), plain.thresholds), folder
    )
    assert not rung.held
    assert rung.figures.drift_max == pytest.approx(0.01, abs=1e-3)
    assert [check.name for check in rung.checks if not check.held] == ["drift"]


def test_a_step_that_moves_maps_alone_does_not_hold(plain, crops, folder):
    def moved(images):
        found = inference(plain)[0](images)
        return {**found, "anomaly_map": found["anomaly_map"].copy() * np.float32(1.05)}

    images = np.stack(crops[:6])
    rung = climb(
        Ladder(moved, images, replace(plain.image_input, batch=3), plain.thresholds), folder
    )
    assert [check.name for check in rung.checks if not check.held] == ["map"]


def test_a_damaged_reference_is_refused(plain, crops):
    def damaged(images):
        return {"raw_score": np.full(len(images), np.nan, np.float32)}

    with pytest.raises(InputError, match="gives scores that are not finite"):
        Ladder(damaged, np.stack(crops[:2]), plain.image_input, plain.thresholds)


def test_a_step_whose_scores_are_all_nan_falls_short(ladder, plain, crops, graph_of, tmp_path):
    model = onnx.ModelProto()
    model.CopyFrom(graph_of("plain", 3)[1].model)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("stem.0.weight"):
            weights = np.full(onnx.numpy_helper.to_array(tensor).shape, np.nan, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(CheckError, match="no image has a finite score"):
        climb(ladder[0], tmp_path)
    infer, _ = inference(plain)
    image_input = replace(plain.image_input, batch=3)
    tolerant = Ladder(infer, np.stack(crops[:4]), image_input, plain.thresholds, tolerant=True)
    rung = climb(tolerant, tmp_path)
    assert [check.name for check in rung.checks if not check.held] == ["finite"]
    assert (rung.figures.images, rung.figures.not_finite) == (4, 4)


def test_a_step_that_cannot_be_opened_is_the_backends_error(ladder, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"^onnxruntime:fp32 \(traced\) failed"):
        climb(ladder[0], tmp_path)


def prepared_by(module):
    def prepare(images):
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return prepare


def checked(ladder, rung, folder):
    rung = ladder.check_preprocessing(rung, folder / "model.onnx")
    return rung, [check.name for check in rung.checks if not check.held]


def test_preprocessing_is_compared_apart(plain, crops, folder):
    infer, _ = inference(plain)
    image_input = replace(plain.image_input, batch=3)
    ladder = Ladder(
        infer, np.stack(crops[:7]), image_input, plain.thresholds, prepared_by(plain.preprocessing)
    )
    rung, fallen = checked(ladder, climb(ladder, folder), folder)
    assert rung.preprocessing < 1e-6
    assert fallen == []
    assert rung.to_json()["preprocessing"] == float(f"{rung.preprocessing:.6g}")


@pytest.mark.parametrize(
    ("steps", "least"),
    [
        ((Resize((64, 64)), Normalise((0.5,) * 3, (0.2,) * 3)), 0.01),
        ((Resize((32, 32)), Resize((64, 64))), 0.01),
        ((Resize((64, 32)),), np.inf),
    ],
)
def test_other_preprocessing_falls_short(plain, crops, folder, steps, least):
    infer, _ = inference(plain)
    image_input = replace(plain.image_input, batch=3)
    prepare = prepared_by(EagerPreprocessing(steps))
    ladder = Ladder(infer, np.stack(crops[:7]), image_input, plain.thresholds, prepare)
    rung, fallen = checked(ladder, climb(ladder, folder), folder)
    assert rung.preprocessing >= least
    assert fallen == ["preprocessing"]


def test_a_fault_behind_the_preprocessing_is_none_of_its(plain, crops, graph_of, tmp_path):
    model = onnx.ModelProto()
    model.CopyFrom(graph_of("plain", 3)[1].model)
    weight = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    weight.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    infer, _ = inference(plain)
    image_input = replace(plain.image_input, batch=3)
    ladder = Ladder(
        infer, np.stack(crops[:7]), image_input, plain.thresholds, prepared_by(plain.preprocessing)
    )
    rung, fallen = checked(ladder, climb(ladder, tmp_path), tmp_path)
    assert rung.preprocessing < 1e-6
    assert "drift" in fallen
    assert "preprocessing" not in fallen


def test_a_graph_without_that_tensor_is_not_compared(plain, crops, folder, tmp_path):
    model = onnx.load(folder / "model.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            for number, name in enumerate(names):
                names[number] = "x" if name == PREPROCESSED else name
    onnx.save(model, tmp_path / "model.onnx")
    infer, _ = inference(plain)
    image_input = replace(plain.image_input, batch=3)
    ladder = Ladder(
        infer, np.stack(crops[:3]), image_input, plain.thresholds, prepared_by(plain.preprocessing)
    )
    rung, fallen = checked(ladder, climb(ladder, tmp_path), tmp_path)
    assert rung.preprocessing is None
    assert fallen == []
