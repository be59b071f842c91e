"""Where no GPU is at hand: what stands in for an artifact, and what is then not claimed."""

import json
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from vadexport.artifact import find_artifacts, open_artifact
from vadexport.backends import onnxruntime
from vadexport.backends.cuda import GpuState
from vadexport.building import BuildOptions, build
from vadexport.contract import ANOMALY_MAP, RAW_SCORE
from vadexport.errors import InputError, MissingDeviceError
from vadexport.images.listing import test_images as images_to_test
from vadexport.listening import Listener
from vadexport.sources import SourceSpec
from vadexport.targets import Target
from vadexport.verification.contest import Contest
from vadexport.verifying import VerifyOptions, verify
from vadexport.verifying.arena import REFERENCE, Arena, preprocessing_of

pytestmark = pytest.mark.slow

HERE, GPU, GPU_HALF = "onnxruntime:fp32", "onnxruntime:fp32@cuda", "onnxruntime:fp16@cuda"


@pytest.fixture(scope="module", autouse=True)
def _without_gpu():
    try:
        onnxruntime.check_device(Target.parse(GPU))
    except MissingDeviceError:
        return
    pytest.skip("ONNX Runtime has a GPU here")


@pytest.fixture(scope="module")
def folder(checkpoint, images, tmp_path_factory):
    """Artifacts for the processor and for a GPU that is not here."""
    path = tmp_path_factory.mktemp("arena") / "artifacts"
    targets = tuple(map(Target.parse, (HERE, GPU, GPU_HALF)))
    build(BuildOptions(checkpoint, path, targets, str(images / "good"), threads=1), Listener())
    return path


@pytest.fixture
def options(folder, checkpoint, images):
    return VerifyOptions(folder, checkpoint, str(images), rounds=3, threads=1, proxy=True)


@contextmanager
def arena_of(options, *targets):
    """An arena of those of the artifacts that are named."""
    artifacts = [open_artifact(folder) for folder in find_artifacts(options.artifact)]
    chosen = [one for one in artifacts if str(one.manifest.target) in targets]
    with ExitStack() as stack:
        files = images_to_test(options.images)
        spec = SourceSpec.of(options.reference)
        yield Arena.opened(stack, options, spec, chosen, files)


@pytest.fixture
def image(crops):
    return crops[0][None]


def test_what_runs_here_needs_no_proxy(options):
    with arena_of(replace(options, proxy=False), HERE) as arena:
        assert arena.proxied == {}
        assert list(arena.timed(options, Listener())) == [REFERENCE, HERE, preprocessing_of(HERE)]
        assert arena.contest.gpu_state(HERE) is None


def test_a_gpu_that_was_slowed_down_is_called_out(options, folder, tmp_path, monkeypatch):
    state = GpuState("a GPU", "580.1", 900, 5000, 91, ("power limit", "temperature (driver)"))
    monkeypatch.setattr(Contest, "gpu_state", lambda _self, _name: state)
    alone = replace(options, artifact=folder / "onnxruntime-fp32", report=tmp_path)
    (found,) = verify(alone, Listener()).verifications
    assert "the GPU was slowed down by its power limit, temperature (driver)" in found.warnings
    report = json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))
    assert report["environment"]["gpu"] == json.loads(json.dumps(state.to_json()))


@pytest.mark.parametrize("targets", [(GPU,), (HERE, GPU), (HERE, GPU, GPU_HALF)])
def test_no_proxy_stands_in_unasked(options, targets):
    with (
        pytest.raises(MissingDeviceError, match=rf"^({GPU}|{GPU_HALF}) cannot run here.*--proxy"),
        arena_of(replace(options, proxy=False), *targets),
    ):
        pytest.fail("it was opened")


def test_a_refusal_opens_nothing(options, monkeypatch):
    monkeypatch.setattr(Contest, "__init__", lambda *_: pytest.fail("a child was opened"))
    with (
        pytest.raises(MissingDeviceError),
        arena_of(replace(options, proxy=False), HERE, GPU),
    ):
        pytest.fail("it was opened")


def test_only_what_is_not_here_is_proxied(options, image):
    with arena_of(options, HERE, GPU, GPU_HALF) as arena:
        assert set(arena.artifacts) == {HERE, GPU, GPU_HALF}
        assert set(arena.proxied) == {GPU, GPU_HALF}
        assert all("cannot use NVIDIA GPUs" in reason for reason in arena.proxied.values())
        scores = {
            name: float(arena.contest.inference(name)(image)[RAW_SCORE][0])
            for name in (REFERENCE, HERE, GPU, GPU_HALF)
        }
        timed = arena.timed(options, Listener())
    assert scores[GPU] == scores[HERE]  # the same graph, on the same processor
    assert scores[GPU] == pytest.approx(scores[REFERENCE], rel=1e-4)
    assert scores[GPU_HALF] != scores[GPU]  # what float16 rounds was rounded
    assert scores[GPU_HALF] == pytest.approx(scores[GPU], rel=0.02)
    assert list(timed) == [REFERENCE, HERE, preprocessing_of(HERE)]
    assert len(timed[HERE].samples_ms) == 3


def test_proxies_alone_are_not_timed(options):
    with arena_of(options, GPU, GPU_HALF) as arena:
        assert arena.timed(options, Listener()) == {}


@pytest.mark.parametrize("limit", ["min_speedup", "max_latency_ms"])
def test_a_limit_on_speed(options, limit):
    limited = replace(options, limits={limit: 1e-3 if limit == "min_speedup" else 1e6})
    with (
        pytest.raises(InputError, match="a proxy shows neither"),
        arena_of(limited, GPU, GPU_HALF),
    ):
        pytest.fail("it was opened")
    # Of one among several the limit would go unchecked, and the status would say that it held.
    with (
        pytest.raises(InputError, match=f"cannot be held against {GPU}, for a proxy shows neither"),
        arena_of(limited, HERE, GPU),
    ):
        pytest.fail("it was opened")
    with arena_of(limited, HERE) as arena:
        assert arena.proxied == {}


def test_what_is_only_asked_for_is_measured_of_what_is_here(options):
    with arena_of(replace(options, streams=1), HERE, GPU) as arena:
        assert set(arena.proxied) == {GPU}


def test_exhibits_show_the_graphs_map(options):
    options = replace(options, rounds=0)
    (found,) = (one for one in verify(options, Listener()).verifications if one.target == GPU_HALF)
    exhibit = found.exhibits[0]
    assert exhibit.anomaly_map.dtype == np.float32
    with arena_of(options, GPU_HALF) as arena:
        again = arena.exhibit(GPU_HALF, exhibit.record, "again")
        infer = arena.contest.inference(GPU_HALF)
        np.testing.assert_array_equal(again.anomaly_map, exhibit.anomaly_map)
        np.testing.assert_array_equal(
            infer(again.image[None])[ANOMALY_MAP][0, 0], exhibit.anomaly_map
        )
    assert not np.array_equal(exhibit.anomaly_map, exhibit.reference_map)


def test_a_verification_says_what_was_proven(options):
    found = {one.target: one for one in verify(options, Listener()).verifications}
    assert {name: one.proven_on for name, one in found.items()} == {
        HERE: "artifact",
        GPU: "graph",
        GPU_HALF: "graph",
    }
    for name in (GPU, GPU_HALF):
        assert found[name].latency is None
        assert found[name].environment["latency_rounds"] == 0
        assert "gpu" not in found[name].environment
        assert (
            found[name].warnings[0].startswith("not the artifact was verified but the ONNX graph")
        )
    assert found[HERE].latency is not None
    assert not any("ONNX graph" in warning for warning in found[HERE].warnings)
