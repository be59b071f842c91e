"""Every family on the GPU at hand: engines run, score as the reference does, and are timed."""

import pytest

from vadexport.artifact import read_manifest
from vadexport.detectors.families import FAMILIES
from vadexport.sources import SourceSpec, reference_opener

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def assert_proven(built, result, gpu, precision):
    """Figures and latency are of the artifact, on the GPU, and hold as far as its precision can."""
    manifest = read_manifest(built.folder)
    assert manifest.proven_on == built.built.proven_on == "artifact"
    assert [rung["rung"] for rung in manifest.parity][-2:] == ["prepared", "compiled"]
    assert result.parity["proven_on"] == result.latency["proven_on"] == "artifact"
    checks = {check.name: check for check in result.found.checks}
    assert checks["finite"].held
    assert checks["outputs"].held
    if precision != "int8":  # of so few steps and images it may fall short
        assert result.found.held, [check.line for check in result.found.checks if not check.held]
    name = gpu.state().name
    latency = result.found.latency
    assert latency.reference.execution.device == name
    assert latency.artifact.execution.device.startswith(name)
    assert len(latency.artifact.samples_ms) == 20
    assert 0 < latency.artifact.median_ms < 10_000
    assert result.parity["environment"]["gpu"]["name"] == name


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine(built_for, verified, engine_for, gpu, family, precision):
    built = built_for(family, engine_for(precision))
    assert_proven(built, verified(family, built.folder), gpu, precision)


@pytest.mark.usefixtures("_onnxruntime_on_cuda")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_runtime_on_cuda(built_for, verified, gpu, family, precision):
    built = built_for(family, f"onnxruntime:{precision}@cuda")
    assert_proven(built, verified(family, built.folder), gpu, precision)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_scores_there_as_on_the_processor(detector_of, unseen, gpu, family):
    spec = SourceSpec.of(detector_of(family))
    there = reference_opener(spec, 4, on_gpu=True)()
    here = reference_opener(spec, 4)()
    assert there.execution.device == gpu.state().name
    assert here.execution.device != gpu.state().name
    for image in unseen[:4]:
        expected = here.infer(image[None])["raw_score"]
        assert there.infer(image[None])["raw_score"] == pytest.approx(expected, rel=1e-3)
