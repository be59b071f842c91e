"""A large memory bank is searched in INT8, or few directions, where distances keep to a limit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.passes.search_graphs import Search, run
from vadexport import runtime
from vadexport.building import BuildOptions, bank_search, build, mixing
from vadexport.building.approximating import Rewrites
from vadexport.building.bank_search import BankSearch
from vadexport.calibration.bank_search import large_searches, plan_searches
from vadexport.contract import ImageInput
from vadexport.detectors import padim
from vadexport.detectors.checkpoint import save_detector
from vadexport.detectors.patchcore import PatchCoreConfig, fit
from vadexport.errors import BackendError
from vadexport.images import decode
from vadexport.images.colouring import save_png
from vadexport.listening import Listener
from vadexport.passes import BEFORE_INT8, DEFAULT_PASSES, FLOAT_SEARCH, apply_passes
from vadexport.passes.search_plan import STEPS, SearchPlan
from vadexport.targets import Target
from vadexport.verification.applied import AppliedPass

WORDS = "fp32, memory bank searched in int8, measured again in fp32"
FEW = "fp32, memory bank searched in few directions, measured again in all"
INPUT = ImageInput(96, 96, 1)


@pytest.fixture(scope="module")
def detector(crops):
    """PatchCore with a bank of 1,700 rows, of other pixels than those of the images."""
    mirrored = [np.ascontiguousarray(crop[:, ::-1]) for crop in crops]
    return fit(mirrored, PatchCoreConfig(coreset_ratio=0.99), INPUT).eval()


@pytest.fixture
def built(images, tmp_path):
    """Build a detector for some targets."""

    def go(detector, *targets, normal=None, **more):
        save_detector(detector, tmp_path / "d.safetensors")
        chosen = tuple(map(Target.parse, targets))
        folder = tmp_path / f"a{len(list(tmp_path.iterdir()))}"
        given = (tmp_path / "d.safetensors", folder, chosen, str(normal or images / "good"))
        return build(BuildOptions(*given, **more), Listener())

    return go


def manifest_of(target):
    return json.loads((target.folder / "manifest.json").read_text())


def searches_in_int8(target):
    """Whether the nodes of the rewrite stand in the compiled model."""
    name = "model.xml" if target.target.backend == "openvino" else "model.onnx"
    return b"/int8/candidates" in (target.folder / name).read_bytes()


def drifts(target, detector, images):
    """Of raw scores on normal and on scratched images, in drift units, with their signs."""
    loaded = runtime.load(target.folder)
    found = []
    for path in sorted(images.rglob("*.png")):
        with torch.inference_mode():
            expected = detector(torch.from_numpy(decode(path, 1))[None])
        score = loaded.predict(path).raw_score
        found.append((score - float(expected["raw_score"])) / loaded.manifest.drift_unit)
    return np.array(found)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_only_openvino_searches_in_int8(built, detector, images):
    assert detector.memory_bank.numel() >= 200_000
    result = built(detector, "openvino:int8", "onnxruntime:int8")
    ours, theirs = result.targets
    assert searches_in_int8(ours)
    assert not searches_in_int8(theirs)
    said = [manifest_of(each)["precision"] for each in (ours, theirs)]
    assert [each["network"] for each in said] == ["int8", "int8"]
    assert [each["score head"] for each in said] == [WORDS, "fp32"]
    assert all(rung.held for one in result.targets for rung in one.rungs)
    (note,) = [line for line in result.notes if "memory bank" in line]
    assert "found their nearest row" in note
    assert "limit 0.05" in note
    assert ours.passes.applied[-1] == AppliedPass("quantised-search", 1)
    names = [[one.name for one in each.passes.applied] for each in (ours, theirs)]
    assert ("search-tiles" in names[0], "search-tiles" in names[1]) == (False, True)
    plain = built(detector, "openvino:int8", no_pass=("quantised-search",)).targets[0]
    assert not searches_in_int8(plain)
    assert [one.name for one in plain.passes.applied] == names[1]
    in_float = drifts(plain, detector, images)
    in_int8 = drifts(ours, detector, images)
    assert np.abs(in_int8 - in_float).max() <= 0.05


@pytest.mark.parametrize(
    ("widths", "who"),
    [
        (((1536, 128),), ("openvino", "onnxruntime")),
        (((384, 128),), ("openvino", "onnxruntime")),
        (((152, 32),), ("openvino",)),
        ((None,), ("openvino",)),
        (((1536, 128), (152, 32)), ("openvino",)),
        (((1536, 128), None), ("openvino",)),
        ((), ("openvino",)),
    ],
)
def test_onnx_runtime_searches_so_where_every_bank_is_wide(widths, who):
    plan = SearchPlan(0.1, 128, 10.0, 1, 1, 1.0, 0.0)
    plans = {
        str(number): replace(plan, directions=None if shape is None else np.zeros(shape))
        for number, shape in enumerate(widths)
    }
    search = BankSearch(None, (), INPUT, Rewrites(), 1.0, Listener(), [], STEPS)
    search.__dict__["_planned"] = plans
    for text in ("openvino:int8", "onnxruntime:int8", "tensorrt:int8", "onnxruntime:fp16@cuda"):
        target = Target.parse(text)
        gains = bool(plans) and target.backend in who and not target.on_gpu
        assert search.forms(target) == ((True, False) if gains else (False,)), text
        gains = gains and "onnxruntime" in who  # in float32, where it takes so many products less
        in_float = replace(search, row_steps=None)
        in_float.__dict__["_planned"] = plans
        assert in_float.forms(target) == ((True, False) if gains else (False,)), text


@pytest.fixture(scope="module")
def flat_detector(crops):
    """Likewise, of features that vary in 30 directions alone."""
    mirrored = [np.ascontiguousarray(crop[:, ::-1]) for crop in crops]
    detector = fit(mirrored, PatchCoreConfig(coreset_ratio=0.99), INPUT).eval()
    bank = detector.memory_bank.clone()
    left, sizes, right = torch.linalg.svd(bank - bank.mean(0), full_matrices=False)
    sizes[30:] = 0
    detector.memory_bank = (left * sizes) @ right + bank.mean(0)
    return detector


@pytest.fixture
def normal(crops, tmp_path):
    """More normal images than check a build."""
    (tmp_path / "normal").mkdir()
    for number, crop in enumerate([*crops, *(crop[::-1] for crop in crops)]):
        save_png(np.ascontiguousarray(crop), tmp_path / "normal" / f"{number}.png")
    return tmp_path / "normal"


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_float32_targets_look_in_few_directions(built, flat_detector, normal, images, monkeypatch):
    monkeypatch.setattr(bank_search, "_LEAST_FEWER", 50)
    # This bank is not its detector's: distances to it vary more than those that set the limit.
    monkeypatch.setattr(bank_search, "_EXACT_SHARE", 1e-4)
    result = built(flat_detector, "openvino:fp32", "onnxruntime:fp32", normal=normal)
    (note,) = [line for line in result.notes if "memory bank" in line]
    assert "in 32 of 152 directions" in note
    assert "limit 0.0001" in note
    for one in result.targets:
        manifest = manifest_of(one)
        assert manifest["precision"] == {"network": "fp32", "score head": FEW}
        assert manifest["calibration"] is not None
        assert [rung.name for rung in one.rungs][-2:] == ["quantised", "compiled"]
        assert all(rung.held for rung in one.rungs)
        assert one.passes.applied[-1] == AppliedPass("principal-search", 1)
        assert not searches_in_int8(one)
        assert np.abs(drifts(one, flat_detector, images)).max() <= 1e-3
    left_out = ("principal-search",)
    plain = built(flat_detector, "openvino:fp32", normal=normal, no_pass=left_out).targets[0]
    assert manifest_of(plain)["precision"] == {"network": "fp32", "score head": "fp32"}


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("failing", ["plan", "scores"])
def test_float32_targets_never_fail_by_it(built, flat_detector, normal, monkeypatch, failing):
    def plan(*arguments, **options):
        if failing == "plan":
            raise BackendError("out of memory")
        plans = plan_searches(*arguments, **options)  # all queries become alike
        none = {name: np.zeros_like(each.directions) for name, each in plans.items()}
        return {name: replace(each, directions=none[name]) for name, each in plans.items()}

    monkeypatch.setattr(bank_search, "_LEAST_FEWER", 50)
    monkeypatch.setattr(bank_search, "_EXACT_SHARE", 1e-4)
    monkeypatch.setattr(bank_search, "plan_searches", plan)
    result = built(flat_detector, "openvino:fp32", normal=normal)
    words = {"plan": "in all directions: out of memory", "scores": "scores do not hold in few"}
    assert words[failing] in " ".join(result.notes)
    assert manifest_of(result.targets[0])["precision"] == {"network": "fp32", "score head": "fp32"}
    assert all(rung.held for rung in result.targets[0].rungs)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_float32_targets_search_as_traced_where_little_is_gained(built, detector):
    result = built(detector, "openvino:fp32")
    assert manifest_of(result.targets[0])["precision"] == {"network": "fp32", "score head": "fp32"}
    assert [rung.name for rung in result.targets[0].rungs][-2:] == ["rewritten", "compiled"]


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_no_plan_leaves_the_search_in_float(built, detector, monkeypatch):
    monkeypatch.setattr(bank_search, "_SHARE", -1.0)  # a distance that only shrinks is none
    result = built(detector, "openvino:int8")
    assert not searches_in_int8(result.targets[0])
    assert manifest_of(result.targets[0])["precision"]["score head"] == "fp32"
    assert "searched in float32, for in INT8 distances would grow" in " ".join(result.notes)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_scores_that_do_not_hold_with_it_bring_the_float_search_back(built, detector, monkeypatch):
    def coarse(*arguments, **options):
        """All queries become 0, whose nearest row is that of the smallest norm."""
        plans = plan_searches(*arguments, **options)
        return {name: replace(plan, step=1e6, shortlist=1) for name, plan in plans.items()}

    monkeypatch.setattr(bank_search, "plan_searches", coarse)
    result = built(detector, "openvino:int8")
    assert not searches_in_int8(result.targets[0])
    assert manifest_of(result.targets[0])["precision"]["score head"] == "fp32"
    assert all(rung.held for rung in result.targets[0].rungs)
    assert "scores do not hold in INT8" in " ".join(result.notes)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_auto_ships_what_it_timed(built, detector, monkeypatch):
    monkeypatch.setattr(mixing, "_LEAST_SPEEDUP", 0.0)
    (target,) = built(detector, "openvino:auto").targets
    assert target.facts["search"]["chosen"] is not None
    assert searches_in_int8(target)
    assert manifest_of(target)["precision"]["score head"] == WORDS
    assert all(rung.held for rung in target.rungs)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_detector_without_a_bank_is_left_alone(built, crops):
    result = built(padim.fit(crops, padim.PaDiMConfig(), INPUT).eval(), "openvino:int8")
    assert manifest_of(result.targets[0])["precision"]["score head"].startswith("fp32")
    assert not [line for line in result.notes if "memory bank" in line]


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("rows", [40, 700])
def test_passes_before_and_behind_the_search_give_what_all_do(rows, index):
    search = Search(form="later", rows=rows, index=index)
    queries = search.queries()
    before, _ = apply_passes(search.model(), BEFORE_INT8)
    found = run(apply_passes(before, FLOAT_SEARCH)[0], queries)
    expected = run(apply_passes(search.model(), DEFAULT_PASSES)[0], queries)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_small_banks_and_several_neighbours_are_not_searched_in_int8():
    large = {"form": "later", "rows": 2000, "width": 100}
    assert large_searches(Search(**large).model())
    assert not large_searches(Search(**{**large, "rows": 1999}).model())
    assert not large_searches(Search(**large, nearest=3).model())
