"""INT8 for processors without VNNI, the whole way; on one, what it would not compute exactly."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.integration.test_diagnosis import resealed
from vadexport.backends.openvino import compile_graph
from vadexport.backends.openvino.saturation import adds_exactly
from vadexport.building import BuildOptions, build, graphs
from vadexport.errors import BackendError
from vadexport.listening import Listener
from vadexport.targets import Target

pytest.importorskip("openvino")
TARGET = "openvino:int8@avx2"


@pytest.fixture(scope="module")
def both(checkpoint, images, tmp_path_factory, children_here):
    folder = tmp_path_factory.mktemp("without-vnni") / "built"
    targets = tuple(Target.parse(text) for text in (TARGET, "onnxruntime:int8"))
    with children_here():
        return build(BuildOptions(checkpoint, folder, targets, str(images / "good")), Listener())


def largest_weights(path):
    """Largest integer of each layer's weights, and whether it is a depthwise convolution's."""
    graph = onnx.load(path).graph
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    found = {
        node.input[0]: values[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in values
    }
    return [(int(np.abs(each.astype(int)).max()), each.shape[1] == 1) for each in found.values()]


def test_weights_take_seven_bits_but_for_depthwise_convolutions(both):
    ours, theirs = both.targets
    kept = largest_weights(ours.folder / "report" / "quantised" / "model.onnx")
    assert {largest for largest, depthwise in kept if not depthwise} == {64}
    assert {largest for largest, depthwise in kept if depthwise} == {127}
    assert {largest for largest, _ in largest_weights(theirs.folder / "model.onnx")} == {127}


def test_scores_hold_and_the_manifest_says_what_weights_take(both):
    assert all(rung.held for one in both.targets for rung in one.rungs)
    ours, theirs = (
        json.loads((one.folder / "manifest.json").read_text())["precision"] for one in both.targets
    )
    assert ours["INT8 weights"] == "7 bits, for processors without VNNI"
    assert "INT8 weights" not in theirs
    assert ours["network"] == theirs["network"] == "int8"
    (note,) = [note for note in both.notes if "7 bits" in note]
    assert "processor without VNNI" in note


def test_verify_holds(both, vadexport, checkpoint, images, tmp_path):
    words = ("--images", images, "--reference", checkpoint, "--rounds", 0)
    ended = vadexport("verify", both.targets[0].folder, *words, "--report", tmp_path / "report")
    assert ended.status == 0, ended.err


@pytest.mark.skipif(adds_exactly(), reason="this processor adds products of 8 bits exactly")
def test_eight_bits_are_refused_in_one_line(both, vadexport, checkpoint, images, tmp_path):
    ours, theirs = both.targets

    def change(folder):
        compile_graph(theirs.folder / "model.onnx", folder, Target("openvino", "int8"))

    changed = resealed(ours.folder, tmp_path / "a", change)
    words = ("--images", images, "--reference", checkpoint, "--rounds", 0)
    ended = vadexport("verify", changed, *words, "--report", tmp_path / "report")
    assert ended.status == 3
    assert "Traceback" not in ended.err
    last = ended.err.strip().splitlines()[-1]
    assert "this processor has no VNNI" in last
    assert TARGET in last


@pytest.mark.skipif(adds_exactly(), reason="this processor adds products of 8 bits exactly")
def test_the_graph_behind_stands_in_where_that_is_allowed(
    both, vadexport, checkpoint, images, tmp_path
):
    ours, theirs = both.targets

    def change(folder):
        compile_graph(theirs.folder / "model.onnx", folder, Target("openvino", "int8"))

    resealed(ours.folder, tmp_path / "several" / "one", change)
    shutil.copytree(theirs.folder, tmp_path / "several" / "other")
    words = ("--images", images, "--reference", checkpoint, "--rounds", 0)
    report = ("--report", tmp_path / "report")
    ended = vadexport("verify", tmp_path / "several", *words, *report)
    assert ended.status == 3
    assert "--proxy" in ended.err
    ended = vadexport("verify", tmp_path / "several", *words, *report, "--proxy")
    assert ended.status == 0, ended.err
    assert len(list((tmp_path / "report").rglob("parity.json"))) == 2


@pytest.mark.usefixtures("in_process")
def test_a_probe_that_fails_takes_openvino_alone(checkpoint, images, tmp_path, monkeypatch):
    def fails():
        raise BackendError("it crashed")

    monkeypatch.setattr(graphs, "adds_exactly", fails)
    targets = tuple(Target("openvino" if n == 0 else "onnxruntime", "int8") for n in range(2))
    options = BuildOptions(checkpoint, tmp_path / "built", targets, str(images / "good"))
    ours, theirs = build(options, Listener()).targets
    assert "it crashed" in str(ours.error)
    assert theirs.error is None
