"""Passes of a build: what moves scores is undone alone, what is left out stays out."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from vadexport import runtime
from vadexport.building import BuildOptions, build, graphs
from vadexport.building.rewriting import Checked, rewrite
from vadexport.contract import RAW_SCORE
from vadexport.errors import InputError
from vadexport.images import decode
from vadexport.listening import Listener
from vadexport.passes import DEFAULT_PASSES
from vadexport.targets import Target
from vadexport.verification.applied import read_passes
from vadexport.verification.ladder import Rung
from vadexport.verification.limits import Check

TARGET = Target("onnxruntime", "fp32")


class Append:
    """A pass that puts a node of a kind behind the last one; `needs` is the kind it goes behind."""

    def __init__(self, kind, needs=None):
        self.name, self.kind, self.needs = kind.lower(), kind, needs

    def apply(self, model):
        last = model.graph.node[-1]
        if self.needs not in (None, last.op_type):
            return 0
        last.output[0] = f"before_{self.kind}"
        model.graph.node.append(helper.make_node(self.kind, [last.output[0]], ["y"]))
        return 1


def kinds(model):
    return [node.op_type for node in model.graph.node]


def checked(file, held, *, base_holds=True):
    """What was checked, where the graph before all passes holds or not."""
    rungs = [
        Rung("rewritten", None, (Check("drift", each, "too far"),))
        for each in (held and base_holds, held)
    ]
    return Checked(file, *rungs)


def identity():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", *map(list, [values[:1], values[1:]])
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize(
    ("passes", "left", "undone", "checks"),
    [
        (["Abs", "Ceil"], ["Abs", "Ceil"], [], 1),
        (["Abs", "Neg", "Ceil"], ["Abs", "Ceil"], ["neg"], 4),
        (["Neg", "Neg"], [], ["neg", "neg"], 3),
        ([("Ceil", "Abs")], [], [], 0),
    ],
)
def test_only_what_moves_scores_is_undone(tmp_path, passes, left, undone, checks):
    seen = []

    def check(name, model):
        seen.append(name)
        return checked(tmp_path / name, "Neg" not in kinds(model))

    wanted = [Append(*([each] if isinstance(each, str) else each)) for each in passes]
    made = rewrite(identity(), tmp_path / "simplified", wanted, check)
    assert kinds(made.model) == ["Identity", *left]
    assert [one.name for one in made.undone] == undone
    assert [one.undone for one in made.applied if one.undone] == ["too far"] * len(undone)
    assert (made.rung is not None) == bool(left)
    assert len(seen) == checks


def test_a_pass_that_needs_one_that_was_undone_does_not_apply(tmp_path):
    def check(name, model):
        return checked(tmp_path / name, "Neg" not in kinds(model))

    passes = [Append("Neg"), Append("Ceil", needs="Neg"), Append("Abs", needs="Identity")]
    made = rewrite(identity(), tmp_path / "simplified", passes, check)
    assert kinds(made.model) == ["Identity", "Abs"]
    assert [(one.name, one.undone) for one in made.applied] == [("neg", "too far"), ("abs", None)]
    assert made.undone[0].before == tmp_path / "simplified"


def test_a_graph_that_was_off_before_undoes_no_pass(tmp_path):
    def check(name, model):
        return checked(tmp_path / name, "Neg" not in kinds(model), base_holds=False)

    passes = [Append("Abs"), Append("Ceil")]
    made = rewrite(identity(), tmp_path / "simplified", passes, check)
    assert kinds(made.model) == ["Identity", "Abs", "Ceil"]
    assert not made.undone
    assert not made.rung.held  # what the report tells of is the reference
    passes.insert(1, Append("Neg"))
    made = rewrite(identity(), tmp_path / "simplified", passes, check)
    assert kinds(made.model) == ["Identity", "Abs", "Ceil"]
    assert [one.name for one in made.undone] == ["neg"]
    assert not made.rung.held


class Louder:
    """A wrong pass: raw scores become half as large again."""

    name = "louder"

    def __init__(self, how=""):
        self.how = how

    def apply(self, model):
        quiet, by = f"quiet{self.how}", f"louder{self.how}"
        node = next(node for node in model.graph.node if RAW_SCORE in node.output)
        node.output[list(node.output).index(RAW_SCORE)] = quiet
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1.5, np.float32), by))
        louder = helper.make_node("Mul", [quiet, by], [RAW_SCORE], name=by)
        model.graph.node.insert(list(model.graph.node).index(node) + 1, louder)
        return 1


@pytest.fixture
def built(checkpoint, images, tmp_path, children_here, graph_of, monkeypatch):
    """Build the plain detector for ONNX Runtime; the result, and what the report says."""
    traced, _ = graph_of("plain", 1)
    monkeypatch.setattr(graphs, "trace", lambda *_: traced)

    def go(**options):
        given = (checkpoint, tmp_path / "a", (TARGET,), str(images / "good"))
        with children_here():
            result = build(BuildOptions(*given, **options), Listener())
        (one,) = result.targets
        return result, json.loads((one.folder / "report" / "build.json").read_text())

    return go


def test_a_planted_wrong_pass_is_undone_alone_and_named(built, monkeypatch, plain, images):
    first, *others = DEFAULT_PASSES
    monkeypatch.setattr(graphs, "DEFAULT_PASSES", (first, Louder(), *others))
    result, report = built()
    (one,) = result.targets
    assert [rung.name for rung in one.rungs] == ["traced", "simplified", "rewritten", "compiled"]
    assert all(rung.held for rung in one.rungs)
    found = {each["name"]: each for each in report["passes"]["applied"]}
    assert list(found) == ["gray-channels", "louder", "map-as-matrices", "nearest-neighbours"]
    assert found["louder"]["undone"].startswith("largest drift ")
    assert [name for name in found if found[name]["undone"]] == ["louder"]
    assert any("the pass louder was undone" in note for note in result.notes)
    assert any("rewritten fell short" in note and "quiet" not in note for note in result.notes)
    image = decode(images / "scratch" / "1.png", 1)
    with torch.inference_mode():
        expected = float(plain(torch.from_numpy(image)[None])[RAW_SCORE])
    assert runtime.load(one.folder).predict(image).raw_score == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def spoiled(monkeypatch):
    """Simplifying makes scores half as large again."""
    simplify = graphs.simplify

    def louder(traced):
        made = simplify(traced)
        Louder().apply(made.model)
        return made

    monkeypatch.setattr(graphs, "simplify", louder)


@pytest.mark.usefixtures("spoiled")
def test_where_simplifying_falls_short_passes_are_not_blamed(built):
    result, report = built()
    (one,) = result.targets
    held = {rung.name: rung.held for rung in one.rungs}
    assert held == {"traced": True, "simplified": False, "rewritten": False, "compiled": False}
    found = {each["name"]: each["undone"] for each in report["passes"]["applied"]}
    assert found == dict.fromkeys(["gray-channels", "map-as-matrices", "nearest-neighbours"])
    assert any(note.startswith("simplified fell short") for note in result.notes)
    assert not any("was undone" in note for note in result.notes)


@pytest.mark.usefixtures("spoiled")
def test_a_wrong_pass_behind_a_wrong_graph_is_undone_alone(built, monkeypatch):
    first, *others = DEFAULT_PASSES
    monkeypatch.setattr(graphs, "DEFAULT_PASSES", (first, Louder("still"), *others))
    _, report = built()
    undone = [each["name"] for each in report["passes"]["applied"] if each["undone"]]
    assert undone == ["louder"]


def test_passes_are_left_out_by_name_and_timed(built):
    result, report = built(no_pass=("map-as-matrices",))
    (one,) = result.targets
    assert one.passes.left_out == ("map-as-matrices",)
    assert [each.name for each in one.passes.applied] == ["gray-channels", "nearest-neighbours"]
    graph = onnx.load(one.folder / "model.onnx").graph
    assert "Resize" in [node.op_type for node in graph.node]
    time = report["passes"]["applied"][0]["time"]
    assert time["before_ms"] > 0
    assert time["ratio"]["low"] <= time["ratio"]["value"] <= time["ratio"]["high"]
    assert read_passes(one.folder / "report" / "build.json") == one.passes
    assert "passes" not in json.loads((one.folder / "manifest.json").read_text())


def test_an_unknown_pass_names_those_there_are(built):
    with pytest.raises(InputError, match="unknown pass 'bananas'; known: gray-channels, "):
        built(no_pass=("bananas",))
    with pytest.raises(InputError, match=r"quantised-search, group-normalisation$"):
        built(no_pass=("mahalanobis", ""))
