"""Commands on a machine with a GPU."""

import json
import sys

import pytest

from vadexport import runtime
from vadexport.cli.main import main

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture
def vadexport(monkeypatch, capfd):
    """Run a command line in this process; gives its exit status and output."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["vadexport", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capfd.readouterr().out

    return run


def test_doctor_knows_the_gpu(vadexport, engine_for):
    status, out = vadexport("doctor", "--json")
    assert status == 0
    found = json.loads(out)["targets"][engine_for("fp16").partition("@")[0]]
    assert found["runs"]
    assert found["device"] is None


def test_predict_and_runtime_agree(vadexport, built_for, engine_for, cells, tmp_path):
    folder, lines = built_for("patchcore", engine_for("fp16")).folder, tmp_path / "scores.jsonl"
    status, _ = vadexport("predict", folder, cells / "test", "--jsonl", lines)
    assert status == 0
    told = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert len(told) == 20
    detector = runtime.load(folder)
    first = min((cells / "test").rglob("*.png"))
    scores = {round(each["raw_score"], 3) for each in told}
    assert round(detector.predict(first).raw_score, 3) in scores


def test_latency_is_measured_and_no_proxy_is_used(
    vadexport, built_for, engine_for, detector_of, cells, tmp_path
):
    folder = built_for("patchcore", engine_for("fp32")).folder
    status, out = vadexport(
        *("verify", folder, "--reference", detector_of("patchcore"), "--images", cells / "test"),
        *("--proxy", "--rounds", "20", "--report", tmp_path),
    )
    assert status == 0, out
    assert "ONNX graph" not in out
    latency = json.loads((tmp_path / "latency.json").read_text(encoding="utf-8"))
    assert latency["proven_on"] == "artifact"
    assert latency["speedup"]["ratio"] > 0
