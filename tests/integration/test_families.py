"""Every family, the whole way: fit, build for every target, verify, predict with a heatmap."""

import json

import onnx
import pytest

from vadexport.detectors.families import FAMILIES
from vadexport.passes.base import tensors_read
from vadexport.targets import all_targets
from vadexport.tracing.anatomy import anatomy_in

#: Of PatchCore, every target; of other families one of each precision, by different backends.
TARGETS = [str(target) for target in all_targets() if not target.on_gpu and not target.device]
FEW = ["openvino:fp32", "onnxruntime:int8"]

#: Options small enough for a test.
TINY = {
    "patchcore": ["--coreset", "0.05"],
    "padim": ["--channels", "8"],
    "student_teacher": ["--levels", "1,2", "--steps", "20"],
    "efficient_ad": ["--width", "8", "--teacher-steps", "10", "--steps", "20"],
    "autoencoder": ["--width", "8", "--steps", "20"],
    "diffusion": ["--width", "8", "--steps", "20", "--denoise-steps", "2", "--size", "32"],
}


def test_none_is_left_out():
    assert set(TINY) == set(FAMILIES)


def nothing_idle(artifacts):
    """Batch norm is folded away, and each node and weight of the graphs is read by something."""
    graph = onnx.load(artifacts / "onnxruntime-int8" / "model.onnx").graph
    read = {name for node in graph.node for name in tensors_read(node)}
    read |= {output.name for output in graph.output}
    assert [node.name for node in graph.node if read.isdisjoint(node.output)] == []
    assert [tensor.name for tensor in graph.initializer if tensor.name not in read] == []
    for path in (*artifacts.rglob("model.onnx"), *artifacts.rglob("model.xml")):
        parts = anatomy_in(path.parent)
        assert sum(sum(part.layers.values()) for part in parts) > 0
        assert not [name for part in parts for name in part.operators if "BatchNorm" in name]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_way(vadexport, images, tmp_path, family):
    detector, artifacts = tmp_path / "d.safetensors", tmp_path / "a"
    fitted = vadexport("fit", family, images, "-o", detector, *TINY[family])
    assert fitted.status == 0, fitted.err
    names = TARGETS if family == "patchcore" else FEW
    targets = [word for target in names for word in ("--target", target)]
    normal = images / "good"
    built = vadexport(
        *("build", detector, "-o", artifacts, *targets, "--calibration", normal),
        *("--search-minutes", "0.1"),  # other tests wait for what a search finds
    )
    assert built.status in (0, 1), built.err  # of so few steps and images INT8 may fall short
    nothing_idle(artifacts)
    verified = vadexport(
        *("verify", artifacts, "--reference", detector, "--images", images),
        *("--rounds", "0", "--json"),
    )
    assert verified.status in (0, 1), verified.err
    found = {each["parity"]["target"]: each["parity"] for each in json.loads(verified.out)}
    assert set(found) == set(names)
    for target, parity in found.items():
        checks = {check["name"]: check["held"] for check in parity["checks"]}
        assert checks["finite"], target
        assert checks["outputs"], target
        if target.endswith("fp32"):
            assert parity["held"], parity["checks"]
            assert parity["figures"]["drift_max"] <= 1e-3
            assert parity["figures"]["flips"] == 0
    for target in ("openvino-fp32", "onnxruntime-int8"):
        heat = tmp_path / f"heat-{target}"
        predicted = vadexport("predict", artifacts / target, images, "--heatmaps", heat)
        assert predicted.status == 0, predicted.err
        assert len(list(heat.rglob("*.heatmap.png"))) == 16
