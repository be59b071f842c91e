"""How the runner calls an engine: graphs, batches, memory, and engines that are for others."""

import shutil

import numpy as np
import pytest

from vadexport.artifact import read_manifest
from vadexport.backends.child import Child
from vadexport.backends.registry import get_backend
from vadexport.backends.tensorrt import rtx
from vadexport.errors import BackendError
from vadexport.targets import COMPUTE_CAPABILITIES, Target
from vadexport.verification.limits import Limits

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def assert_alike(found, expected, folder):
    """Scores and maps within the limits of the artifact's precision."""
    manifest = read_manifest(folder)
    limits = Limits.of_precision(manifest.target.precision)
    moved = np.abs(found["raw_score"] - expected["raw_score"]).max()
    assert moved <= limits.max_drift * manifest.drift_unit
    extent = np.ptp(expected["anomaly_map"], axis=(1, 2, 3)).mean()
    apart = np.abs(found["anomaly_map"] - expected["anomaly_map"]).max()
    assert apart <= limits.max_map_drift * extent


@pytest.fixture
def one_by_one(built_for, runner_of, engine_for, unseen):
    """Outputs of an engine of batch 1, whose calls are CUDA graphs."""

    def run(precision):
        runner = runner_of(built_for("patchcore", engine_for(precision)).folder)
        calls = [runner.infer(image[None]) for image in unseen]
        return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}

    return run


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
class TestBatches:
    def test_a_dynamic_one_scores_as_graphs_of_one_image(
        self, built_for, runner_of, engine_for, one_by_one, unseen, precision
    ):
        folder = built_for("patchcore", engine_for(precision), batch=None).folder
        assert_alike(runner_of(folder).infer(unseen), one_by_one(precision), folder)

    def test_more_images_than_the_largest_go_in_several_calls(
        self, built_for, runner_of, engine_for, one_by_one, unseen, precision
    ):
        target, batches = engine_for(precision), (1, 2, 3)
        folder = built_for("patchcore", target, batch=None, batches=batches).folder
        assert len(unseen) % 3  # the last call is not full
        found = runner_of(folder).infer(unseen)
        assert all(len(each) == len(unseen) for each in found.values())
        assert_alike(found, one_by_one(precision), folder)

    def test_fewer_than_the_smallest_are_filled_up(
        self, built_for, runner_of, engine_for, one_by_one, unseen, precision
    ):
        target, batches = engine_for(precision), (4, 4, 8)
        folder = built_for("patchcore", target, batch=None, batches=batches).folder
        found = runner_of(folder).infer(unseen[:2])
        assert len(found["raw_score"]) == 2
        first = {name: value[:2] for name, value in one_by_one(precision).items()}
        assert_alike(found, first, folder)

    def test_a_static_one_of_several(
        self, built_for, runner_of, engine_for, one_by_one, unseen, precision
    ):
        folder = built_for("patchcore", engine_for(precision), batch=4).folder
        assert_alike(runner_of(folder).infer(unseen), one_by_one(precision), folder)


def test_a_later_call_leaves_earlier_results_alone(built_for, runner_of, engine_for, unseen):
    runner = runner_of(built_for("patchcore", engine_for("fp32")).folder)
    first = runner.infer(unseen[:1])
    kept = {name: value.copy() for name, value in first.items()}
    runner.infer(255 - unseen[:1])
    again = runner.infer(unseen[:1])
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)
        np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize("family", ["patchcore", "padim", "efficient_ad"])
def test_float16_scores_as_its_emulation(
    built_for, runner_of, engine_for, emulated, unseen, family
):
    folder = built_for(family, engine_for("fp16")).folder
    runner = runner_of(folder)
    calls = [runner.infer(image[None]) for image in unseen]
    found = {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}
    assert_alike(found, emulated(folder, unseen), folder)


@pytest.mark.usefixtures("_onnxruntime_on_cuda")
def test_float16_of_onnx_runtime_scores_as_its_emulation(built_for, runner_of, emulated, unseen):
    folder = built_for("patchcore", "onnxruntime:fp16@cuda").folder
    runner = runner_of(folder)
    calls = [runner.infer(image[None]) for image in unseen]
    found = {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}
    assert_alike(found, emulated(folder, unseen), folder)


def test_an_engine_for_another_gpu_says_so(built_for, engine_for, gpu, tmp_path):
    here = gpu.compute_capability()
    other = next(each for each in COMPUTE_CAPABILITIES if each != here)
    target = Target("tensorrt-rtx", "fp32", other)
    graph = built_for("patchcore", engine_for("fp32")).folder / "model.onnx"
    with Child(str(target)) as child:
        child.run(rtx.compile_graph, graph, tmp_path, target)
    with pytest.raises(BackendError, match=f"@{here}|another GPU") as caught:
        rtx.open_runner(tmp_path, target, 1)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_a_truncated_engine_says_so(built_for, engine_for, tmp_path, kept):
    folder = tmp_path / "a"
    shutil.copytree(built_for("patchcore", engine_for("fp32")).folder, folder)
    plan = (folder / "model.engine").read_bytes()
    length = int(kept * len(plan)) if isinstance(kept, float) else kept
    (folder / "model.engine").write_bytes(plan[:length])
    target = Target.parse(engine_for("fp32"))
    with Child("truncated") as child, pytest.raises(BackendError, match=r"damaged|not valid"):
        child.open(get_backend(target.backend).open_runner, folder, target, 1)


def test_the_state_of_the_gpu(built_for, runner_of, engine_for, gpu, unseen):
    pytest.importorskip("pynvml")
    runner = runner_of(built_for("patchcore", engine_for("fp32")).folder)
    runner.infer(unseen[:1])
    state = runner.gpu_state()
    assert state.name == gpu.state().name
    assert runner.execution.device == f"{state.name} ({gpu.compute_capability()})"
    assert state.driver
    assert state.graphics_mhz > 0
    assert state.memory_mhz > 0
    assert 0 < state.temperature_c < 120
    assert isinstance(state.slowed_by, tuple)
