"""What `verify` must notice, with real artifacts."""

import hashlib
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.integration.refusals import assert_refused
from vadexport import __version__
from vadexport.artifact import read_manifest, write_manifest
from vadexport.contract import ImageInput
from vadexport.detectors.checkpoint import save_detector
from vadexport.detectors.patchcore import PatchCoreConfig, fit
from vadexport.fitting import FitOptions
from vadexport.fitting import fit as fit_files
from vadexport.images import digest_of_all, image_digest
from vadexport.listening import Listener


@pytest.fixture
def sabotaged(artifacts, tmp_path):
    """An ONNX Runtime artifact, one of whose outputs goes through a node that spoils it."""

    def sabotage(output, operator, *constants):
        folder = tmp_path / "sabotaged"
        shutil.copytree(artifacts / "onnxruntime-fp32", folder)
        model = onnx.load(folder / "model.onnx")
        for node in model.graph.node:
            for number, name in enumerate(node.output):
                if name == output:
                    node.output[number] = "untouched"
            for number, name in enumerate(node.input):
                if name == output:
                    node.input[number] = "untouched"
        names = [f"constant{number}" for number in range(len(constants))]
        for name, value in zip(names, constants, strict=True):
            model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        model.graph.node.append(helper.make_node(operator, ["untouched", *names], [output]))
        onnx.save(model, folder / "model.onnx")
        write_manifest(folder, read_manifest(folder))
        return folder

    return sabotage


@pytest.fixture
def plain_words(checkpoint, images):
    return ("--reference", checkpoint, "--images", images, "--rounds", "0")


@pytest.mark.parametrize(
    "spoiled",
    [
        ("anomaly_map", ("Mul", np.float32(1.05)), "difference of a map"),
        ("pred_score", ("Mul", np.float32(0.99)), "contradicts raw score and map"),
        ("pred_mask", ("Not",), "contradicts raw score and map"),
    ],
)
def test_an_output_that_is_not_the_references(vadexport, sabotaged, plain_words, spoiled):
    output, node, check = spoiled
    verified = vadexport("verify", sabotaged(output, *node), *plain_words)
    assert verified.status == 1, verified.err
    assert check in " ".join(verified.out.split())


def test_a_map_that_drifts_within_a_given_limit(vadexport, sabotaged, plain_words):
    moved = sabotaged("anomaly_map", "Add", np.float32(0.2))
    assert vadexport("verify", moved, *plain_words).status == 1
    verified = vadexport("verify", moved, *plain_words, "--max-map-drift", "0.05")
    assert "difference of a map" not in " ".join(verified.out.split())


def test_what_the_builds_search_found_is_told(vadexport, artifacts, plain_words, tmp_path):
    folder = tmp_path / "searched"
    shutil.copytree(artifacts / "onnxruntime-fp32", folder)
    told = folder / "report" / "build.json"
    build = json.loads(told.read_text())
    cost = {"drift": 0.25, "rms": 0.5, "spearman": 0.999, "flips": 0, "maps": 0.01}
    gain = {"value": 1.5, "low": 1, "high": 2}
    point = {"order": "cost", "judged": cost, "float_type": "fp32", "full_layers": []}
    search = {
        "groups": [{"layers": ["one", "two"], "cost": cost}, {"layers": ["three"], "cost": cost}],
        "points": [
            {**point, "float_layers": [], "holds": False, "speedup": None},
            {**point, "float_layers": ["one", "two"], "holds": True, "speedup": gain},
        ],
        "chosen": 1,
        "finished": True,
        "images": [4, 8],
        "layers": 3,
        "drift_unit": 0.5,
        "limits": {"drift": 0.5, "spearman": 0.999},
        "share": 0.5,
        "shipped": "int8",
    }
    words = "auto: INT8 but for 2 of 3 layers, 1.50 times as fast as float32 when built"
    for found, line in ((search, words), ({**search, "chosen": "all"}, None)):
        build["compiled"]["search"] = found
        told.write_text(json.dumps(build))
        verified = vadexport("verify", folder, *plain_words)
        assert verified.status == 0, verified.err
        parity = json.loads((told.parent / "parity.json").read_text())
        assert (parity["search"] and parity["search"]["words"]) == line
        for name in ("index.html", "summary.md"):
            assert (words in (told.parent / name).read_text()) == (line is not None)
        assert json.loads(told.read_text()) == build


def test_without_a_page_the_summary_is_named(
    vadexport, artifact, plain_words, tmp_path, monkeypatch
):
    words = ("verify", artifact, *plain_words, "--report", tmp_path)
    assert vadexport(*words).out.splitlines()[-1] == f"report: {tmp_path / 'index.html'}"
    monkeypatch.setitem(sys.modules, "jinja2", None)
    found = vadexport(*words)
    assert found.status == 0, found.err
    assert found.out.splitlines()[-1] == f"report: {tmp_path / 'summary.md'}"
    assert not (tmp_path / "index.html").exists()


def test_the_report_says_what_it_is_of(
    vadexport, artifact, plain_words, checkpoint, images, tmp_path
):
    words = ("verify", artifact, *plain_words, "--report", tmp_path)
    assert vadexport(*words).status == 0
    parity = json.loads((tmp_path / "parity.json").read_text())

    def sha256(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()

    reference = sha256(checkpoint)
    files = list(images.rglob("*.png"))
    assert len(files) == len(parity["images"])
    assert parity["sha256"] == {
        "manifest": sha256(artifact / "manifest.json"),
        "files": {"model.onnx": sha256(artifact / "model.onnx")},
        "source": reference,
        "reference": reference,
        "images": digest_of_all(map(image_digest, files)),
    }
    assert parity["size_mb"] == (artifact / "model.onnx").stat().st_size / 1e6
    assert parity["environment"]["vadexport"] == __version__


def test_a_reference_of_another_size(vadexport, artifacts, crops, images, tmp_path):
    half = [np.ascontiguousarray(crop[:64, :80]) for crop in crops]
    other = fit(half, PatchCoreConfig(), ImageInput(64, 80, 1))
    save_detector(other, tmp_path / "other.safetensors")
    result = vadexport(
        *("verify", artifacts / "openvino-fp32", "--reference", tmp_path / "other.safetensors"),
        *("--images", images, "--rounds", "0"),
    )
    assert_refused(result, 2, "was not built from other.safetensors", "96x96x1", "64x80x1")


def test_a_reference_with_another_map_size(vadexport, artifacts, crops, images, tmp_path):
    other = fit(crops, PatchCoreConfig(), ImageInput(96, 96, 1), size=(64, 64))
    save_detector(other, tmp_path / "other.safetensors")
    result = vadexport(
        *("verify", artifacts / "openvino-fp32", "--reference", tmp_path / "other.safetensors"),
        *("--images", images, "--rounds", "0"),
    )
    assert_refused(result, 2, "gives 96x96 maps", "gives 64x64 maps")


def test_two_artifacts_of_one_target(vadexport, artifacts, checkpoint, images, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(artifacts / "openvino-fp32", tmp_path / name)
    result = vadexport("verify", tmp_path, "--reference", checkpoint, "--images", images)
    assert_refused(result, 2, "two of the artifacts are openvino:fp32")


def test_artifacts_of_different_batches(vadexport, artifacts, checkpoint, images, tmp_path):
    for name, target in (("a", "openvino-fp32"), ("b", "onnxruntime-fp32")):
        shutil.copytree(artifacts / target, tmp_path / name)
    manifest = read_manifest(tmp_path / "b")
    eight = replace(manifest, image_input=replace(manifest.image_input, batch=8))
    write_manifest(tmp_path / "b", eight)
    result = vadexport("verify", tmp_path, "--reference", checkpoint, "--images", images)
    assert_refused(result, 2, "or different numbers of them")


def test_images_that_were_seen_before_are_counted(vadexport, images, tmp_path):
    checkpoint = tmp_path / "d.safetensors"
    fit_files(FitOptions("patchcore", str(images / "good"), checkpoint), Listener())
    built = vadexport(
        *("build", checkpoint, "-o", tmp_path / "a", "--target", "onnxruntime:int8"),
        *("--calibration", images / "good"),
    )
    assert built.status in (0, 1), built.err
    verified = vadexport(
        *("verify", tmp_path / "a", "--reference", checkpoint, "--images", images),
        *("--rounds", "0", "--json"),
    )
    (found,) = json.loads(verified.out)
    warnings = found["parity"]["warnings"]
    assert warnings[0].startswith("12 of the verified images also trained the detector")
    assert warnings[1].startswith("9 of the verified images also calibrated onnxruntime:int8")
    calibrated = {
        image_digest(images / "good" / f"{number}.png"): f"good/{number}.png"
        for number in range(12)
    }
    manifest = read_manifest(tmp_path / "a")
    names = sorted(calibrated[digest] for digest in manifest.calibration.image_digests)
    named = warnings[1].split("(")[1].split(", …")[0].split(", ")
    assert named == names[: len(named)]
    assert len(named) > 2
    assert warnings[1].endswith(", …; parity.json names all)")
    assert found["parity"]["seen_before"]["calibration"] == names
    assert len(found["parity"]["seen_before"]["training"]) == 12
    assert verified.err.count("of the verified images also") == 2


@pytest.mark.parametrize("limit", ["--min-speedup", "--max-latency-ms"])
def test_a_limit_on_speed_without_a_measurement(vadexport, artifacts, checkpoint, images, limit):
    words = ("--reference", checkpoint, "--images", images, "--rounds", "0", limit, "1")
    result = vadexport("verify", artifacts / "openvino-fp32", *words)
    assert_refused(result, 2, "needs a measurement", "more than 0 rounds")


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_place_of_the_report_is_found_before_any_work(
    vadexport, artifacts, checkpoint, images, tmp_path, below
):
    report = tmp_path / "report"
    report.write_text("in the way")
    result = vadexport(
        *("verify", artifacts, "--reference", checkpoint, "--images", images),
        *("--report", report / below),
    )
    assert_refused(result, 2, "cannot write the report", f"{report} is a file")
    assert len(result.err.splitlines()) == 1
    assert report.read_text() == "in the way"


def test_few_images_are_warned_of(vadexport, artifacts, plain_words, images):
    folder = artifacts / "onnxruntime-fp32"
    few = vadexport("verify", folder, *plain_words)
    assert "16 images are few: parity on them says little" in few.err
    one = vadexport("verify", folder, *plain_words, "--images", images / "good" / "0.png")
    assert "1 image is few" in one.err
    assert "one image alone has no rank" in " ".join(one.out.split())


def test_enough_images_are_not_warned_of(vadexport, artifacts, plain_words, images, tmp_path):
    for number in range(20):
        shutil.copyfile(images / "good" / f"{number % 12}.png", tmp_path / f"{number}.png")
    folder = artifacts / "onnxruntime-fp32"
    verified = vadexport("verify", folder, *plain_words, "--images", tmp_path)
    assert "are few" not in verified.err


def test_a_folder_that_takes_no_report_is_found_before_any_work(
    vadexport, artifact, checkpoint, images
):
    words = ("--reference", checkpoint, "--images", images, "--report", "/proc/report")
    refused = vadexport("verify", artifact, *words)
    assert_refused(refused, 2, "cannot write the report /proc/report")
    assert "parity" not in refused.err
