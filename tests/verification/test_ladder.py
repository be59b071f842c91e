from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from vadexport.backends.registry import opener
from vadexport.errors import BackendError, CheckError, InputError
from vadexport.targets import Target
from vadexport.verification.ladder import Ladder


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
    return ladder.climb("traced", "onnxruntime:fp32 (traced)", open_runner, unit, precision)


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


def test_a_step_whose_scores_are_all_nan_falls_short(ladder, graph_of, tmp_path):
    model = onnx.ModelProto()
    model.CopyFrom(graph_of("plain", 3)[1].model)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("stem.0.weight"):
            weights = np.full(onnx.numpy_helper.to_array(tensor).shape, np.nan, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(CheckError, match="no image has a finite score"):
        climb(ladder[0], tmp_path)


def test_a_step_that_cannot_be_opened_is_the_backends_error(ladder, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"^onnxruntime:fp32 \(traced\) failed"):
        climb(ladder[0], tmp_path)
