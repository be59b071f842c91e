"""`--approximate`: what is chosen, what it may move, and that it is undone where it moves more."""

import json

import numpy as np
import pytest
import torch

from vadexport import runtime
from vadexport.building import BuildOptions, approximating, build
from vadexport.building.approximating import Approximating
from vadexport.contract import ImageInput
from vadexport.detectors import padim, student_teacher
from vadexport.detectors.checkpoint import save_detector
from vadexport.detectors.patchcore import PatchCoreConfig, fit
from vadexport.errors import InputError
from vadexport.images import decode
from vadexport.listening import Listener
from vadexport.targets import Target
from vadexport.verification.limits import Limits

INPUT = ImageInput(96, 96, 1)


@pytest.fixture(scope="module")
def detector(crops):
    """PatchCore without re-weighting, each row of whose bank is there twice."""
    made = fit(crops, PatchCoreConfig(coreset_ratio=0.3, neighbours=0), INPUT).eval()
    made.memory_bank = made.memory_bank.repeat(2, 1)
    return made


@pytest.fixture
def built(images, tmp_path):
    def go(detector, *targets, approximate=True, calibration=str(images / "good")):
        save_detector(detector, tmp_path / "d.safetensors")
        chosen = tuple(map(Target.parse, targets))
        folder = tmp_path / f"a{len(list(tmp_path.iterdir()))}"
        options = BuildOptions(
            tmp_path / "d.safetensors", folder, chosen, calibration, approximate=approximate
        )
        return build(options, Listener())

    return go


def rungs(target):
    return [rung.name for rung in target.rungs]


@pytest.mark.usefixtures("in_process")
def test_copies_in_a_bank_are_found_and_nothing_moves(built, detector, images):
    result = built(detector, "onnxruntime:fp32")
    (target,) = result.targets
    assert rungs(target) == ["traced", "simplified", "rewritten", "approximated", "compiled"]
    assert all(rung.held for rung in target.rungs)
    (note,) = [line for line in result.notes if line.startswith("bank-pruning")]
    rows = len(detector.memory_bank)
    assert f" of {rows} rows of the memory bank; so far raw scores moved by at most " in note
    assert "on check images" in note
    manifest = json.loads((target.folder / "manifest.json").read_text())
    assert f"of {rows} rows" in manifest["precision"]["approximated"]
    assert manifest["calibration"]["sha256"]
    loaded = runtime.load(target.folder)
    path = images / "good" / "0.png"
    with torch.inference_mode():
        expected = float(detector(torch.from_numpy(decode(path, 1))[None])["raw_score"])
    moved = abs(loaded.predict(path).raw_score - expected) / loaded.manifest.drift_unit
    assert moved <= Limits.of_rung("fp32").max_drift


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_more_drift_allows_more(built, detector):
    kept = []
    for limit in (True, 20.0):
        result = built(detector, "onnxruntime:fp32", approximate=limit)
        assert all(rung.held for rung in result.targets[0].rungs)
        (note,) = [line for line in result.notes if line.startswith("bank-pruning")]
        kept.append(int(note.split()[1]))
    assert kept[1] < kept[0] <= len(detector.memory_bank) / 2


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_what_moves_more_than_it_may_is_undone(built, detector, monkeypatch):
    monkeypatch.setattr(approximating, "_SHARE", 1000.0)  # all settings seem to hold
    result = built(detector, "onnxruntime:fp32")
    (target,) = result.targets
    assert rungs(target) == ["traced", "simplified", "rewritten", "compiled"]
    assert [
        line for line in result.notes if line.startswith("approximations undone: largest drift")
    ]
    manifest = json.loads((target.folder / "manifest.json").read_text())
    assert "approximated" not in manifest["precision"]
    assert all(rung.held for rung in target.rungs)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_gaussians_of_few_images_need_few_directions(built, crops):
    mirrored = [np.ascontiguousarray(crop[:, ::-1]) for crop in crops]  # not the check images
    made = padim.fit(mirrored, padim.PaDiMConfig(), INPUT).eval()
    result = built(made, "onnxruntime:fp32")
    assert rungs(result.targets[0])[-2:] == ["approximated", "compiled"]
    (note,) = [line for line in result.notes if line.startswith("mahalanobis-rank")]
    assert "12 of 100 directions at each position" in note


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_where_nothing_applies_it_says_so(built):
    config = student_teacher.StudentTeacherConfig()
    made = student_teacher.StudentTeacher(config, INPUT).eval()
    made.normal_scores = torch.from_numpy(np.linspace(1, 2, 12, dtype=np.float32))
    result = built(made, "onnxruntime:fp32")
    assert "approximated" not in rungs(result.targets[0])
    assert [line for line in result.notes if line.startswith("nothing to approximate")]


def test_it_needs_calibration_images(built, detector):
    with pytest.raises(InputError, match=r"to normal images: --calibration IMAGES"):
        built(detector, "onnxruntime:fp32", calibration=None)


@pytest.mark.parametrize(
    ("targets", "drift", "limit"),
    [
        (["openvino:fp32"], None, "fp32"),
        (["openvino:int8", "onnxruntime:fp32"], None, "fp32"),
        (["openvino:int8"], None, "int8"),
        (["openvino:int8", "openvino:auto"], None, "auto"),
        (["tensorrt-rtx:auto@sm86"], None, "fp32"),
        (["openvino:int8"], 0.25, 0.25),
        (["openvino:fp32"], 0.25, 0.25),
    ],
)
def test_the_strictest_target_or_what_is_given_sets_the_limit(targets, drift, limit):
    found = Approximating.of(tuple(map(Target.parse, targets)), drift).limits.max_drift
    assert found == (limit if drift else Limits.of_rung(limit).max_drift)
