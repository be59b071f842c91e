import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from sklearn.metrics import roc_auc_score

from vadexport.artifact import read_manifest, write_manifest
from vadexport.listening import Listener
from vadexport.verification.evidence import weigh_planted
from vadexport.verification.further_checks import planted_check
from vadexport.verification.limits import Limits
from vadexport.verification.records import ImageRecord
from vadexport.verifying import VerifyOptions, verify

pytestmark = pytest.mark.usefixtures("in_process")


def record(reference, score, anomalous, *, flipped=False):
    return ImageRecord(
        "x",
        anomalous=anomalous,
        reference_raw=reference,
        raw=score,
        reference_label=False,
        label=flipped,
        map_max=0.0,
        map_mean=0.0,
        map_range=1.0,
        consistent=True,
    )


@pytest.fixture
def records():
    """Ten images without and ten with a defect, which the artifact tells apart less well."""
    rng = np.random.default_rng(0)
    clean = [record(x, x + 0.1, anomalous=False) for x in rng.normal(size=10)]
    spoiled = [
        record(x, x - 2.0, anomalous=True, flipped=n < 3)
        for n, x in enumerate(rng.normal(2.0, size=10))
    ]
    return [*clean, *spoiled]


def test_figures(records):
    found = weigh_planted(records, 0.5)
    truth = [one.anomalous for one in records]
    assert found.auroc.artifact == pytest.approx(roc_auc_score(truth, [one.raw for one in records]))
    before = roc_auc_score(truth, [one.reference_raw for one in records])
    assert found.auroc.reference == pytest.approx(before)
    assert found.auroc.loss.value == pytest.approx(before - found.auroc.artifact)
    assert (found.images, found.flips, found.not_finite) == (10, 3, 0)
    assert found.drift_max == pytest.approx(4.0)


def test_only_a_loss_that_is_certain_falls_short(records):
    found = weigh_planted(records, 0.5)
    assert found.auroc.loss.least > 0.005
    assert not planted_check(found, Limits(min_auroc_delta=-0.005)).held
    assert planted_check(found, Limits(min_auroc_delta=-found.auroc.loss.least - 1e-6)).held
    assert planted_check(found, Limits()).held


def test_decisions_that_differ_for_certain_fall_short(records):
    found = weigh_planted(records, 0.5)
    assert found.flips == 3
    assert planted_check(found, Limits(max_flips=0.07)).held  # 3 of 10 may come from 6.7%
    assert not planted_check(found, Limits(max_flips=0.06)).held


def test_scores_that_are_not_finite_fall_short(records):
    spoiled = [*records[:-1], replace(records[-1], raw=float("nan"))]
    found = weigh_planted(spoiled, 0.5)
    assert found.not_finite == 1
    assert not planted_check(found, Limits()).held
    assert weigh_planted([replace(one, raw=float("nan")) for one in records], 0.5) is None
    assert not planted_check(None, Limits()).held


@pytest.mark.parametrize("defects", [1, 2])
def test_one_image_is_not_enough_to_fall_short(defects):
    clean = [record(float(n), float(n), anomalous=False) for n in range(defects)]
    spoiled = [record(9.0 + n, -1.0 - n, anomalous=True) for n in range(defects)]
    found = weigh_planted([*clean, *spoiled], 0.5)
    assert (found.auroc.reference, found.auroc.artifact) == (1.0, 0.0)
    check = planted_check(found, Limits.of_precision("fp32"))
    assert check.held == (defects == 1)
    if defects == 1:
        assert check.line == (
            "AUROC on 1 planted defect 0.0000, reference 1.0000 (of one image nothing is certain, "
            "limit -5e-05), 0 of their decisions flipped (at best 0.0%, limit 0.0%)"
        )


def test_a_tie_of_float32_is_no_flip(records):
    tie = record(1.0, 1.0 + 1e-6, anomalous=True, flipped=True)
    found = weigh_planted([*records[:10], *(9 * [record(2.0, 2.0, anomalous=True)]), tie], 0.5)
    assert (found.flips, found.ties) == (1, 1)
    check = planted_check(found, Limits(max_flips=0.0, rounding=1e-3))
    assert check.held
    assert "1 of their decisions flipped, 1 by rounding (at best 0.0%" in check.line
    assert not planted_check(found, Limits(max_flips=0.0)).held


@pytest.fixture(scope="module")
def unlabelled(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabelled")
    for number, path in enumerate(sorted((images / "good").iterdir())):
        shutil.copy(path, folder / f"{number}.png")
    return folder


def run(artifact, checkpoint, images, report):
    options = VerifyOptions(artifact, checkpoint, str(images), rounds=0, report=report)
    (found,) = verify(options, Listener()).verifications
    return found


def test_images_without_labels_get_defects(artifact, checkpoint, unlabelled, tmp_path):
    found = run(artifact, checkpoint, unlabelled, tmp_path)
    (check,) = [each for each in found.checks if each.name == "synthetic"]
    assert check.held
    assert found.planted.images == len(list(unlabelled.iterdir()))
    assert found.planted.auroc.reference > 0.8  # the detector notices what was planted
    assert json.loads((tmp_path / "parity.json").read_text())["planted"]["images"] == 12
    assert "AUROC on planted defects" in (tmp_path / "index.html").read_text()


def test_images_with_labels_of_both_kinds_get_none(artifact, checkpoint, images, tmp_path):
    found = run(artifact, checkpoint, images, tmp_path)
    assert found.planted is None
    assert "synthetic" not in {check.name for check in found.checks}


def test_scores_clipped_to_those_of_normal_images(artifact, checkpoint, unlabelled, tmp_path):
    # What INT8 may do whose ranges know normal images alone: those hardly show it.
    limit = np.array([run(artifact, checkpoint, unlabelled, tmp_path / "r").threshold], np.float32)
    folder = tmp_path / "clipped"
    shutil.copytree(artifact, folder)
    model = onnx.load(folder / "model.onnx")
    nodes = list(model.graph.node)
    place = next(n for n, node in enumerate(nodes) if "raw_score" in node.output)
    nodes[place].output[:] = [
        "unclipped" if name == "raw_score" else name for name in nodes[place].output
    ]
    nodes.insert(place + 1, helper.make_node("Min", ["unclipped", "limit"], ["raw_score"]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(limit, "limit"))
    onnx.save(model, folder / "model.onnx")
    write_manifest(folder, read_manifest(folder))
    found = run(folder, checkpoint, unlabelled, tmp_path / "report")
    (check,) = [each for each in found.checks if each.name == "synthetic"]
    assert not check.held
    assert found.planted.flips > 6
    assert found.figures.flips <= 1
