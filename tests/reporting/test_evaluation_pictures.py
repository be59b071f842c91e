import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from vadexport.backends.base import Execution
from vadexport.errors import InputError
from vadexport.reporting.evaluation_pictures import evaluation_pictures, write_evaluation_pictures
from vadexport.verification.evaluation import CategoryEvaluation, Evaluation
from vadexport.verification.segmentation import PixelScores

SVG = "{http://www.w3.org/2000/svg}"
PIXELS = {"pixel_roc.svg", "pro.svg"}
ALL = {"roc.svg", "precision_recall.svg", "scores.svg"} | PIXELS


def category(name, *, masks=True):
    rng = np.random.default_rng(len(name))
    truth = [False] * 30 + [True] * 20
    scores = rng.normal(np.array(truth) * 2.0)
    pixels = PixelScores() if masks else None
    if pixels is not None:
        mask = np.zeros((20, 30), bool)
        mask[3:9, 5:12] = mask[14:16, 20:28] = True
        pixels.add(rng.normal(mask * 1.5), mask)
    return CategoryEvaluation.of(name, list(scores), truth, pixels)


def evaluation(*categories):
    execution = Execution("PyTorch 2.13", "float32", "a processor", 1)
    return Evaluation("<d>.safetensors", "source", None, "0f", execution, "mvtec", categories)


# The elements of a class: a list for each panel.
def drawn(text, css):
    root = ET.fromstring(text)
    return [
        [one for one in panel.iter() if css in one.get("class", "").split()]
        for panel in root.findall(f"{SVG}g")
    ]


def places(element):
    return np.array([pair.split(",") for pair in element.get("points").split()], float)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_picture_has_a_panel_for_each_category(name):
    text = evaluation_pictures(evaluation(*map(category, ["a", "bb", "ccc", "<&>"])))[name]
    root = ET.fromstring(text)
    assert root.tag == f"{SVG}svg"
    words = ["".join(one.itertext()) for one in root.iter(f"{SVG}text")]
    assert words[0].startswith("<d>.safetensors: ")
    for one in ("a", "bb", "ccc", "<&>"):
        assert sum(word.startswith(f"{one}: ") for word in words) == 1
    transforms = [panel.get("transform") for panel in root.findall(f"{SVG}g")]
    assert len(set(transforms)) == 4
    # Colours are written out: not every viewer knows variables.
    assert "var(" not in text


def test_a_long_name_is_shortened():
    text = evaluation_pictures(evaluation(category("x" * 100)))["roc.svg"]
    assert "x" * 36 not in text
    assert "x" * 35 + "…: AUROC" in text


@pytest.mark.parametrize(
    ("name", "figure", "limit"),
    [("roc.svg", "image_auroc", 1), ("pixel_roc.svg", "pixel_auroc", 1), ("pro.svg", "aupro", 0.3)],
)
def test_the_area_that_is_drawn_is_the_figure(name, figure, limit):
    one = category("cells")
    text = evaluation_pictures(evaluation(one))[name]
    ((area,),) = drawn(text, "area")
    x, y = places(area).T
    shoelace = abs(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1))) / 2
    whole = (308 - 56) * (266 - 42)
    assert shoelace / whole == pytest.approx(getattr(one, figure), abs=0.01)
    (ticks,) = drawn(text, "tick")
    assert float([tick.text for tick in ticks if tick.get("text-anchor") == "middle"][-1]) == limit
    assert f"{getattr(one, figure):.4f}" in text


def test_the_overlap_is_drawn_up_to_the_limit_only():
    one = category("cells")
    ((curve,),) = drawn(evaluation_pictures(evaluation(one))["pro.svg"], "curve")
    highest = (266 - places(curve)[:, 1].min()) / (266 - 42)
    assert highest == pytest.approx(np.interp(0.3, one.pro.x, one.pro.y), abs=0.001)
    assert highest < 0.95


def test_the_ring_is_on_the_best_f1_score():
    one = category("cells")
    text = evaluation_pictures(evaluation(one))["precision_recall.svg"]
    ((ring,),) = drawn(text, "ring")
    ((curve,),) = drawn(text, "curve")
    points = places(curve)
    left, right = points[:, 0].min(), 308.0
    recall = (float(ring.get("cx")) - left) / (right - left)
    precision = (266.0 - float(ring.get("cy"))) / (266.0 - 42.0)
    assert 2 * precision * recall / (precision + recall) == pytest.approx(one.f1_max, abs=0.005)
    # No point of the curve lies beyond the line of the same F1 score.
    recalls = (points[:, 0] - left) / (right - left)
    precisions = (266.0 - points[:, 1]) / (266.0 - 42.0)
    f1 = 2 * precisions * recalls / np.maximum(precisions + recalls, 1e-9)
    assert f1.max() <= one.f1_max + 0.005


def test_every_image_is_in_the_histogram():
    one = category("cells")
    far = replace(one, scores=np.append(one.scores[:-1], 1e9))
    for shown in (one, far):
        text = evaluation_pictures(evaluation(shown))["scores.svg"]
        for kind, count in (("normal", 30), ("anomalous", 20)):
            titles = re.findall(rf"<title>(\d+) {kind} from", text)
            assert sum(map(int, titles)) == count
            assert f"{kind} ({count})" in text


def test_scores_that_are_all_the_same_are_drawn():
    same = CategoryEvaluation.of("flat", [2.0, 2.0], [True, False], None)
    for text in evaluation_pictures(evaluation(same)).values():
        assert text is None or "nan" not in text


def test_categories_without_masks_have_no_panel_of_pixels():
    pictures = evaluation_pictures(evaluation(category("a"), category("b", masks=False)))
    assert [len(drawn(pictures[name], "tick")) for name in ("roc.svg", "pro.svg")] == [2, 1]
    pictures = evaluation_pictures(evaluation(category("b", masks=False)))
    assert {name for name, text in pictures.items() if text is None} == PIXELS


def test_pictures_are_written_and_older_ones_removed(tmp_path):
    folder = tmp_path / "new" / "plots"
    written = write_evaluation_pictures(evaluation(category("a")), folder)
    assert {path.name for path in folder.iterdir()} == ALL == {path.name for path in written}
    before = (folder / "roc.svg").read_bytes()
    written = write_evaluation_pictures(evaluation(category("bb", masks=False)), folder)
    assert {path.name for path in folder.iterdir()} == ALL - PIXELS
    assert {path.name for path in written} == ALL - PIXELS
    assert (folder / "roc.svg").read_bytes() != before


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file"):
        write_evaluation_pictures(evaluation(category("a")), tmp_path / "file")
