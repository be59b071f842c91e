"""What was compiled, held against the float graph."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from tests.passes.half_graphs import graph
from vadexport.calibration.judging import Bounds, Judged, judge_compiled

RANDOM = np.random.default_rng(11)
CALLS = [RANDOM.normal(size=(2, 1, 4, 4)).astype(np.float32) for _ in range(5)]


class Off:
    """A runner whose scores and maps are off by known amounts, more for each call."""

    def __init__(self):
        self.calls = 0

    def infer(self, image):
        self.calls += 1
        shift = 0.125 * self.calls
        return {
            "anomaly_map": 2 * image + 3 * shift,
            "raw_score": (2 * image).max(axis=(1, 2, 3)) + shift,
            "pred_score": np.zeros(len(image)),
        }


@pytest.fixture
def model(tmp_path):
    found = graph(
        "float[2,1,4,4] image",
        """
        anomaly_map = Mul(image, two)
        raw_score = ReduceMax<keepdims = 0>(anomaly_map, rest)
        """,
        "float[2] raw_score, float[2,1,4,4] anomaly_map",
        two=np.array(2.0),
        rest=np.array([1, 2, 3]),
    )
    onnx.save(found, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_figures_are_those_of_scores_by_hand(model):
    scores = np.concatenate([(2 * call).max(axis=(1, 2, 3)) for call in CALLS]).astype(float)
    shifts = np.repeat(0.125 * np.arange(1, 6), 2)
    threshold = float(scores.max() + 0.01)
    judged = judge_compiled(Off, model, (CALLS, 3), threshold)
    assert judged.drift == pytest.approx(0.375, rel=1e-5)  # of the three calls of normal images
    assert judged.rms == pytest.approx(np.sqrt(np.mean(shifts**2)), rel=1e-5)
    assert judged.flips == np.count_nonzero(scores + shifts > threshold)
    spans = [np.ptp(2 * image) for call in CALLS for image in call]
    assert judged.maps == pytest.approx(3 * 0.625 / np.mean(spans), rel=1e-5)
    assert judge_compiled(Off, model, (CALLS, 3), None).flips == 0


BOUNDS = Bounds(drift=1.0, maps=0.1, spearman=0.999, threshold=0.0)
HELD = Judged(drift=1.0, rms=9.0, spearman=0.999, flips=0, maps=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drift": 1.01}, "drift of normal images"),
        ({"spearman": 0.9989}, "rank correlation 0.99890, limit 0.999"),
        ({"maps": 0.2}, "maps by 0.2 of their range, limit 0.1"),
        ({"flips": 2}, "2 decisions flipped"),
        ({"drift": np.nan}, "drift of normal images"),
        ({"spearman": np.nan}, "rank correlation nan, limit 0.999"),
        ({"maps": np.nan}, "maps by nan of their range, limit 0.1"),
    ],
)
def test_what_is_beyond_its_bound_is_named(change, words):
    assert HELD.beyond(BOUNDS) == ()
    assert HELD.holds(BOUNDS)
    judged = replace(HELD, **change)
    assert judged.beyond(BOUNDS) == (words,)
    assert not judged.holds(BOUNDS)
