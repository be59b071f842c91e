"""What `verify` says of where an artifact parts from its reference, with real artifacts."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vadexport.artifact import read_manifest, write_manifest
from vadexport.backends.openvino import compile_graph
from vadexport.backends.pytorch import PyTorchRunner
from vadexport.building import BuildOptions, build
from vadexport.building.graphs import Graphs
from vadexport.detectors.checkpoint import save_detector
from vadexport.detectors.patchcore import PatchCoreConfig, fit
from vadexport.errors import BackendError
from vadexport.listening import Listener
from vadexport.targets import Target
from vadexport.verifying import VerifyOptions, verify

FP32 = Target("onnxruntime", "fp32")

pytestmark = pytest.mark.usefixtures("in_process")


def diagnosis(artifact, reference, images, report, **limits):
    options = VerifyOptions(artifact, reference, str(images), limits, rounds=0, report=report)
    (found,) = verify(options, Listener()).verifications
    return found


def resealed(folder, copy, change):
    """A copy of an artifact, one of whose files is changed and counted anew."""
    shutil.copytree(folder, copy)
    change(copy)
    write_manifest(copy, read_manifest(copy))
    return copy


def other_convolution(model):
    """Change the weights of a convolution in the middle; returns its name."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    layer = layers[len(layers) // 2]
    weight = weights[layer.input[1]]
    weight.CopyFrom(numpy_helper.from_array(1.2 * numpy_helper.to_array(weight), weight.name))
    return layer.name


def test_an_artifact_that_holds_has_none(artifact, checkpoint, images, tmp_path):
    assert diagnosis(artifact, checkpoint, images, tmp_path).diagnosis is None


def test_a_graph_that_was_changed(artifact, checkpoint, images, tmp_path):
    names = []

    def change(folder):
        model = onnx.load(folder / "model.onnx")
        names.append(other_convolution(model))
        onnx.save(model, folder / "model.onnx")

    changed = resealed(artifact, tmp_path / "a", change)
    found = diagnosis(changed, checkpoint, images, tmp_path / "report")
    assert found.diagnosis.rung == "graph"
    assert [rung["held"] for rung in found.diagnosis.ladder] == [True, True, True, False, False]
    words = " ".join(found.diagnosis.lines)
    assert f"the difference begins at {names[0]} (Conv, " in words
    assert "likely: " in words
    for file in ("parity.json", "junit.xml", "summary.md", "index.html"):
        text = (tmp_path / "report" / file).read_text()
        assert "the first step that falls short is" in text
    (names,) = [
        [rung["rung"] for rung in json.loads(text)["diagnosis"]["ladder"]]
        for text in [(tmp_path / "report" / "parity.json").read_text()]
    ]
    assert names == ["traced", "simplified", "rewritten", "graph", "compiled"]


def test_a_compiled_file_that_was_changed(artifacts, crops, images, checkpoint, tmp_path):
    # The compiled model is another detector's: nothing before it can be at fault.
    other = fit([255 - crop for crop in crops], PatchCoreConfig(), read_input(artifacts))
    save_detector(other, tmp_path / "other.safetensors")
    target = Target("openvino", "fp32")
    build(BuildOptions(tmp_path / "other.safetensors", tmp_path / "b", (target,)), Listener())

    def change(folder):
        for name in ("model.xml", "model.bin"):
            shutil.copy(tmp_path / "b" / name, folder / name)

    changed = resealed(artifacts / "openvino-fp32", tmp_path / "a", change)
    found = diagnosis(changed, checkpoint, images, tmp_path / "report").diagnosis
    assert found.rung == "compiled"
    assert [rung["rung"] for rung in found.ladder if not rung["held"]] == ["compiled"]
    assert "compiled fell short; on the image that changed most the difference begins at " in (
        " ".join(found.lines)
    )


def test_one_layer_of_a_compiled_file_that_was_changed(artifacts, images, checkpoint, tmp_path):
    names = []

    def change(folder):
        model = onnx.load(artifacts / "onnxruntime-fp32" / "model.onnx")
        names.append(other_convolution(model))
        onnx.save(model, tmp_path / "changed.onnx")
        compile_graph(tmp_path / "changed.onnx", folder, Target("openvino", "fp32"))

    changed = resealed(artifacts / "openvino-fp32", tmp_path / "a", change)
    found = diagnosis(changed, checkpoint, images, tmp_path / "report").diagnosis
    assert found.rung == "compiled"
    assert f"the difference begins at {names[0]} (Conv, " in " ".join(found.lines)


def read_input(artifacts):
    return read_manifest(artifacts / "openvino-fp32").image_input


def clipped(folder, part=4):
    """Activations of an INT8 graph get a quarter of their range, or another part."""
    model = onnx.load(folder / "model.onnx")
    scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            small = (numpy_helper.to_array(tensor) / part).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(small, tensor.name))
    onnx.save(model, folder / "model.onnx")


def read_as_int8(folder):
    """Bytes from 0 to 255 that are read as int8 end at half of the range."""
    clipped(folder, part=2)


@pytest.mark.parametrize("change", [clipped, read_as_int8])
def test_a_quantised_graph_that_was_changed(artifacts, checkpoint, images, tmp_path, change):
    changed = resealed(artifacts / "onnxruntime-int8", tmp_path / "a", change)
    found = diagnosis(changed, checkpoint, images, tmp_path / "report").diagnosis
    assert found.rung == "quantised"
    words = " ".join(found.lines)
    assert "(DequantizeLinear, " in words.split("the difference begins at ")[1]
    assert "its range ends too early: " in words


KEPT = "report/quantised/model.onnx"


def scales_of(model, operator):
    """Constants that nodes of a kind scale by."""
    names = {node.input[1] for node in model.graph.node if node.op_type == operator}
    return [tensor for tensor in model.graph.initializer if tensor.name in names]


def ranges_too_small(model):
    for tensor in scales_of(model, "QuantizeLinear"):
        scale_by(tensor, 1 / 4)

    return "(DequantizeLinear, ", "its range ends too early: "


def weights_of_a_layer_too_large(model):
    weights = [each for each in scales_of(model, "DequantizeLinear") if each.dims]
    wrong = weights[len(weights) // 2]
    scale_by(wrong, 3)
    dequantised = next(node.output[0] for node in model.graph.node if wrong.name in node.input)
    return next(
        node.name for node in model.graph.node if dequantised in node.input
    ), "another scale"


def a_layer_without_its_bias(model):
    layers = [node for node in model.graph.node if node.op_type == "Conv" and len(node.input) > 2]
    del layers[1].input[2]
    return layers[1].name, "another bias, or none"


def scale_by(tensor, factor):
    found = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(found, tensor.name))


def compiled_anew(folder, change, *, kept):
    """Change the quantised graph of an OpenVINO artifact and compile it; `kept` shows that."""
    model = onnx.load(folder / KEPT)
    told = change(model)
    onnx.save(model, folder / KEPT if kept else folder.parent / "changed.onnx")
    path = folder / KEPT if kept else folder.parent / "changed.onnx"
    compile_graph(path, folder, Target("openvino", "int8"))
    return told


@pytest.mark.parametrize(
    "fault", [ranges_too_small, weights_of_a_layer_too_large, a_layer_without_its_bias]
)
def test_a_fault_of_quantising_for_openvino(artifacts, checkpoint, images, tmp_path, fault):
    told = []

    def change(folder):
        told.extend(compiled_anew(folder, fault, kept=True))

    changed = resealed(artifacts / "openvino-int8", tmp_path / "a", change)
    found = diagnosis(changed, checkpoint, images, tmp_path / "report").diagnosis
    assert found.rung == "quantised"
    where, cause = told
    begins = " ".join(found.lines).split("the difference begins at ")[1]
    assert where in begins.split(";")[0]
    assert cause in begins


@pytest.mark.parametrize(("there", "rung"), [(True, "compiled"), (False, "quantised or compiled")])
def test_a_fault_of_compiling_int8(artifacts, checkpoint, images, tmp_path, there, rung):
    def change(folder):
        compiled_anew(folder, ranges_too_small, kept=False)
        if not there:
            shutil.rmtree(folder / "report")

    changed = resealed(artifacts / "openvino-int8", tmp_path / "a", change)
    found = diagnosis(changed, checkpoint, images, tmp_path / "report").diagnosis
    assert found.rung == rung
    assert [each["rung"] for each in found.ladder if not each["held"]] == ["compiled"]


def test_a_fault_of_float16(checkpoint, images, tmp_path):
    target = Target("onnxruntime", "fp16", "cuda")
    options = BuildOptions(checkpoint, tmp_path / "built", (target,), str(images / "good"))
    build(options, Listener())

    def change(folder):
        model = onnx.load(folder / "model.onnx")
        other_convolution(model)
        onnx.save(model, folder / "model.onnx")

    changed = resealed(tmp_path / "built", tmp_path / "a", change)
    given = VerifyOptions(
        changed, checkpoint, str(images), rounds=0, report=tmp_path / "report", proxy=True
    )
    (found,) = verify(given, Listener()).verifications
    assert found.diagnosis.rung == "half"


def test_scores_that_change_from_run_to_run(artifact, checkpoint, images, tmp_path):
    limits = {"max_drift": 10.0, "max_flips": 1.0, "min_spearman": -1.0, "min_auroc_delta": -1.0}

    def change(folder):
        model = onnx.load(folder / "model.onnx")
        for node in model.graph.node:
            node.output[:] = ["raw" if name == "raw_score" else name for name in node.output]
        bounds = {"low": 0.99, "high": 1.01}
        chance = onnx.helper.make_node("RandomUniform", [], ["chance"], shape=[1], **bounds)
        product = onnx.helper.make_node("Mul", ["raw", "chance"], ["raw_score"], "noise")
        place = next(n for n, node in enumerate(model.graph.node) if "raw" in node.output)
        model.graph.node.insert(place + 1, product)
        model.graph.node.insert(0, chance)
        onnx.save(model, folder / "model.onnx")

    changed = resealed(artifact, tmp_path / "a", change)
    found = diagnosis(changed, checkpoint, images, tmp_path / "report", **limits)
    (check,) = [check for check in found.checks if not check.held]
    assert check.name == "repeat"
    assert any(f"most of all on {record.name}," in check.line for record in found.records)
    assert found.diagnosis.rung == "graph"
    assert "run again on" in " ".join(found.diagnosis.lines)


def test_a_build_that_had_fallen_short(checkpoint, images, tmp_path, monkeypatch):
    import onnxsim

    simplify = onnxsim.simplify

    def wrong(model):
        simplified, checked = simplify(model)
        other_convolution(simplified)
        return simplified, checked

    monkeypatch.setattr(onnxsim, "simplify", wrong)
    result = build(BuildOptions(checkpoint, tmp_path / "a", (FP32,)), Listener())
    assert not all(rung.held for rung in result.targets[0].rungs)
    monkeypatch.undo()
    found = diagnosis(tmp_path / "a", checkpoint, images, tmp_path / "report").diagnosis
    assert found.rung == "simplified"
    assert found.lines[0] == "the build had already fallen short at: simplified"
    assert [rung["held"] for rung in found.ladder[:3]] == [True, True, True]


@pytest.mark.parametrize("same", [True, False])
def test_wrong_preprocessing_in_the_graph(checkpoint, images, tmp_path, monkeypatch, same):
    from vadexport.detectors import steps

    def swapped(self, step):
        original(self, steps.Normalise(step.std, step.mean))

    original = steps._Affine.__init__
    monkeypatch.setattr(steps._Affine, "__init__", swapped)
    build(BuildOptions(checkpoint, tmp_path / "a", (FP32,)), Listener())
    if not same:
        monkeypatch.undo()
    found = diagnosis(tmp_path / "a", checkpoint, images, tmp_path / "report").diagnosis
    assert found.rung == "traced"
    words = " ".join(found.lines)
    assert "largest difference after preprocessing" in words
    assert found.ladder[0]["held"] != same
    if same:
        assert "the graph gives what its parts give in PyTorch: the reference, untouched" in words


def test_limits_that_are_given(artifact, checkpoint, images, tmp_path):
    found = diagnosis(artifact, checkpoint, images, tmp_path, max_drift=1e-12).diagnosis
    assert found.rung == "traced"
    assert "limit 1e-12" in found.lines[0]


def test_what_no_single_step_shows(artifact, checkpoint, images, tmp_path):
    found = diagnosis(artifact, checkpoint, images, tmp_path, min_auroc_delta=0.5).diagnosis
    assert found.rung is None
    assert "every step holds its limits" in found.lines[0]


def test_flips_are_laid_to_the_step_that_adds_most(artifacts, checkpoint, images, tmp_path):
    given = {"max_drift": 100.0, "max_map_drift": 100.0, "min_spearman": 1.0}

    def change(folder):
        compiled_anew(folder, ranges_too_small, kept=True)

    changed = resealed(artifacts / "openvino-int8", tmp_path / "a", change)
    verified = diagnosis(changed, checkpoint, images, tmp_path / "report", **given)
    fallen = {check.name for check in verified.checks if not check.held}
    assert "spearman" in fallen
    assert not fallen & {"drift", "map"}
    assert verified.diagnosis.rung == "quantised"
    assert "most of the drift arises at: quantised" in " ".join(verified.diagnosis.lines)


@pytest.mark.parametrize(
    ("operator", "words"), [("Transpose", "transposed"), ("Slice", "upside down")]
)
def test_a_map_that_was_turned(artifact, checkpoint, images, tmp_path, operator, words):
    def change(folder):
        model = onnx.load(folder / "model.onnx")
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = ["right" if name == "anomaly_map" else name for name in names]
        backwards = {"from": [-1], "to": [-(10**6)], "axis": [2], "step": [-1]}
        constants = backwards if operator == "Slice" else {}
        attributes = {} if operator == "Slice" else {"perm": [0, 1, 3, 2]}
        inputs = ["right", *constants]
        node = onnx.helper.make_node(operator, inputs, ["anomaly_map"], "turned", **attributes)
        model.graph.node.append(node)
        for name, value in constants.items():
            tensor = numpy_helper.from_array(np.array(value, np.int64), name)
            model.graph.initializer.append(tensor)
        onnx.save(model, folder / "model.onnx")

    changed = resealed(artifact, tmp_path / "a", change)
    found = diagnosis(changed, checkpoint, images, tmp_path / "report").diagnosis
    assert found.rung == "graph"
    assert f"likely: the anomaly map is {words}" in found.lines


def test_an_artifact_of_another_detector(artifact, crops, images, tmp_path):
    other = fit(
        [255 - crop for crop in crops], PatchCoreConfig(), read_manifest(artifact).image_input
    )
    save_detector(other, tmp_path / "other.safetensors")
    found = diagnosis(artifact, tmp_path / "other.safetensors", images, tmp_path / "report")
    assert any("was built from another file" in warning for warning in found.warnings)
    assert found.diagnosis.rung == "graph"


def test_images_without_finite_scores_leave_room_for_others(artifact, checkpoint, images, tmp_path):
    scores = [one.raw for one in diagnosis(artifact, checkpoint, images, tmp_path / "r").records]
    highest = np.array([np.sort(scores)[-9]], np.float32)  # eight lie above

    def change(folder):
        model = onnx.load(folder / "model.onnx")
        for node in model.graph.node:
            for names in (node.input, node.output):
                for number, name in enumerate(names):
                    names[number] = "raw" if name == "raw_score" else name
        constants = {"limit": highest, "nothing": [np.nan], "factor": [1.2]}
        for name, value in constants.items():
            tensor = numpy_helper.from_array(np.array(value, np.float32), name)
            model.graph.initializer.append(tensor)
        model.graph.node.extend(
            [
                onnx.helper.make_node("Greater", ["raw", "limit"], ["above"]),
                onnx.helper.make_node("Mul", ["raw", "factor"], ["moved"]),
                onnx.helper.make_node("Where", ["above", "nothing", "moved"], ["raw_score"]),
            ]
        )
        onnx.save(model, folder / "model.onnx")

    changed = resealed(artifact, tmp_path / "a", change)
    found = diagnosis(changed, checkpoint, images, tmp_path / "report")
    assert found.figures.not_finite == 8
    assert found.diagnosis.rung == "graph"
    assert {check.name for check in found.checks if not check.held} >= {"finite", "drift"}


def test_no_image_with_a_finite_score(artifact, checkpoint, images, tmp_path):
    def change(folder):
        model = onnx.load(folder / "model.onnx")
        weights = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                nothing = np.full(tensor.dims, np.nan, np.float32)
                tensor.CopyFrom(numpy_helper.from_array(nothing, tensor.name))
        onnx.save(model, folder / "model.onnx")

    changed = resealed(artifact, tmp_path / "a", change)
    found = diagnosis(changed, checkpoint, images, tmp_path / "report")
    assert found.figures.not_finite == found.figures.images
    assert found.diagnosis.rung == "graph"
    words = " ".join(found.diagnosis.lines)
    assert "the first step that falls short is: graph (4 of 4 images have scores that are" in words
    assert "the difference begins at" in words
    assert [rung["held"] for rung in found.diagnosis.ladder] == [True, True, True, False, False]
    assert "graph" in (tmp_path / "report" / "index.html").read_text()


def test_images_of_which_the_reference_has_no_score(
    artifact, checkpoint, images, tmp_path, monkeypatch
):
    infer, calls = PyTorchRunner.infer, []

    def moody(runner, image):
        calls.append(image)
        found = infer(runner, image)
        if len(calls) == 3:  # the reference is opened, and scores a call, first
            found = {**found, "raw_score": np.full_like(found["raw_score"], np.nan)}
        return found

    monkeypatch.setattr(PyTorchRunner, "infer", moody)
    found = diagnosis(artifact, checkpoint, images, tmp_path)
    assert found.figures.not_finite == 1
    assert found.diagnosis.rung is None
    assert "every step holds its limits" in found.diagnosis.lines[0]
    assert found.diagnosis.lines[1] == (
        "no step explains 1 image: the reference itself has no finite score there"
    )


def test_a_diagnosis_that_fails_says_so(artifact, checkpoint, images, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise BackendError("the graph cannot be traced any more")

    monkeypatch.setattr(Graphs, "of", fail)
    found = diagnosis(artifact, checkpoint, images, tmp_path, max_drift=1e-12).diagnosis
    assert found.rung is None
    assert found.lines == (
        "where it begins could not be found out: the graph cannot be traced any more",
    )
    assert found.lines[0] in (tmp_path / "summary.md").read_text()


def test_what_only_planted_defects_show(artifact, checkpoint, images, tmp_path):
    normal = images / "good"
    scores = [one.raw for one in diagnosis(artifact, checkpoint, normal, tmp_path / "r").records]

    def change(folder):
        model = onnx.load(folder / "model.onnx")
        place = next(n for n, node in enumerate(model.graph.node) if "raw_score" in node.output)
        node = model.graph.node[place]
        node.output[:] = ["unclipped" if name == "raw_score" else name for name in node.output]
        clip = onnx.helper.make_node("Min", ["unclipped", "limit"], ["raw_score"], "clip")
        model.graph.node.insert(place + 1, clip)
        limit = np.array([max(scores)], np.float32)
        model.graph.initializer.append(numpy_helper.from_array(limit, "limit"))
        onnx.save(model, folder / "model.onnx")

    changed = resealed(artifact, tmp_path / "a", change)
    found = diagnosis(changed, checkpoint, normal, tmp_path / "report")
    assert [check.name for check in found.checks if not check.held] == ["synthetic"]
    assert found.diagnosis.rung == "graph"
    words = " ".join(found.diagnosis.lines)
    assert "on images with planted defects" in words
    assert "the difference begins at clip (Min" in words


def test_each_of_several_artifacts_is_looked_into(artifacts, checkpoint, images, tmp_path):
    def change(folder):
        model = onnx.load(folder / "model.onnx")
        other_convolution(model)
        onnx.save(model, folder / "model.onnx")

    (tmp_path / "two").mkdir()
    resealed(artifacts / "onnxruntime-int8", tmp_path / "two" / "a", clipped)
    resealed(artifacts / "onnxruntime-fp32", tmp_path / "two" / "b", change)
    options = VerifyOptions(
        tmp_path / "two", checkpoint, str(images), rounds=0, report=tmp_path / "report"
    )
    found = {v.target: v.diagnosis for v in verify(options, Listener()).verifications}
    assert found["onnxruntime:fp32"].rung == "graph"
    assert found["onnxruntime:int8"].rung == "quantised"
