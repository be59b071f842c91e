"""INT8 targets of OpenVINO compute Mahalanobis distances in bfloat16, if scores allow it."""

import json
from importlib import import_module

import numpy as np
import onnx
import pytest

from vadexport import runtime
from vadexport.building import BuildOptions, build, mixing, narrow_head
from vadexport.contract import ImageInput
from vadexport.detectors import padim
from vadexport.detectors.checkpoint import save_detector
from vadexport.listening import Listener
from vadexport.targets import Target

WORDS = "fp32, Mahalanobis distances in bf16"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process", "fast")]


@pytest.fixture(scope="module")
def detector(crops):
    """PaDiM of 64 channels, and of images enough for sound Gaussians, none of them as it was."""
    ways = [(flip, turns) for flip in (1, -1) for turns in range(4)][1:]
    turned = [np.rot90(crop[:, ::flip], turns) for crop in crops for flip, turns in ways]
    images = [np.ascontiguousarray(image) for image in turned]
    return padim.fit(images, padim.PaDiMConfig(channels=64), ImageInput(96, 96, 1)).eval()


@pytest.fixture
def fast(monkeypatch):
    """As if the processor were fast at bfloat16, or not; where it is not, float32 stands for it."""

    def say(value):
        monkeypatch.setattr(narrow_head, "fast_bfloat16", lambda: value)
        monkeypatch.setattr(mixing, "fast_bfloat16", lambda: value)

    say(value=True)
    return say


@pytest.fixture
def built(detector, images, tmp_path):
    def go(*targets, made=detector):
        save_detector(made, tmp_path / "d.safetensors")
        chosen = tuple(map(Target.parse, targets))
        folder = tmp_path / f"a{len(list(tmp_path.iterdir()))}"
        given = (tmp_path / "d.safetensors", folder, chosen, str(images / "good"))
        return build(BuildOptions(*given), Listener())

    return go


def precision(target):
    return json.loads((target.folder / "manifest.json").read_text())["precision"]


def bfloat16_products(target):
    """MatMuls of the compiled model that take bfloat16."""
    openvino = import_module("openvino")
    model = openvino.Core().read_model(target.folder / "model.xml")
    return [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() == "MatMul" and node.get_input_element_type(1) == openvino.Type.bf16
    ]


def drifts(target, images):
    """Raw scores in drift units."""
    loaded = runtime.load(target.folder)
    scores = [loaded.predict(path).raw_score for path in sorted(images.rglob("*.png"))]
    return np.array(scores) / loaded.manifest.drift_unit


def test_scores_stay_and_the_manifest_says_so(built, fast, images):
    result = built("openvino:int8", "openvino:fp32", "onnxruntime:int8")
    ours, in_float, theirs = result.targets
    assert len(bfloat16_products(ours)) == 1  # the other block of the factor is small
    assert not bfloat16_products(in_float)
    assert (precision(ours)["network"], precision(ours)["score head"]) == ("int8", WORDS)
    assert precision(in_float)["score head"] == precision(theirs)["score head"] == "fp32"
    assert all(rung.held for one in result.targets for rung in one.rungs)
    (note,) = [line for line in result.notes if "Mahalanobis" in line]
    assert "in bfloat16, which moves scores of normal images by" in note
    # What is kept for `verify` is what ONNX Runtime can run.
    kept = onnx.load(ours.folder / "report" / "quantised" / "model.onnx")
    assert onnx.TensorProto.BFLOAT16 not in {each.data_type for each in kept.graph.initializer}
    fast(value=False)
    (plain,) = built("openvino:int8").targets
    assert not bfloat16_products(plain)
    assert precision(plain)["score head"] == "fp32"
    moved = np.abs(drifts(ours, images) - drifts(plain, images))
    assert moved.max() <= 0.05
    weights = [(one.folder / "model.bin").stat().st_size for one in (ours, plain)]
    assert weights[0] < weights[1] - 500_000  # 144 positions × 64 × 32 values of two bytes less


def test_scores_that_would_move_keep_it_in_float32(built, monkeypatch):
    monkeypatch.setattr(narrow_head, "_SHARE", -1.0)
    result = built("openvino:int8")
    assert not bfloat16_products(result.targets[0])
    assert precision(result.targets[0])["score head"] == "fp32"
    (note,) = [line for line in result.notes if "Mahalanobis" in line]
    assert "Mahalanobis distances stay float32: in bfloat16, which moves scores" in note
    assert note.endswith("(drift of normal images)")


def test_auto_times_it_with_a_float_network_too(built, monkeypatch):
    monkeypatch.setattr(mixing, "_LEAST_SPEEDUP", 0.0)
    (target,) = built("openvino:auto").targets
    search = target.facts["search"]
    assert search["chosen"] is not None
    assert precision(target)["score head"] == WORDS
    assert bfloat16_products(target)
    assert all(rung.held for rung in target.rungs)
    alone = [
        point
        for point in search["points"]
        if len(point["float_layers"]) == search["layers"] and point["float_type"] == "fp32"
    ]
    assert [point["holds"] for point in alone] == [True]


def test_without_such_distances_nothing_is_tried(built, plain):
    result = built("openvino:int8", made=plain)
    assert precision(result.targets[0])["score head"] == "fp32"
    assert not [line for line in result.notes if "Mahalanobis" in line]
