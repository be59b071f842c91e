"""`pred_score` of detectors that make no decisions, so that no threshold says what it must be."""

import numpy as np
import pytest

from vadexport.contract import ImageInput
from vadexport.verification.limits import Limits, parity_checks
from vadexport.verification.parity import compare_images, figures

UNIT = 5.0
INPUT = ImageInput(2, 2, 1)
VALUES = (10, 20, 24, 31, 47, 80, 81, 120)


def raw_scores(call):
    return call.reshape(len(call), -1)[:, 0].astype(np.float32)


def plain(call):
    """As a source without thresholds gives it: the raw score itself."""
    raw = raw_scores(call)
    return {"raw_score": raw, "pred_score": raw}


def normalised(call, moved=0.0):
    """As anomalib gives it without thresholding: by a range of 40 around 50, clamped."""
    raw = raw_scores(call) + np.float32(moved)
    return {"raw_score": raw, "pred_score": ((raw - 50) / np.float32(40) + 0.5).clip(0, 1)}


def contradictions(reference, found, values=VALUES):
    images = [(str(value), None, np.full((2, 2, 1), value, np.uint8)) for value in values]
    return figures(compare_images(reference, {"x": found}, images, INPUT, None)["x"], UNIT)


def spoilt(reference, change):
    def infer(call):
        found = reference(call)
        return {**found, "pred_score": change(found["pred_score"]).astype(np.float32)}

    return infer


@pytest.mark.parametrize("reference", [plain, normalised])
@pytest.mark.parametrize("values", [VALUES, VALUES[:1], (200, 220, 240)])
def test_the_references_own_hold(reference, values):
    assert contradictions(reference, reference, values).inconsistent == 0


@pytest.mark.parametrize("moved", [-7.0, -1e-4, 1e-4, 0.5, 7.0])
def test_what_follows_from_a_raw_score_that_drifts_holds(moved):
    def drifted(call):
        raw = raw_scores(call) + np.float32(moved)
        return {"raw_score": raw, "pred_score": raw}

    assert contradictions(plain, drifted).inconsistent == 0
    found = contradictions(normalised, lambda call: normalised(call, moved))
    assert found.inconsistent == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda score: score + 0.01,
        lambda score: score * 0.99,
        lambda score: 1 - score,
        lambda score: 0 * score,
    ],
)
@pytest.mark.parametrize("reference", [plain, normalised])
def test_another_normalised_score_contradicts(reference, change):
    found = contradictions(reference, spoilt(reference, change))
    assert found.inconsistent > 0
    fallen = [c.name for c in parity_checks(found, Limits.of_precision("fp32")) if not c.held]
    assert fallen == ["outputs"]


def test_of_one_image_too():
    assert contradictions(plain, spoilt(plain, lambda score: score + 1), VALUES[:1]).inconsistent
    wrong = spoilt(normalised, lambda score: score + 0.1)
    assert contradictions(normalised, wrong, VALUES[4:5]).inconsistent


def test_one_that_is_missing_is_not_compared():
    def without(call):
        return {"raw_score": raw_scores(call)}

    assert contradictions(without, without).inconsistent == 0
