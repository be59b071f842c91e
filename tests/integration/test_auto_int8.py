"""`openvino:auto` and `onnxruntime:auto`, the whole way: only the stopwatch is made up."""

import json

import numpy as np
import pytest

from tests.integration.test_families import TINY
from vadexport.backends.inner import executed_layers
from vadexport.backends.openvino.bfloat16 import has_fast_bfloat16
from vadexport.building.mixing import Mixing
from vadexport.calibration.judging import Bounds
from vadexport.runtime import load
from vadexport.targets import Target
from vadexport.verification.statistics import Interval

TARGETS = ("openvino:auto", "onnxruntime:auto")


@pytest.fixture(autouse=True)
def memory(monkeypatch, tmp_path):
    """What searches keep goes here, not into the user's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vadexport" / "search"


@pytest.fixture
def timed(monkeypatch):
    """Let every form seem so many times as fast as the float graph, some faster."""
    asked = []

    def go(low, floor=1.0, faster=lambda _: False):
        def times(mixing, candidates):
            found = {}
            for number, one in enumerate(candidates):
                if one.path:
                    least = low + faster(one.point)
                    found[number] = Interval(least + 0.1, least, least + 0.2)
            asked.append((str(mixing.target), list(found)))
            return found, floor

        monkeypatch.setattr(Mixing, "_timed", times)
        return asked

    return go


@pytest.fixture
def built(vadexport, checkpoint, images, tmp_path):
    """Build targets, and read what the artifacts say of themselves."""

    def go(*targets, detector=None, options=()):
        words = [word for target in targets for word in ("--target", target)]
        normal = ("--calibration", images / "good")
        ended = vadexport(
            "build", detector or checkpoint, "-o", tmp_path / "a", *words, *normal, *options
        )
        found = {}
        for path in (tmp_path / "a").rglob("manifest.json"):
            manifest = json.loads(path.read_text())
            report = json.loads((path.parent / "report" / "build.json").read_text())
            found[manifest["target"]] = (manifest, report, path.parent)
        return ended, found

    return go


def quantisers(folder):
    """How many tensors are quantised in an artifact of ONNX Runtime."""
    import onnx

    nodes = onnx.load(folder / "model.onnx").graph.node
    return sum(node.op_type == "QuantizeLinear" for node in nodes)


@pytest.mark.slow
def test_int8_that_is_faster_is_kept_and_held_to_the_limits_of_auto(
    built, timed, memory, vadexport, checkpoint, images
):
    asked = timed(2.0)
    ended, found = built(*TARGETS)
    assert ended.status == 0, ended.err
    assert set(found) == set(TARGETS)
    assert len(list(memory.glob("*.json"))) == 2
    for target, (manifest, report, folder) in found.items():
        search = report["compiled"]["search"]
        assert search["shipped"] == "int8"
        assert search["chosen"] is not None
        assert manifest["precision"]["network"].startswith("int8")
        assert "fp32" in manifest["precision"]["score head"]
        assert manifest["calibration"] is not None
        point = search["points"][search["chosen"]]
        assert point["holds"]
        kept = len(point["float_layers"])
        words = f"int8, {search['layers'] - kept} of {search['layers']} layers, {kept} fp32"
        assert manifest["precision"]["network"] == (words if kept else "int8")
        assert [rung["rung"] for rung in manifest["parity"]][-2:] == ["quantised", "compiled"]
        assert all(rung["held"] for rung in manifest["parity"])
        if target.startswith("onnxruntime"):
            assert quantisers(folder) > 10
        verified = vadexport(
            *("verify", folder, "--reference", checkpoint, "--images", images),
            *("--rounds", "0", "--json"),
        )
        (parity,) = [each["parity"] for each in json.loads(verified.out)]
        assert parity["target"] == target
        lines = {check["name"]: check["line"] for check in parity["checks"]}
        assert lines["drift"].endswith("limit 0.5")
        assert parity["limits"]["min_spearman"] == 0.999
    assert {target for target, _ in asked} == set(TARGETS)
    for target, counts in asked:
        assert counts[0] == 0
        assert found[target][1]["compiled"]["search"]["chosen"] in counts


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.skipif(not has_fast_bfloat16(), reason="no form in bfloat16 is tried here")
def test_bfloat16_that_is_fastest_is_shipped_and_says_so(built, timed, crops):
    timed(1.5, faster=lambda point: point.float_type == "bf16")
    ended, found = built("openvino:auto")
    assert ended.status == 0, ended.err
    manifest, report, folder = found["openvino:auto"]
    assert manifest["precision"]["network"].startswith("bf16")
    assert manifest["precision"]["score head"] == "fp32"
    search = report["compiled"]["search"]
    point = search["points"][search["chosen"]]
    assert (search["shipped"], point["float_type"], point["holds"]) == ("bf16", "bf16", True)
    assert len(point["float_layers"]) == search["layers"]
    assert "openvino:auto: the network in bfloat16" in ended.out + ended.err
    assert manifest["parity"][-1]["rung"] == "compiled"
    # The judge's figures are those of the scores that the artifact gives.
    loaded = load(folder)
    layers = executed_layers(folder, Target.parse("openvino:auto"), 2)
    assert [one.precision for one in layers].count("bf16") > 5
    assert manifest["parity"][-1]["drift_max"] > 100 * manifest["parity"][-2]["drift_max"]
    assert all(np.isfinite(one.raw_score) for one in loaded.predict_batch(crops[:2]))


@pytest.mark.slow
@pytest.mark.parametrize(("low", "floor"), [(0.9, 1.0), (1.019, 1.0), (1.1, 1.09)])
def test_int8_that_is_not_faster_ships_float(built, timed, low, floor):
    timed(low, floor)
    ended, found = built("onnxruntime:auto")
    assert ended.status == 0, ended.err
    manifest, report, folder = found["onnxruntime:auto"]
    assert manifest["precision"] == {"network": "fp32", "score head": "fp32"}
    assert report["compiled"]["search"]["shipped"] == "fp32"
    assert quantisers(folder) == 0
    (line,) = (one for one in ended.out.splitlines() if one.startswith("onnxruntime:auto: float32"))
    assert line.startswith("onnxruntime:auto: float32, for INT8")
    assert f" would be {low + 0.1:.2f} times as fast" in line


@pytest.mark.slow
def test_no_time_to_search_ships_float(built, timed):
    asked = timed(2.0)
    ended, found = built("onnxruntime:auto", options=("--search-minutes", "0.000001"))
    assert ended.status == 0, ended.err
    manifest, report, folder = found["onnxruntime:auto"]
    assert not report["compiled"]["search"]["finished"]
    assert manifest["precision"]["network"] == "fp32"
    assert quantisers(folder) == 0
    assert asked == []
    assert "--search-minutes" in ended.out + ended.err


@pytest.mark.slow
def test_layers_that_cost_scores_stay_in_float(built, timed, monkeypatch):
    # Tighter bounds than auto's own, which this detector's INT8 does not hold as a whole.
    asked = timed(2.0)
    new = Bounds.__init__

    def tighter(self, drift, maps, spearman, threshold):
        new(self, drift=drift / 20, maps=maps, spearman=spearman, threshold=threshold)

    monkeypatch.setattr(Bounds, "__init__", tighter)
    ended, found = built("onnxruntime:auto")
    assert ended.status == 0, ended.err
    manifest, report, _ = found["onnxruntime:auto"]
    search = report["compiled"]["search"]
    if search["chosen"] is None:  # none but all in float would do
        assert manifest["precision"]["network"] == "fp32"
        assert search["finished"]
        assert asked == []
    else:
        assert search["chosen"] > 0
        assert " of " in manifest["precision"]["network"]
    assert not search["points"][0]["holds"]
    drifts = [point["judged"]["drift"] for point in search["points"]]
    assert min(drifts[1:]) < drifts[0]


@pytest.mark.slow
def test_another_family(built, timed, vadexport, images, tmp_path):
    timed(2.0)
    detector = tmp_path / "d.safetensors"
    fitted = vadexport("fit", "padim", images, "-o", detector, *TINY["padim"])
    assert fitted.status == 0, fitted.err
    ended, found = built(*TARGETS, detector=detector)
    assert ended.status in (0, 1), ended.err
    for manifest, report, _ in found.values():
        search = report["compiled"]["search"]
        network = manifest["precision"]["network"]
        assert search["shipped"] == network.split(",")[0]
