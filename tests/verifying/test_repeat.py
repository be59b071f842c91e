import json
import sys

import numpy as np
import pytest

from vadexport.listening import Listener
from vadexport.verification.further_checks import repeat_check
from vadexport.verification.parity import figures
from vadexport.verification.records import ImageRecord
from vadexport.verifying import VerifyOptions, verify

NOISY = """
import numpy as np
from vadexport.backends.onnxruntime.runner import OnnxRuntimeRunner
infer = OnnxRuntimeRunner.infer
calls = [0]
def noisy(self, image):
    calls[0] += 1
    outputs = infer(self, image)
    outputs["raw_score"] = outputs["raw_score"] * np.float32(1 + 1e-2 * (calls[0] % 2))
    return outputs
OnnxRuntimeRunner.infer = noisy
"""


class Steps(Listener):
    def __init__(self):
        self.last = {}

    def step(self, name, done, total, detail=""):
        del detail
        self.last[name] = (done, total)


def records(moves, *, flip=False):
    return [
        ImageRecord(
            str(n),
            anomalous=None,
            reference_raw=1.0 + n,
            raw=1.0 + n + move,
            reference_label=False,
            label=flip,
            map_max=0.0,
            map_mean=0.0,
            map_range=1.0,
            consistent=True,
        )
        for n, move in enumerate(moves)
    ]


class TestCheck:
    @pytest.mark.parametrize(("move", "held"), [(0.0, True), (0.0009, True), (0.0011, False)])
    def test_in_drift_units(self, move, held):
        check = repeat_check(figures(records([0.0, 2 * move]), 2.0))
        assert (check.name, check.held) == ("repeat", held)
        assert "2 images" in check.line

    def test_a_decision_that_changes_or_no_number_does_not_hold(self):
        assert not repeat_check(figures(records([0.0, 0.0], flip=True), 1.0)).held
        assert not repeat_check(figures(records([0.0, float("nan")]), 1.0)).held
        assert not repeat_check(None).held


def test_the_image_that_moved_most_is_named():
    given = records([0.0, 0.01, 0.5, 0.02])
    line = repeat_check(figures(given, 1.0), given, 1.0).line
    assert "changed by at most 0.5 drift units or map ranges, most of all on 2, limit" in line
    assert "most of all" not in repeat_check(figures(given[:1], 1.0), given[:1], 1.0).line


@pytest.mark.parametrize("repeat", [0, 2])
def test_images_are_run_again(artifact, checkpoint, images, tmp_path, repeat):
    told = Steps()
    options = VerifyOptions(
        artifact, checkpoint, str(images), rounds=0, report=tmp_path, repeat=repeat
    )
    (found,) = verify(options, told).verifications
    (check,) = [each for each in found.checks if each.name == "repeat"]
    assert check.held
    count = found.figures.images
    expected = min(8, count) if not repeat else 2 * count
    assert f"run again on {expected} images" in check.line
    assert told.last["repeat"][0] == told.last["repeat"][1]


def test_scores_that_change_from_run_to_run_fall_short(
    artifacts, checkpoint, images, tmp_path, monkeypatch
):
    # What Python runs when it starts, in the artifact's child process too.
    (tmp_path / "sitecustomize.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    options = VerifyOptions(
        artifacts / "onnxruntime-fp32",
        checkpoint,
        str(images),
        {"max_drift": 10.0, "max_flips": 1.0},
        rounds=0,
        report=tmp_path / "report",
    )
    verify(options, Listener())
    checks = json.loads((tmp_path / "report" / "parity.json").read_text())["checks"]
    (check,) = [each for each in checks if each["name"] == "repeat"]
    assert not check["held"]
    assert np.isfinite(float(check["line"].split("at most ")[1].split()[0]))
