import json
import shutil
from functools import partial
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from vadexport import evaluating
from vadexport.contract import ANOMALY_MAP, RAW_SCORE, ImageInput
from vadexport.errors import CheckError
from vadexport.evaluating import EvaluateOptions
from vadexport.images import decode
from vadexport.images.colouring import save_png
from vadexport.listening import Listener

METRICS = ("image_auroc", "f1_max", "pixel_auroc", "aupro")
IMAGE_PICTURES = {"roc.svg", "precision_recall.svg", "scores.svg"}
PIXEL_PICTURES = {"pixel_roc.svg", "pro.svg"}


def spoiled(crop, number):
    mask = np.zeros(crop.shape, np.uint8)
    mask[30 + number : 34 + number, 10:40] = 255
    mask[70:73, 50 + number : 53 + number] = 255
    changed = crop.astype(int) + np.where(mask > 0, 12 + 15 * number, 0)
    return changed.clip(0, 255).astype(np.uint8), mask


def write_category(root, crops):
    for folder in ("train/good", "test/good", "test/streak", "ground_truth/streak"):
        (root / folder).mkdir(parents=True)
    for number, crop in enumerate(crops[:5]):
        save_png(crop, root / "train" / "good" / f"{number}.png")
        save_png(np.roll(crop, 9, axis=1), root / "test" / "good" / f"{number}.png")
    for number, crop in enumerate(crops[5:9]):
        changed, mask = spoiled(crop, number)
        save_png(changed, root / "test" / "streak" / f"{number}.png")
        save_png(mask, root / "ground_truth" / "streak" / f"{number}_mask.png")
    return root


@pytest.fixture(scope="session")
def cells(crops, tmp_path_factory):
    return write_category(tmp_path_factory.mktemp("dataset") / "cells", crops)


@pytest.fixture
def category(cells, tmp_path):
    return shutil.copytree(cells, tmp_path / "cells")


@pytest.fixture
def evaluate(vadexport):
    # One thread does, and does not wait for others on a busy machine.
    return partial(vadexport, "evaluate", "--threads", "1")


@pytest.fixture
def evaluated(evaluate):

    def run(*words):
        result = evaluate(*words, "--json")
        assert result.status == 0, result.err
        return json.loads(result.out)

    return run


@pytest.fixture
def refused(evaluate, checkpoint, tmp_path):

    # Early: before the detector is loaded, let alone an image scored.
    def run(dataset, *words, detector=checkpoint, status=2, early=True):
        plots = tmp_path / "no plots"
        result = evaluate(detector, dataset, "--plots", plots)
        error = result.err.splitlines()[-1]
        assert result.status == status, result.err
        assert error.startswith("vadexport: error:")
        assert "Traceback" not in result.err
        for word in words:
            assert str(word) in error
        assert result.out == ""
        assert not plots.exists()
        assert ("  load" not in result.err) is early

    return run


def test_figures_are_scikit_learns_of_the_detectors_own_scores(evaluated, checkpoint, cells, plain):
    report = evaluated(checkpoint, cells)
    scores, truth, maps, masks = [], [], [], []
    for path in sorted((cells / "test").rglob("*.png")):
        with torch.inference_mode():
            outputs = plain(torch.from_numpy(decode(path, 1))[None])
        scores.append(float(outputs[RAW_SCORE]))
        truth.append("good" not in path.parts)
        maps.append(outputs[ANOMALY_MAP][0, 0].numpy())
        mask = cells / "ground_truth" / "streak" / f"{path.stem}_mask.png"
        masks.append(decode(mask, 1)[..., 0] > 0 if truth[-1] else np.zeros((96, 96), bool))
    (found,) = report["categories"]
    assert found["image_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert found["f1_max"] == pytest.approx(
        max(f1_score(truth, np.array(scores) >= score) for score in scores), abs=1e-12
    )
    called = np.array(scores) > found["f1_threshold"]
    assert f1_score(truth, called) == pytest.approx(found["f1_max"], abs=1e-12)
    pixel_truth, pixel_scores = np.ravel(masks), np.ravel(maps)
    pixel_auroc = roc_auc_score(pixel_truth, pixel_scores)
    # With another number of threads, float32 sums may differ in their last digit.
    assert found["pixel_auroc"] == pytest.approx(pixel_auroc, abs=1e-6)
    assert 0 < found["aupro"] < 1
    assert (found["images"], found["anomalous_images"], found["regions"]) == (9, 4, 8)
    assert report["schema_version"] == 1
    assert (report["kind"], report["target"]) == ("source", None)
    assert report["execution"]["precision"] == "float32"


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_an_artifact_gives_its_sources_figures(evaluated, checkpoint, artifacts, cells, target):
    source = evaluated(checkpoint, cells)
    artifact = evaluated(artifacts / f"{target}-fp32", cells)
    for metric in METRICS:
        assert artifact["mean"][metric] == pytest.approx(source["mean"][metric], abs=1e-5)
    assert (artifact["kind"], artifact["target"]) == ("artifact", f"{target}:fp32")
    assert artifact["source_sha256"] == source["source_sha256"]


def test_a_folder_of_categories_gives_a_table_with_its_mean(
    evaluate, evaluated, checkpoint, cells, tmp_path
):
    shutil.copytree(cells, tmp_path / "mvtec" / "a cells")
    other = shutil.copytree(cells, tmp_path / "mvtec" / "b cells")
    for number in range(2):
        (other / "test" / "streak" / f"{number}.png").unlink()
        (other / "ground_truth" / "streak" / f"{number}_mask.png").unlink()
    (tmp_path / "mvtec" / "notes").mkdir()
    (tmp_path / "mvtec" / "license.txt").write_text("CC")
    report = evaluated(checkpoint, tmp_path / "mvtec")
    assert [one["category"] for one in report["categories"]] == ["a cells", "b cells"]
    for metric in METRICS:
        each = [one[metric] for one in report["categories"]]
        assert report["mean"][metric] == pytest.approx(np.mean(each), abs=1e-12)
    table = evaluate(checkpoint, tmp_path / "mvtec").out.splitlines()
    assert [line.split()[0] for line in table] == ["category", "a", "b", "mean"]
    assert f"{report['mean']['aupro']:.4f}" in table[-1]


def test_masks_may_be_there_in_some_categories_only(evaluated, checkpoint, cells, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(cells, tmp_path / "mvtec" / name)
    shutil.rmtree(tmp_path / "mvtec" / "b" / "ground_truth")
    report = evaluated(checkpoint, tmp_path / "mvtec")
    assert report["categories"][0]["aupro"] is not None
    assert report["categories"][1]["aupro"] is report["mean"]["aupro"] is None
    assert report["mean"]["image_auroc"] is not None


def test_labelled_images_have_no_masks(evaluated, checkpoint, images):
    (found,) = evaluated(checkpoint, images)["categories"]
    assert (found["images"], found["anomalous_images"]) == (16, 4)
    assert found["pixel_auroc"] is found["aupro"] is found["regions"] is None
    assert found["image_auroc"] > 0.5


def test_a_picture_for_each_metric(evaluate, checkpoint, cells, images, tmp_path):
    plots = tmp_path / "plots"
    shown = evaluate(checkpoint, cells, "--plots", plots)
    assert shown.status == 0
    assert {path.name for path in plots.iterdir()} == IMAGE_PICTURES | PIXEL_PICTURES
    for path in plots.iterdir():
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert str(path) in shown.err
    # Pictures of pixels that an evaluation without masks left there would not be its own.
    assert evaluate(checkpoint, images, "--plots", plots).status == 0
    assert {path.name for path in plots.iterdir()} == IMAGE_PICTURES


def test_pictures_that_cannot_be_written_do_not_cost_the_figures(
    evaluate, checkpoint, images, tmp_path
):
    (tmp_path / "file").write_text("in the way")
    result = evaluate(checkpoint, images, "--plots", tmp_path / "file")
    assert result.status == 2
    assert "file" in result.err.splitlines()[-1]
    assert "image AUROC" in result.out


def test_help_has_an_example(vadexport):
    shown = vadexport("evaluate", "--help")
    assert shown.status == 0
    assert "Example" in shown.out
    assert "evaluate" in vadexport("--help").out


# --- bad input -------------------------------------------------------------------------------


def test_a_mask_of_another_size(category, refused):
    mask = category / "ground_truth" / "streak" / "2_mask.png"
    save_png(np.zeros((48, 96), np.uint8), mask)
    refused(category, mask, "48×96", "96×96")


def test_a_missing_mask(category, refused):
    (category / "ground_truth" / "streak" / "2_mask.png").unlink()
    refused(category, category / "test" / "streak" / "2.png", "no mask")


def test_a_mask_of_no_image(category, refused):
    (category / "test" / "streak" / "2.png").unlink()
    refused(category, category / "ground_truth" / "streak" / "2_mask.png", "no image")


def test_a_damaged_mask(category, refused):
    mask = category / "ground_truth" / "streak" / "2_mask.png"
    mask.write_bytes(mask.read_bytes()[:-40])
    refused(category, mask, "damaged", early=False)


def test_a_mask_that_marks_a_defect_in_a_normal_image(category, refused):
    mask = category / "ground_truth" / "good" / "1_mask.png"
    mask.parent.mkdir()
    shutil.copy(category / "ground_truth" / "streak" / "1_mask.png", mask)
    refused(category, mask, "normal", early=False)


def test_a_black_mask_is_warned_of(evaluate, category, checkpoint):
    mask = category / "ground_truth" / "streak" / "2_mask.png"
    save_png(np.zeros((96, 96), np.uint8), mask)
    result = evaluate(checkpoint, category, "--json")
    assert result.status == 0
    assert json.loads(result.out)["categories"][0]["regions"] == 6
    (warning,) = [line for line in result.err.splitlines() if line.startswith("warning")]
    assert str(mask) in warning
    assert "black" in warning


def test_a_category_without_good(category, refused):
    shutil.rmtree(category / "test" / "good")
    refused(category, category, "all 4 test images are anomalous", "good")
    shutil.rmtree(category / "train")
    refused(category, category, "all 4 test images are anomalous", "good")


def test_a_category_whose_test_images_are_all_normal(category, refused):
    shutil.rmtree(category / "test" / "streak")
    shutil.rmtree(category / "ground_truth")
    refused(category, category, "all 5 test images are normal")


def test_a_category_without_test(category, refused):
    shutil.rmtree(category / "test")
    refused(category, category, "no folder test")


def test_one_image(images, refused):
    refused(images / "good" / "1.png", "the only test image is normal")


def test_images_without_labels(images, refused):
    refused(images / "scratch", "no label", "good")


def test_images_of_another_size(category, refused):
    for path in (category / "test").rglob("*.png"):
        save_png(np.zeros((64, 80), np.uint8), path)
    shutil.rmtree(category / "ground_truth")
    refused(category, "64×80", "96×96")


def test_images_of_several_sizes(category, refused):
    save_png(np.zeros((64, 80), np.uint8), category / "test" / "good" / "1.png")
    refused(category, "1.png", "64×80")


def test_an_unreadable_image(evaluate, category, checkpoint, refused):
    broken = category / "test" / "streak" / "1.png"
    broken.write_bytes(b"")
    refused(category, broken, "--skip-unreadable")
    result = evaluate(checkpoint, category, "--json", "--skip-unreadable")
    assert result.status == 0, result.err
    assert str(broken) in result.err
    (found,) = json.loads(result.out)["categories"]
    assert (found["images"], found["anomalous_images"], found["regions"]) == (8, 3, 6)


def test_too_few_readable_images(evaluate, category, checkpoint):
    for path in (category / "test" / "streak").iterdir():
        path.write_bytes(b"")
    result = evaluate(checkpoint, category, "--skip-unreadable")
    assert result.status == 2
    assert "all 5 test images are normal" in result.err.splitlines()[-1]


def test_scores_that_are_not_finite(cells, refused, tampered):
    detector = tampered({"memory_bank": lambda bank: bank * 0 + 1e30})
    image = cells / "test" / "good" / "0.png"
    refused(cells, image, "finite", detector=detector, status=1, early=False)


@pytest.mark.parametrize("missing", ["detector", "dataset"])
def test_a_missing_path(refused, cells, checkpoint, tmp_path, missing):
    nowhere = tmp_path / "nowhere"
    refused(
        nowhere if missing == "dataset" else cells,
        nowhere,
        detector=nowhere if missing == "detector" else checkpoint,
    )


def test_several_artifacts_where_one_is_wanted(refused, cells, artifacts):
    refused(cells, "openvino-fp32", "several", detector=artifacts)


# --- parts, with a detector that is a formula -------------------------------------------------


def brightness(call):
    maps = call[:, ::2, ::2, 0].astype(np.float32)
    return {RAW_SCORE: maps.mean(axis=(1, 2)), ANOMALY_MAP: maps[:, None]}


def run_on(cells, infer, batch=1, listener=None):
    (category,) = evaluating._categories(str(cells))
    image_input = ImageInput(96, 96, 1, batch)
    options = EvaluateOptions(cells, str(cells))
    return evaluating._evaluate(category, infer, image_input, options, listener or Listener())


def test_a_smaller_map_is_resized_to_its_mask(cells):
    def whole(call):
        return {**brightness(call), ANOMALY_MAP: call[..., 0].astype(np.float32)[:, None]}

    small, large = run_on(cells, brightness), run_on(cells, whole)
    assert small.regions == large.regions == 8
    assert small.pixel_auroc == pytest.approx(large.pixel_auroc, abs=0.05)
    assert small.pixel_auroc != large.pixel_auroc


@pytest.mark.parametrize("batch", [4, None])
def test_the_batch_does_not_matter(cells, batch):
    calls = []

    def infer(call):
        calls.append(len(call))
        return brightness(call)

    found, single = run_on(cells, infer, batch), run_on(cells, brightness)
    assert calls == ([4, 4, 4] if batch else [1] * 9)
    np.testing.assert_array_equal(found.scores, single.scores)
    assert (found.pixel_auroc, found.aupro) == (single.pixel_auroc, single.aupro)


@pytest.mark.parametrize("output", [RAW_SCORE, ANOMALY_MAP])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_not_finite(cells, output, value):
    def infer(call):
        outputs = brightness(call)
        outputs[output].flat[-1] = value
        return outputs

    with pytest.raises(CheckError, match=r"0\.png.*finite"):
        run_on(cells, infer)


def test_images_are_read_one_at_a_time(cells, monkeypatch):
    events = []
    load = evaluating.load_images

    def loading(*arguments, **options):
        for pair in load(*arguments, **options):
            events.append("load")
            yield pair

    def infer(call):
        events.append("infer")
        return brightness(call)

    monkeypatch.setattr(evaluating, "load_images", loading)
    run_on(cells, infer)
    assert events == ["load", "infer"] * 9


def test_it_tells_how_far_it_is(cells):
    steps = []

    class Hearing(Listener):
        def step(self, name, done, total):
            steps.append((name, done, total))

    run_on(cells, brightness, listener=Hearing())
    assert steps == [("evaluate cells", number, 9) for number in range(1, 10)]
