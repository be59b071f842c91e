import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.exports import forget_exports
from vadexport import runtime
from vadexport.images import decode
from vadexport.targets import all_targets

TARGETS = [str(target) for target in all_targets() if not target.on_gpu and not target.device]


def test_fit_build_verify_predict(vadexport, images, tmp_path):
    detector, artifact = tmp_path / "d.safetensors", tmp_path / "artifact"
    fitted = vadexport("fit", "patchcore", images, "-o", detector, "--coreset", "0.05")
    assert fitted.status == 0
    assert "patchcore" in fitted.out
    built = vadexport("build", detector, "-o", artifact)
    assert built.status == 0, built.err
    assert (artifact / "model.xml").is_file()
    verified = vadexport(
        *("verify", artifact, "--reference", detector, "--images", images, "--rounds", "20")
    )
    assert verified.status == 0, verified.out
    for name in ("parity.json", "latency.json", "index.html"):
        assert (artifact / "report" / name).is_file()
    parity = json.loads((artifact / "report" / "parity.json").read_text())
    assert parity["figures"]["drift_max"] <= 1e-3
    assert parity["figures"]["flips"] == 0
    assert parity["figures"]["auroc"] == parity["figures"]["auroc_reference"]
    lines = tmp_path / "scores.jsonl"
    predicted = vadexport(
        *("predict", artifact, images, "--jsonl", lines, "--heatmaps", tmp_path / "heat")
    )
    assert predicted.status == 0
    assert len(lines.read_text().splitlines()) == 16
    assert len(list((tmp_path / "heat").rglob("*.png"))) == 16


@pytest.mark.parametrize("target", TARGETS)
def test_runtime_gives_the_scores_that_verify_judged(
    vadexport, artifacts, checkpoint, images, target
):
    folder = artifacts / target.replace(":", "-")
    words = ("--reference", checkpoint, "--images", images, "--rounds", "0", "--threads", "1")
    verified = vadexport("verify", folder, *words, "--json")
    judged = json.loads(verified.out)[0]["parity"]
    loaded = runtime.load(folder, threads=1)
    assert len(judged["images"]) == 16
    for one in judged["images"]:
        found = loaded.predict(images / one["name"])
        assert found.raw_score == pytest.approx(one["raw"], rel=1e-6)
        assert found.label == one["label"]


@pytest.mark.parametrize("target", [name for name in TARGETS if name.endswith("fp32")])
def test_runtime_gives_the_detectors_scores(artifacts, plain, images, target):
    loaded = runtime.load(artifacts / target.replace(":", "-"))
    for path in sorted(images.rglob("*.png")):
        image = decode(path, 1)
        with torch.inference_mode():
            expected = plain(torch.from_numpy(image)[None])
        found = loaded.predict(image)
        drift = abs(found.raw_score - float(expected["raw_score"])) / loaded.manifest.drift_unit
        assert drift <= 1e-3
        assert found.anomaly_map.shape == (96, 96)
        assert found.mask.dtype == np.bool_
        assert found.label == (found.raw_score > plain.thresholds.image)
        by_path = loaded.predict(path)
        assert (by_path.raw_score, by_path.label) == (found.raw_score, found.label)


@pytest.mark.parametrize("batch", ["3", "dynamic"])
def test_batches_give_the_scores_of_single_images(
    vadexport, artifacts, checkpoint, images, tmp_path, batch
):
    built = vadexport(
        *("build", checkpoint, "-o", tmp_path / "a", "--batch", batch),
        *("--target", "openvino:fp32", "--target", "onnxruntime:fp32"),
    )
    assert built.status == 0, built.err
    paths = sorted(images.rglob("*.png"))[:7]
    single = scores_of(artifacts / "onnxruntime-fp32", paths)
    for target in ("openvino-fp32", "onnxruntime-fp32"):
        batched = scores_of(tmp_path / "a" / target, paths)
        np.testing.assert_allclose(batched, single, rtol=1e-5)


def scores_of(folder, paths):
    return [one.raw_score for one in runtime.load(folder).predict_batch(paths)]


def test_the_same_build_gives_the_same_bytes(vadexport, checkpoint, images, tmp_path):
    for name in ("first", "second"):
        forget_exports()
        built = vadexport(
            *("build", checkpoint, "-o", tmp_path / name, "--calibration", images / "good"),
            *("--target", "openvino:fp32", "--target", "openvino:int8"),
            *("--target", "onnxruntime:int8"),
        )
        assert built.status in (0, 1), built.err  # nine crops are few for INT8
    files = [
        path.relative_to(tmp_path / "first")
        for path in (tmp_path / "first").rglob("*")
        if path.is_file() and "report" not in path.parts
    ]
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (
            tmp_path / "second" / file
        ).read_bytes(), file
        assert str(tmp_path).encode() not in (tmp_path / "first" / file).read_bytes()


def test_verify_catches_another_detector(vadexport, artifacts, images, tampered):
    # The same network, its memory bank moved by a hair: scores drift, verify must say so.
    other = tampered({"memory_bank": lambda bank: bank * 1.002})
    verified = vadexport(
        *("verify", artifacts / "openvino-fp32", "--reference", other),
        *("--images", images, "--rounds", "0", "--report", other.parent / "report"),
    )
    assert verified.status == 1
    assert "drift" in verified.out
    assert "another file" in verified.out + verified.err


def test_verify_catches_a_moved_threshold(vadexport, artifacts, checkpoint, images, tampered):
    scores = json.loads(
        vadexport(
            "verify",
            artifacts / "openvino-fp32",
            "--reference",
            checkpoint,
            "--images",
            images,
            "--rounds",
            "0",
            "--json",
        ).out
    )[0]["parity"]["images"]
    raw = sorted(one["reference_raw"] for one in scores)
    thresholds = {"image": (raw[0] + raw[1]) / 2, "pixel": 0, "minimum": 0, "maximum": 1}
    other = tampered(thresholds={**thresholds, "rule": "moved"})
    verified = vadexport(
        *("verify", artifacts / "openvino-fp32", "--reference", other),
        *("--images", images, "--rounds", "0", "--report", other.parent / "report"),
    )
    assert verified.status == 1
    assert "flipped" in verified.out


def test_a_speed_limit_that_cannot_hold_falls_short(vadexport, artifacts, checkpoint, images):
    verified = vadexport(
        *("verify", artifacts / "openvino-fp32", "--reference", checkpoint, "--images", images),
        *("--rounds", "20", "--min-speedup", "1000"),
    )
    assert verified.status == 1
    assert "speed-up" in verified.out


def test_verify_of_a_whole_build_reports_on_each(vadexport, artifacts, checkpoint, images):
    verified = vadexport(
        *("verify", artifacts, "--reference", checkpoint, "--images", images, "--rounds", "20")
    )
    for target in TARGETS:
        assert target in verified.out
        assert (artifacts / target.replace(":", "-") / "report" / "index.html").is_file()


def test_inspect_and_doctor(vadexport, artifacts, checkpoint):
    assert "memory bank" in vadexport("inspect", checkpoint).out
    inspected = vadexport("inspect", artifacts, "--json")
    assert [one["target"] for one in json.loads(inspected.out)] == sorted(TARGETS)
    doctor = json.loads(vadexport("doctor", "--json").out)
    assert set(doctor["targets"]) == set(map(str, all_targets()))
    assert all(doctor["targets"][target]["runs"] for target in TARGETS)


def test_json_of_a_detector_is_data(vadexport, checkpoint, plain, images, tmp_path):
    (found,) = json.loads(vadexport("inspect", checkpoint, "--json").out)
    assert found["source"] == str(checkpoint)
    assert found["size"] == checkpoint.stat().st_size
    assert found["parameters"] == sum(each.numel() for each in plain.parameters())
    assert found["input"]["height"] == found["input"]["width"] == 96
    assert found["preprocessing"][0]["size"] == [96, 96]
    assert found["map_size"] == [96, 96]
    assert found["thresholds"]["image"] == plain.thresholds.image
    assert found["fitted"]["memory_bank"] == list(plain.memory_bank.shape)
    assert found["targets"] == list(map(str, all_targets()))
    fitted = vadexport(
        *("fit", "patchcore", images / "good", "-o", tmp_path / "d.safetensors"),
        *("--coreset", "0.05", "--json"),
    )
    told = json.loads(fitted.out)
    (seen,) = json.loads(vadexport("inspect", tmp_path / "d.safetensors", "--json").out)
    assert told.pop("checkpoint") == str(tmp_path / "d.safetensors")
    assert told == {key: seen[key] for key in told}
    assert told["config"]["coreset_ratio"] == 0.05
    assert told["fitted_on"] == 12


def test_json_of_an_artifact_is_its_manifest(vadexport, artifacts):
    folder = artifacts / "openvino-fp32"
    (found,) = json.loads(vadexport("inspect", folder, "--json").out)
    assert found.pop("artifact") == str(folder)
    assert found == json.loads((folder / "manifest.json").read_text())
    assert type(found["drift_unit"]) is float
    assert found["files"]["model.bin"]["size"] == (folder / "model.bin").stat().st_size


@pytest.mark.parametrize(
    "command",
    [[], ["fit"], ["build"], ["verify"], ["evaluate"], ["predict"], ["inspect"], ["doctor"]],
)
def test_every_command_has_help_with_an_example(vadexport, command):
    shown = vadexport(*command, "--help")
    assert shown.status == 0
    assert "Example" in shown.out
    assert "vadexport" in shown.out


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from vadexport.cli.main import cli\n"
        "try: cli.main(['--help'], standalone_mode=False)\n"
        "finally: heavy = {'torch', 'onnx', 'numpy', 'openvino', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
