import json

import numpy as np
import pytest

from vadexport.backends.base import Execution
from vadexport.reporting.evaluation_report import evaluation_json, evaluation_rows
from vadexport.verification.evaluation import CategoryEvaluation, Evaluation
from vadexport.verification.segmentation import PixelScores


def category(name, scores, *, masks):
    pixels = PixelScores() if masks else None
    if pixels is not None:
        pixels.add(np.array([[4, 3, 2, 1.0]]), np.array([[True, False, True, False]]))
    truth = [False, True] * (len(scores) // 2)
    return CategoryEvaluation.of(name, scores, truth, pixels)


def evaluation(*categories):
    execution = Execution("PyTorch 2.13", "float32", "a processor", 1)
    return Evaluation("d.safetensors", "source", None, "0f", execution, "mvtec", categories)


PERFECT = category("bottle", [1, 3, 2, 4], masks=True)
REVERSED = category("cable", [4, 2, 3, 1], masks=True)
PLAIN = category("grid", [1, 1], masks=False)


def test_a_row_a_category_and_their_mean():
    # Pixels: 4 and 2 against 3 and 1. Overlap 1/2 at once, the other beyond the limit.
    assert evaluation_rows(evaluation(PERFECT, REVERSED)) == [
        ("category", "images", "image AUROC", "F1-max", "pixel AUROC", "AUPRO"),
        ("bottle", "4", "1.0000", "1.0000", "0.7500", "0.5000"),
        ("cable", "4", "0.0000", "0.6667", "0.7500", "0.5000"),
        ("mean", "", "0.5000", "0.8333", "0.7500", "0.5000"),
    ]


def test_one_category_needs_no_mean():
    assert [row[0] for row in evaluation_rows(evaluation(PERFECT))] == ["category", "bottle"]


def test_there_is_no_mean_of_what_one_category_lacks():
    _, _, plain, mean = evaluation_rows(evaluation(PERFECT, PLAIN))
    assert plain == ("grid", "2", "0.5000", "0.6667", "–", "–")
    assert mean == ("mean", "", "0.7500", "0.8333", "–", "–")


def test_json_holds_all_figures():
    report = json.loads(json.dumps(evaluation_json(evaluation(PERFECT, PLAIN)), allow_nan=False))
    bottle, grid = report["categories"]
    assert report["schema_version"] == 1
    assert report["aupro_fpr_limit"] == 0.3
    assert report["execution"]["precision"] == "float32"
    assert report["mean"] == {
        "image_auroc": 0.75,
        "f1_max": pytest.approx(5 / 6),
        "pixel_auroc": None,
        "aupro": None,
    }
    assert bottle == {
        "category": "bottle",
        "images": 4,
        "anomalous_images": 2,
        "regions": 2,
        "image_auroc": 1.0,
        "f1_max": 1.0,
        "pixel_auroc": 0.75,
        "aupro": pytest.approx(0.5),
        "f1_threshold": 2.5,
        "precision": 1.0,
        "recall": 1.0,
    }
    assert grid["regions"] is grid["pixel_auroc"] is grid["aupro"] is None
