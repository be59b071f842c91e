"""Faults that are planted one at a time: `verify` falls short, and says at which rung.

All of `verify` runs as it does for a user, from the files to the diagnosis, except that what it
starts runs in this process, and that the one detector is traced once: a fault takes seconds.
"""

import copy
import shutil
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from torch.nn import functional

from vadexport.artifact import read_manifest, write_manifest
from vadexport.backends.openvino.runner import OpenVinoRunner
from vadexport.building import BuildOptions, build, graphs
from vadexport.detectors.checkpoint import save_detector
from vadexport.errors import InputError
from vadexport.listening import Listener
from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.targets import Target
from vadexport.tracing.graph import simplify, trace
from vadexport.verifying import VerifyOptions, verify

pytestmark = pytest.mark.slow

ONNXRUNTIME, OPENVINO = Target("onnxruntime", "fp32"), Target("openvino", "fp32")


@pytest.fixture(scope="module")
def world(resizing, coloured, children_here, tmp_path_factory):
    """A detector, images that it has not seen, an artifact of each of two targets, and a graph."""
    folder = tmp_path_factory.mktemp("planted")
    with children_here(), pytest.MonkeyPatch.context() as patch:
        traced = trace(resizing, replace(resizing.image_input, batch=1))
        patch.setattr(graphs, "trace", lambda *_: traced)
        save_detector(resizing, folder / "detector.safetensors")
        for number, image in enumerate(coloured[:4]):
            for kind, pixels in (
                ("good", 255 - image[:, ::-1]),
                ("bent", np.roll(image, 30, 1) // 2),
            ):
                path = folder / "images" / "test" / kind / f"{number}.png"
                dark = 8 if (kind, number) == ("bent", 3) else 1
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.ascontiguousarray(pixels // dark)).save(path)
        (folder / "images" / "train" / "good").mkdir(parents=True)
        targets = (ONNXRUNTIME, OPENVINO)
        options = BuildOptions(folder / "detector.safetensors", folder / "built", targets)
        build(options, Listener())
        simplified = simplify(traced)
        rewritten, places = apply_passes(simplified.model, DEFAULT_PASSES)
        assert any(places.values())
        yield SimpleNamespace(
            folder=folder,
            detector=resizing,
            graphs={"traced": traced.model, "simplified": simplified.model, "rewritten": rewritten},
            traced=traced,
            onnxruntime=folder / "built" / "onnxruntime-fp32",
            openvino=folder / "built" / "openvino-fp32",
        )


@pytest.fixture
def verified(world, tmp_path):
    """Verify an artifact against the detector."""

    def run(artifact, **options):
        given = VerifyOptions(
            artifact,
            world.folder / "detector.safetensors",
            str(world.folder / "images"),
            **{"rounds": 0, "report": tmp_path / "report", **options},
        )
        (found,) = verify(given, Listener()).verifications
        return found

    return run


@pytest.fixture
def served(world, tmp_path):
    """The ONNX Runtime artifact with another graph in it, sealed as if it had been built so."""

    def make(model):
        folder = tmp_path / "artifact"
        shutil.copytree(world.onnxruntime, folder)
        onnx.save(model, folder / "model.onnx")
        write_manifest(folder, read_manifest(folder))
        return folder

    return make


def fallen(found):
    return {check.name for check in found.checks if not check.held}


# ---------------------------------------------------------------------- surgery on a graph
def changed(model, change):
    model = copy.deepcopy(model)
    change(model.graph)
    return model


def value(graph, name):
    return next(tensor for tensor in graph.initializer if tensor.name == name)


def edit(graph, name, change):
    tensor = value(graph, name)
    found = np.array(change(numpy_helper.to_array(tensor).copy()), order="C")
    tensor.CopyFrom(numpy_helper.from_array(found, name))


def constant(graph, array):
    name = f"planted{len(graph.initializer)}"
    graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def producer(graph, output):
    return next(node for node in graph.node if output in node.output)


def rename(graph, tensor, name):
    """Call a tensor otherwise, for its producer and for all that read it."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [name if each == tensor else each for each in names]


def insert_after(graph, tensor, *kinds):
    """Put nodes behind a tensor: what reads it, and the graph's output, get what they give."""
    before = f"{tensor}_before"
    node = producer(graph, tensor)
    node.output[:] = [before if each == tensor else each for each in node.output]
    place = list(graph.node).index(node) + 1
    for number, (kind, inputs, attributes) in enumerate(kinds):
        after = tensor if number == len(kinds) - 1 else f"{tensor}_{number}"
        made = helper.make_node(kind, [before, *inputs], [after], f"planted_{kind}", **attributes)
        graph.node.insert(place + number, made)
        before = after


def insert_before(graph, *nodes):
    """Put nodes in front of all that reads the image; each is kind, inputs and attributes."""
    rename(graph, "image", "planted_image")
    before = "image"
    for number, (kind, inputs, attributes) in enumerate(nodes):
        after = "planted_image" if number == len(nodes) - 1 else f"image_{number}"
        graph.node.insert(number, helper.make_node(kind, [before, *inputs], [after], **attributes))
        before = after


def convolutions(graph):
    return [
        node for node in graph.node if node.op_type == "Conv" and "Conv_41" not in node.name[:12]
    ]


def matrices(graph, resize):
    """Give the resize other matrices: what `resize` makes of each axis of an identity."""
    edit(graph, "preprocessing.parts.0.rows", lambda m: resize(m.shape[1], m.shape[0]))
    edit(graph, "preprocessing.parts.0.columns", lambda m: resize(m.shape[0], m.shape[1]).T)


def interpolated(mode):
    def resize(before, after):
        eye = torch.eye(before)[None, None]
        scaled = functional.interpolate(eye, (after, before), mode=mode)
        return scaled[0, 0].numpy()

    return resize


def cropped(before, after):
    start = (before - after) // 2
    return np.eye(before, dtype=np.float32)[start : start + after]


# --------------------------------------------------------------------- faults of the graph
def no_antialiasing(graph):
    matrices(graph, interpolated("bilinear"))


def nearest_neighbours(graph):
    matrices(graph, interpolated("nearest"))


def a_missing_resize(graph):
    matrices(graph, cropped)


def blue_first(graph):
    insert_before(graph, ("Gather", [constant(graph, np.array([2, 1, 0]))], {"axis": 3}))


def mean_and_deviation_swapped(graph):
    mean, std = (
        numpy_helper.to_array(value(graph, f"preprocessing.parts.1.{name}"))
        for name in ("mean", "std")
    )
    edit(graph, "preprocessing.parts.1.mean", lambda _: std)
    edit(graph, "preprocessing.parts.1.std", lambda _: mean)


def normalised_twice(graph):
    names = [f"preprocessing.parts.1.{name}" for name in ("mean", "std")]
    insert_after(graph, "preprocessed", ("Sub", names[:1], {}), ("Div", names[1:], {}))


def not_normalised(graph):
    edit(graph, "preprocessing.parts.1.mean", np.zeros_like)
    edit(graph, "preprocessing.parts.1.std", np.ones_like)


def divided_by_256(graph):
    edit(graph, producer(graph, "div").input[1], lambda _: np.array(256, np.float32))


def image_transposed(graph):
    shape = constant(graph, np.array([1, 88, 112, 3]))
    insert_before(graph, ("Transpose", [], {"perm": [0, 2, 1, 3]}), ("Reshape", [shape], {}))


def bytes_read_as_signed(graph):
    insert_before(graph, ("Cast", [], {"to": onnx.TensorProto.INT8}))
    del graph.value_info[:]  # which say that what is moved about is unsigned


def a_clipped_activation(graph):
    node = convolutions(graph)[2]
    ends = [constant(graph, np.array(end, np.float32)) for end in (-0.5, 0.5)]
    insert_after(graph, node.output[0], ("Clip", ends, {}))


def a_dropped_channel(graph):
    def change(weight):
        weight[0] = 0
        return weight

    edit(graph, convolutions(graph)[0].input[1], change)


def a_missing_bias(graph):
    edit(graph, convolutions(graph)[1].input[2], np.zeros_like)


def a_layer_in_bfloat16(graph):
    kinds = [onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT]
    node = convolutions(graph)[1]
    insert_after(graph, node.output[0], *(("Cast", [], {"to": kind}) for kind in kinds))


def bank(graph):
    """Name of the transposed memory bank: what patches are multiplied with."""
    found = [t.name for t in graph.initializer if list(t.dims) == [64, 76]]
    assert len(found) == 1
    return found[0]


def bank_rows_dropped(graph):
    def change(rows):
        rows[:, ::2] = 1e3  # so far off that none is the nearest
        return rows

    def far(norms):
        norms[::2] = 1e9
        return norms

    edit(graph, bank(graph), change)
    edit(graph, "sum_1", far)


def bank_in_float16(graph):
    """Cut off, not rounded: the bits that float16 has no room for."""
    edit(graph, bank(graph), lambda rows: (rows.view(np.int32) & ~0x1FFF).view(np.float32))


def a_sharper_map(graph):
    def only_the_middle(kernel):
        sharp = np.zeros_like(kernel)
        sharp.reshape(-1)[kernel.size // 2] = 1
        return sharp

    for node in graph.node[-12:]:
        if node.op_type == "Conv":
            edit(graph, node.input[1], only_the_middle)


def map_shifted_by_a_pixel(graph):
    indices = constant(graph, np.roll(np.arange(80), 1))
    insert_after(graph, "anomaly_map", ("Gather", [indices], {"axis": 3}))


def map_upside_down(graph):
    indices = constant(graph, np.arange(64)[::-1].copy())
    insert_after(graph, "anomaly_map", ("Gather", [indices], {"axis": 2}))


def map_transposed(graph):
    shape = constant(graph, np.array([1, 1, 64, 80]))
    transposed = ("Transpose", [], {"perm": [0, 1, 3, 2]})
    insert_after(graph, "anomaly_map", transposed, ("Reshape", [shape], {}))


def threshold_off_by_a_percent(graph):
    threshold = constant(
        graph, 1.01 * numpy_helper.to_array(value(graph, producer(graph, "pred_label").input[1]))
    )
    producer(graph, "pred_label").input[1] = threshold
    shifted = constant(graph, np.array(1.01, np.float32))
    node = producer(graph, "pred_score")
    scaled = helper.make_node("Div", [node.input[0], shifted], ["planted_score"])
    graph.node.insert(list(graph.node).index(node), scaled)
    node.input[0] = "planted_score"


def pixel_threshold_off_by_a_percent(graph):
    node = producer(graph, "pred_mask")
    found = numpy_helper.to_array(value(graph, node.input[1]))
    node.input[1] = constant(graph, (0.99 * found).astype(np.float32))


def score_normalised_twice(graph):
    half = constant(graph, np.array(0.5, np.float32))
    insert_after(graph, "pred_score", ("Mul", [half], {}))


def score_clamped(graph):
    ends = [constant(graph, np.array(end, np.float32)) for end in (0, 1)]
    insert_after(graph, "raw_score", ("Clip", ends, {}))


def a_random_node(graph):
    low = {"low": 0.98, "high": 1.02}
    graph.node.insert(
        0, helper.make_node("RandomUniform", [], ["chance"], shape=[1], dtype=1, **low)
    )
    insert_after(graph, "raw_score", ("Mul", ["chance"], {}))


def not_a_number_on_a_dark_image(graph):
    raw = producer(graph, "raw_score")
    raw.output[0] = "planted_raw"
    place = list(graph.node).index(raw) + 1
    limit, nothing = (constant(graph, np.array(v, np.float32)) for v in (0.1, np.nan))
    axes = constant(graph, np.array([1, 2, 3]))
    for node in (
        helper.make_node("ReduceMean", ["div", axes], ["brightness"], keepdims=0),
        helper.make_node("Less", ["brightness", limit], ["dark"]),
        helper.make_node("Where", ["dark", nothing, "planted_raw"], ["raw_score"]),
    ):
        graph.node.insert(place, node)
        place += 1


#: Fault: the step of the build that it is planted into, and a check that must fall short.
IN_A_STEP = {
    no_antialiasing: ("traced", "drift"),
    nearest_neighbours: ("traced", "drift"),
    a_missing_resize: ("traced", "drift"),
    blue_first: ("traced", "drift"),
    mean_and_deviation_swapped: ("traced", "drift"),
    normalised_twice: ("traced", "drift"),
    not_normalised: ("traced", "drift"),
    divided_by_256: ("traced", "drift"),
    image_transposed: ("traced", "drift"),
    bytes_read_as_signed: ("simplified", "drift"),
    a_clipped_activation: ("simplified", "drift"),
    a_dropped_channel: ("simplified", "drift"),
    a_missing_bias: ("simplified", "drift"),
    bank_rows_dropped: ("simplified", "drift"),
    a_sharper_map: ("simplified", "map"),
    map_shifted_by_a_pixel: ("rewritten", "map"),
    map_upside_down: ("rewritten", "map"),
    map_transposed: ("rewritten", "map"),
    score_clamped: ("rewritten", "drift"),
    a_layer_in_bfloat16: ("graph", "drift"),
    bank_in_float16: ("graph", "drift"),
    threshold_off_by_a_percent: ("graph", "outputs"),
    pixel_threshold_off_by_a_percent: ("graph", "outputs"),
    score_normalised_twice: ("graph", "outputs"),
    a_random_node: ("graph", "repeat"),
    not_a_number_on_a_dark_image: ("graph", "finite"),
}


class Planted:
    """A pass that makes a certain graph of whatever it is given."""

    name = "planted"

    def __init__(self, wrong):
        self.wrong = wrong

    def apply(self, model):
        model.CopyFrom(self.wrong)
        return 1


#: What preprocessing is likely to do wrong.
CAUSES = {
    no_antialiasing: "only fine detail differs",
    nearest_neighbours: "only fine detail differs",
    blue_first: "channels in another order (2, 1, 0)",
    mean_and_deviation_swapped: "another normalisation",
    normalised_twice: "another normalisation",
    not_normalised: "another normalisation",
    divided_by_256: "another normalisation",
}
#: Nodes at which rewritten graphs part from the graph before.
NODES = {
    map_shifted_by_a_pixel: "planted_Gather",
    map_upside_down: "planted_Gather",
    map_transposed: "planted_Reshape",
    score_clamped: "planted_Clip",
}


def planted(world, step, fault, monkeypatch):
    """The graph that a step with a fault ends in; the step is faulty from now on."""
    if step == "traced":
        wrong = changed(world.graphs["traced"], fault)
        monkeypatch.setattr(graphs, "trace", lambda *_: replace(world.traced, model=wrong))
        return simplify(replace(world.traced, model=wrong)).model
    if step == "simplified":
        wrong = changed(world.graphs["simplified"], fault)
        monkeypatch.setattr(graphs, "simplify", lambda traced: replace(traced, model=wrong))
        return wrong
    wrong = changed(world.graphs["rewritten"], fault)
    if step == "rewritten":
        monkeypatch.setattr(graphs, "DEFAULT_PASSES", (*DEFAULT_PASSES, Planted(wrong)))
    return wrong


@pytest.mark.parametrize("fault", IN_A_STEP, ids=lambda fault: fault.__name__)
def test_a_faulty_step(world, served, verified, monkeypatch, fault):
    step, check = IN_A_STEP[fault]
    found = verified(served(planted(world, step, fault, monkeypatch)))
    assert not found.held
    assert check in fallen(found)
    assert found.diagnosis.rung == step
    words = " ".join(found.diagnosis.lines)
    assert "the first step that falls short is" in words
    assert CAUSES.get(fault, "") in words
    if step == "rewritten":
        assert f"the difference begins at {NODES[fault]} (" in words


# ---------------------------------------------------- faults of what was compiled, and of runs
class Misbehaving:
    """Takes the place of `OpenVinoRunner.infer`, and is right but for one thing."""

    def __init__(self):
        self.rightly = OpenVinoRunner.infer
        self.calls = 0
        self.last = None

    def image_before(self, runner, call):
        call, self.last = (call if self.last is None else self.last), call
        return self.rightly(runner, call)

    def not_a_number_on_one_image(self, runner, call):
        outputs = self.rightly(runner, call)
        if call[0, 0, 0, 0] == self.marked:
            outputs = {**outputs, "raw_score": outputs["raw_score"] * np.float32("nan")}
        return outputs

    def infinite_map(self, runner, call):
        outputs = {name: found.copy() for name, found in self.rightly(runner, call).items()}
        if call[0, 0, 0, 0] == self.marked:
            outputs["anomaly_map"][0, 0, 0, 0] = np.inf
        return outputs

    def noisy(self, runner, call):
        outputs = self.rightly(runner, call)
        self.calls += 1
        noise = np.float32(1 + 0.01 * np.sin(99 * self.calls))
        return {**outputs, "raw_score": outputs["raw_score"] * noise}

    def signed_bytes(self, runner, call):
        return self.rightly(runner, call.view(np.int8).clip(0, 127).astype(np.uint8))

    def mirrored(self, runner, call):
        return self.rightly(runner, np.ascontiguousarray(call[:, :, ::-1]))

    def label_inverted(self, runner, call):
        outputs = self.rightly(runner, call)
        return {**outputs, "pred_label": ~outputs["pred_label"].astype(bool)}

    def mask_empty(self, runner, call):
        outputs = self.rightly(runner, call)
        return {**outputs, "pred_mask": np.zeros_like(outputs["pred_mask"])}

    def returns_before_it_is_done(self, runner, call):
        """Outputs are filled in later, by a thread: read at once, they are of no image."""
        found = self.rightly(runner, call)
        given = {name: np.zeros_like(each) for name, each in found.items()}

        def fill():
            for name, each in found.items():
                given[name][...] = each

        threading.Timer(0.5, fill).start()
        return given


MISBEHAVING = {
    "image_before": "drift",
    "not_a_number_on_one_image": "finite",
    "infinite_map": "finite",
    "noisy": "repeat",
    "signed_bytes": "drift",
    "mirrored": "map",
    "label_inverted": "outputs",
    "mask_empty": "outputs",
    "returns_before_it_is_done": "drift",
}


def partialmethod_of(bound):
    """A function that becomes a method of what it is put into, as a bound method would not."""

    def infer(runner, call):
        return bound(runner, call)

    return infer


@pytest.mark.parametrize("fault", MISBEHAVING)
def test_a_faulty_run(world, verified, monkeypatch, fault):
    wrong = Misbehaving()
    bent = np.asarray(Image.open(world.folder / "images" / "test" / "bent" / "2.png"))
    wrong.marked = bent[0, 0, 0]
    method = getattr(wrong, fault)
    monkeypatch.setattr(OpenVinoRunner, "infer", partialmethod_of(method))
    found = verified(world.openvino)
    assert MISBEHAVING[fault] in fallen(found)
    assert found.diagnosis.rung == "compiled"


class Later:
    """An output that is computed when it is read, as of a device that nobody waited for."""

    def __init__(self, found):
        self.found = found

    def __array__(self, dtype=None, copy=None):
        time.sleep(0.03)
        return self.found


def test_latency_measured_without_waiting(world, verified, monkeypatch):
    def infer(runner, call):
        return {name: Later(found) for name, found in rightly(runner, call).items()}

    rightly = OpenVinoRunner.infer
    monkeypatch.setattr(OpenVinoRunner, "infer", infer)
    found = verified(world.openvino, rounds=5, limits={"max_latency_ms": 30.0})
    assert fallen(found) == {"latency"}
    assert found.latency.artifact.median_ms > 30 * 4


def test_bfloat16_called_float32(world, verified):
    """A run whose every layer rounds as bfloat16 does, by weights of so many bits."""
    from vadexport.backends.openvino import compiler

    def rounded(graph):
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
                found = torch.from_numpy(numpy_helper.to_array(tensor).copy()).bfloat16().float()
                tensor.CopyFrom(numpy_helper.from_array(found.numpy(), tensor.name))

    folder = world.folder / "bfloat16"
    shutil.copytree(world.openvino, folder)
    onnx.save(changed(world.graphs["rewritten"], rounded), world.folder / "bfloat16.onnx")
    compiler.compile_graph(world.folder / "bfloat16.onnx", folder, OPENVINO)
    write_manifest(folder, read_manifest(folder))
    found = verified(folder)
    assert "drift" in fallen(found)
    assert found.diagnosis.rung == "compiled"


def test_images_of_a_call_mixed_up(world, verified, monkeypatch, tmp_path):
    traced = trace(world.detector, replace(world.detector.image_input, batch=4))
    monkeypatch.setattr(graphs, "trace", lambda *_: traced)
    source = world.folder / "detector.safetensors"
    build(BuildOptions(source, tmp_path / "four", (OPENVINO,), batch=4), Listener())
    assert verified(tmp_path / "four").held
    rightly = OpenVinoRunner.infer
    monkeypatch.setattr(
        OpenVinoRunner,
        "infer",
        lambda runner, call: {k: v[::-1].copy() for k, v in rightly(runner, call).items()},
    )
    found = verified(tmp_path / "four")
    assert {"drift", "map"} <= fallen(found)
    assert found.diagnosis.rung == "compiled"


def test_a_wrong_file_that_is_served(world, served, verified):
    folder = served(changed(world.graphs["rewritten"], blue_first))
    (folder / "model.onnx").write_bytes((world.onnxruntime / "model.onnx").read_bytes() + b" ")
    with pytest.raises(InputError, match=r"model\.onnx"):
        verified(folder)


def test_the_artifact_of_another_detector(world, served, verified):
    def other_bank(graph):
        edit(graph, bank(graph), lambda rows: np.roll(rows, 1, 0))

    found = verified(served(changed(world.graphs["rewritten"], other_bank)))
    assert "drift" in fallen(found)
    assert found.diagnosis.rung == "graph"


# ------------------------------------------------------------------------------- harmless
def another_order_of_constants(graph):
    found = list(graph.initializer)[::-1]
    del graph.initializer[:]
    graph.initializer.extend(found)


def another_order_of_outputs(graph):
    found = list(graph.output)[::-1]
    del graph.output[:]
    graph.output.extend(found)


def nodes_without_names(graph):
    for node in graph.node:
        node.name = ""


def an_unused_constant(graph):
    constant(graph, np.zeros(3, np.float32))


def an_identity(graph):
    insert_after(graph, "raw_score", ("Identity", [], {}))


def scaled_and_back(graph):
    node = convolutions(graph)[1]
    edit(graph, node.input[1], lambda weight: 2 * weight)
    edit(graph, node.input[2], lambda bias: 2 * bias)
    half = constant(graph, np.array(0.5, np.float32))
    insert_after(graph, node.output[0], ("Mul", [half], {}))


def weights_rounded_in_the_last_place(graph):
    rng = np.random.default_rng(0)

    def nudged(weight):
        return (weight * (1 + 6e-8 * rng.choice([-1, 1], weight.shape))).astype(np.float32)

    for node in convolutions(graph):
        edit(graph, node.input[1], nudged)


def two_transpositions(graph):
    twice = [("Transpose", [], {"perm": [0, 1, 3, 2]})] * 2
    insert_after(graph, "preprocessed", *twice)


def a_wide_clip(graph):
    ends = [constant(graph, np.array(end, np.float32)) for end in (-1e6, 1e6)]
    insert_after(graph, convolutions(graph)[2].output[0], ("Clip", ends, {}))


def a_note(graph):
    graph.doc_string = "made on another day"


HARMLESS = [
    another_order_of_constants,
    another_order_of_outputs,
    nodes_without_names,
    an_unused_constant,
    an_identity,
    scaled_and_back,
    weights_rounded_in_the_last_place,
    two_transpositions,
    a_wide_clip,
    a_note,
]


@pytest.mark.parametrize("change", HARMLESS, ids=lambda change: change.__name__)
def test_a_harmless_change(world, served, verified, change):
    found = verified(served(changed(world.graphs["rewritten"], change)))
    assert fallen(found) == set()
    assert found.diagnosis is None


@pytest.mark.parametrize("step", ["traced", "simplified", "rewritten"])
def test_another_step_of_the_build(world, served, verified, step):
    assert verified(served(world.graphs[step])).held


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_what_was_built(world, verified, name):
    assert verified(getattr(world, name), repeat=1).held
