"""Engines built ahead of time: what lies in the artifact, and what is claimed of it."""

import json

import pytest

from vadexport.artifact import read_manifest
from vadexport.targets import Target

tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.slow

ENGINES = ("tensorrt-rtx:fp32", "tensorrt-rtx:fp16@sm86+sm89", "tensorrt-rtx:int8")


def report_of(folder):
    return json.loads((folder / "report" / "build.json").read_text(encoding="utf-8"))


def rungs_of(manifest):
    return [rung["rung"] for rung in manifest.parity]


@pytest.mark.parametrize("target", ENGINES)
class TestEngine:
    def test_lies_beside_its_graph_and_settings(self, engine, target):
        files = {path.name for path in engine(target).iterdir()}
        model = {"model.engine", "model.onnx", "settings.json"}
        assert files == {*model, "manifest.json", "report"}
        manifest = read_manifest(engine(target))
        assert set(manifest.files) == model
        assert manifest.target == Target.parse(target)
        assert manifest.tools["tensorrt-rtx"] == tensorrt_rtx.__version__

    def test_was_proven_on_the_graph_and_says_so(self, engine, target):
        assert read_manifest(engine(target)).proven_on == "graph"
        assert report_of(engine(target))["proven_on"] == "graph"

    def test_was_read_back(self, engine, target):
        manifest, report = read_manifest(engine(target)), report_of(engine(target))["compiled"]
        (image,) = report["inputs"]
        assert image == {"name": "image", "dtype": "uint8", "shape": [1, 96, 96, 1]}
        outputs = {each["name"]: each for each in report["outputs"]}
        assert tuple(outputs) == manifest.outputs
        assert outputs["raw_score"] == {"name": "raw_score", "dtype": "float32", "shape": [1]}
        assert outputs["anomaly_map"]["shape"] == [1, 1, 96, 96]
        assert report["engine_bytes"] == manifest.files["model.engine"].size
        assert report["library"] == f"TensorRT-RTX {tensorrt_rtx.__version__}"
        assert report["build_seconds"] >= 0
        generations = Target.parse(target).device
        assert report["for"] == (generations or "GPUs from Ampere on")


def test_a_precision_shows_in_manifest_and_layers(engine):
    fp32, fp16, int8 = (read_manifest(engine(target)).precision for target in ENGINES)
    assert fp32 == {"network": "fp32", "score head": "fp32"}
    assert fp16["network"].startswith("fp16, ")
    assert int8["network"] == "int8"
    assert fp16["score head"] == int8["score head"] == "fp32"
    layers = [report_of(engine(target))["compiled"]["layers"] for target in ENGINES]
    assert "convolution float16" not in layers[0]
    assert layers[1]["convolution float16"] > 10
    assert layers[2]["quantize int8"] > 10
    assert not any("float16" in kind or "int8" in kind for kind in layers[0])


def test_a_lower_precision_has_a_rung_of_its_own(engine):
    fp32, fp16, int8 = (rungs_of(read_manifest(engine(target))) for target in ENGINES)
    assert fp32 == ["traced", "simplified", "rewritten", "prepared"]
    assert fp16 == ["traced", "simplified", "rewritten", "half", "prepared"]
    assert int8 == ["traced", "simplified", "rewritten", "quantised", "prepared"]
    for target in ENGINES:
        *_, shared, prepared = read_manifest(engine(target)).parity
        assert prepared["drift_max"] == pytest.approx(shared["drift_max"], abs=1e-4)


def test_the_output_claims_no_run_of_an_engine(built):
    line = next(each for each in built.out.splitlines() if each.startswith("not run here: "))
    for target in ENGINES:
        assert target in line
        assert f"prepared {target}" in built.out
        assert f"compiled {target}" not in built.out
    assert "no NVIDIA GPU" in line
    assert "Parity was proven on the ONNX graphs behind them" in line
    assert "no speed measured" in line
    assert "compiled openvino:fp32" in built.out


def test_onnx_runtime_on_cuda_is_built_likewise(built, engine):
    folder = engine("onnxruntime:fp16@cuda")
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "model.onnx", "report"}
    manifest = read_manifest(folder)
    assert manifest.proven_on == "graph"
    assert rungs_of(manifest)[-2:] == ["half", "prepared"]
    assert "onnxruntime:fp16@cuda (" in built.out


def test_what_runs_here_was_proven_itself(engine):
    manifest = read_manifest(engine("openvino:fp32"))
    assert manifest.proven_on == "artifact"
    assert rungs_of(manifest)[-1] == "compiled"


def test_the_same_build_gives_the_same_bytes(command, checkpoint, images, engine, tmp_path):
    words = ("--target", "tensorrt-rtx:int8", "--target", "tensorrt-rtx:fp16@sm89+sm86")
    again = command(
        *("build", checkpoint, "-o", tmp_path / "a", *words),
        *("--calibration", images / "good", "--threads", "1"),
    )
    assert again.status in (0, 1), again.err
    for target in ENGINES[1:]:
        folder = engine(target)
        for name in ("model.engine", "model.onnx", "settings.json", "manifest.json"):
            other = tmp_path / "a" / folder.name / name
            assert other.read_bytes() == (folder / name).read_bytes(), (target, name)


def test_auto_is_resolved(command, checkpoint, tmp_path):
    ended = command(
        *("build", checkpoint, "-o", tmp_path / "a", "--target", "tensorrt-rtx:auto@sm86"),
        *("--threads", "1"),
    )
    assert ended.status == 0, ended.err
    manifest = read_manifest(tmp_path / "a")
    assert str(manifest.target) in ("tensorrt-rtx:fp16@sm86", "tensorrt-rtx:fp32@sm86")
    assert all(rung["held"] for rung in manifest.parity)
    assert "tensorrt-rtx:auto@sm86: not int8: INT8 needs normal images" in ended.out
    assert f"tensorrt-rtx:auto@sm86: {manifest.target.precision}\n" in ended.out
    assert report_of(tmp_path / "a")["compiled"]["for"] == "sm86"


def test_a_dynamic_batch_takes_its_profile_from_the_settings(
    vadexport, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vadexport.toml").write_text(
        '[build]\ntargets = ["tensorrt-rtx:fp32"]\nbatch = "dynamic"\noutput = "a"\n'
        "[build.tensorrt]\nbatches = [1, 4, 16]\nlevel = 1\nworkspace_mb = 512\n"
    )
    ended = vadexport(
        *("build", checkpoint, "--config", "vadexport.toml"),
        *("--tensorrt", "level=2", "--tensorrt", "tf32=true"),
    )
    assert ended.status == 0, ended.err
    settings = json.loads((tmp_path / "a" / "settings.json").read_text(encoding="utf-8"))
    assert settings["batches"] == [1, 4, 16]
    assert (settings["level"], settings["workspace_mb"], settings["tf32"]) == (2, 512, True)
    assert read_manifest(tmp_path / "a").image_input.batch is None
    (image,) = report_of(tmp_path / "a")["compiled"]["inputs"]
    assert image["shape"] == [-1, 96, 96, 1]
