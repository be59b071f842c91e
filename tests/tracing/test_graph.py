from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vadexport import contract
from vadexport.tracing import graph as tracing
from vadexport.tracing.graph import simplify, trace

CASES = [("plain", 1), ("plain", 3), ("resizing", 1), ("resizing", None)]
STEPS = ["traced", "simplified"]
#: Only these quantised nodes exist in a score head or in preprocessing.
HEAD = {
    "plain": {"MatMul": 1, "ReduceMin": 1, "Sqrt": 1, "AveragePool": 2, "Concat": 1, "Greater": 2},
    "resizing": {"ReduceMin": 1, "Sqrt": 2, "AveragePool": 2, "Softmax": 1, "Greater": 2},
}


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}@{case[1] or 'dynamic'}")
def case(request, graph_of, crops, coloured):
    """Name, detector, batch, the graphs of both steps, and images it was not fitted on."""
    name, batch = request.param
    images = {"plain": crops, "resizing": coloured}[name]
    unseen = np.stack([255 - image[:, ::-1] for image in images])
    return name, request.getfixturevalue(name), batch, graph_of(name, batch), unseen


def session(graph):
    data = graph.model.SerializeToString()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def run(opened, images):
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(None, {contract.INPUT_NAME: images}), strict=True))


@pytest.mark.parametrize("step", STEPS)
def test_every_image_scores_as_in_pytorch(case, step):
    _, detector, batch, graphs, images = case
    opened = session(graphs[STEPS.index(step)])
    spread = detector.thresholds.maximum - detector.thresholds.minimum
    for count in [batch] if batch else [1, 2, 5]:
        found = run(opened, images[:count])
        for number in range(count):
            with torch.inference_mode():
                expected = detector(torch.from_numpy(images[number : number + 1].copy()))
            for name in ("raw_score", "anomaly_map"):
                difference = np.abs(found[name][number] - expected[name][0].numpy()).max()
                assert difference < 1e-4 * spread, (name, count, number)
            difference = np.abs(found["pred_score"][number] - expected["pred_score"][0].numpy())
            assert difference < 1e-4
            clear = (expected["anomaly_map"][0] - detector.thresholds.pixel).abs() > 1e-4 * spread
            wrong = torch.from_numpy(found["pred_mask"][number]) != expected["pred_mask"][0]
            assert not (wrong & clear).any()
            assert found["pred_label"][number] == expected["pred_label"][0].item()


@pytest.mark.parametrize("step", STEPS)
def test_inputs_and_outputs_are_those_of_the_contract(case, step):
    _, detector, batch, graphs, images = case
    graph = graphs[STEPS.index(step)]
    onnx.checker.check_model(graph.model, full_check=True)
    (opset,) = graph.model.opset_import
    assert (opset.domain, opset.version) == ("", tracing.OPSET)
    opened = session(graph)
    (image,) = opened.get_inputs()
    assert image.name == contract.INPUT_NAME
    assert image.type == "tensor(uint8)"
    assert image.shape[1:] == list(images.shape[1:])
    height, width = detector.preprocessing.config.size
    wanted = {
        "pred_score": ("tensor(float)", []),
        "raw_score": ("tensor(float)", []),
        "pred_label": ("tensor(bool)", []),
        "anomaly_map": ("tensor(float)", [1, height, width]),
        "pred_mask": ("tensor(bool)", [1, height, width]),
    }
    assert tuple(wanted) == contract.OUTPUT_NAMES
    assert [output.name for output in opened.get_outputs()] == list(wanted)
    for output in opened.get_outputs():
        dtype, shape = wanted[output.name]
        assert (output.type, output.shape[1:]) == (dtype, shape), output.name
        if batch:
            assert output.shape[0] == batch
        else:
            assert isinstance(output.shape[0], str)
    for name, value in run(opened, images[: batch or 2]).items():
        assert value.shape == (batch or 2, *wanted[name][1])


@pytest.mark.parametrize("step", STEPS)
def test_network_nodes_are_the_backbone_and_nothing_else(case, step):
    name, detector, _, graphs, _ = case
    graph = graphs[STEPS.index(step)]
    nodes = graph.model.graph.node
    assert all(node.name for node in nodes)
    assert len({node.name for node in nodes}) == len(nodes)
    network = graph.network_nodes()
    inside = Counter(node.op_type for node in nodes if node.name in network)
    outside = Counter(node.op_type for node in nodes if node.name not in network)
    backbone = [m for m in detector.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert inside["Conv"] == len(backbone)
    assert outside["Conv"] == 2  # the blur
    allowed = {"Conv", "Clip", "Add", "Pad", "BatchNormalization", "Identity", "Constant"}
    assert inside.keys() <= allowed
    for op_type, count in HEAD[name].items():
        assert outside[op_type] == count, op_type
    preprocessing = {"Transpose", "Cast", "Div", "Sub"}
    assert preprocessing <= outside.keys()
    assert outside["MatMul"] == (3 if name == "resizing" else 1)


@pytest.mark.parametrize("step", STEPS)
def test_the_seams_cut_the_graph(case, step):
    _, detector, batch, graphs, images = case
    graph = graphs[STEPS.index(step)]
    assert graph.seams == ("preprocessed", "feature_0", "feature_1")
    marked = onnx.ModelProto()
    marked.CopyFrom(graph.model)
    known = {value.name: value for value in marked.graph.value_info}
    marked.graph.output.extend(known[name] for name in graph.seams)
    opened = session(replace(graph, model=marked))
    found = run(opened, images[: batch or 1])
    with torch.inference_mode():
        x = detector.preprocessing(torch.from_numpy(images[: batch or 1].copy()))
        features = detector.network(x)
    for name, expected in zip(graph.seams, (x, *features), strict=True):
        scale = float(expected.abs().max())
        np.testing.assert_allclose(found[name], expected.numpy(), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("step", STEPS)
def test_no_path_and_no_trace_is_in_the_bytes(case, step):
    _, _, _, graphs, _ = case
    data = graphs[STEPS.index(step)].model.SerializeToString()
    for text in (
        b"/work",
        b"/home",
        b"/root",
        b"/tmp",
        b"site-packages",
        b".py",
        b"File ",
        b"line ",
    ):
        assert text not in data, text


def test_two_traces_give_the_same_bytes(resizing, graph_of):
    first, first_simple = graph_of("resizing", None)
    second = trace(resizing, replace(resizing.image_input, batch=None))
    assert second.model.SerializeToString(deterministic=True) == first.model.SerializeToString(
        deterministic=True
    )
    assert simplify(second).model.SerializeToString() == first_simple.model.SerializeToString()


def test_simplifying_folds_batch_norms_and_leaves_its_input_alone(graph_of):
    traced, simplified = graph_of("plain", 1)
    before = traced.model.SerializeToString()
    again = simplify(traced)
    assert traced.model.SerializeToString() == before
    assert again.model.SerializeToString() == simplified.model.SerializeToString()
    types = Counter(node.op_type for node in simplified.model.graph.node)
    assert "BatchNormalization" not in types
    assert len(simplified.model.graph.node) < len(traced.model.graph.node)


def test_tracing_leaves_the_detector_alone(plain, graph_of, crops):
    image = torch.from_numpy(crops[3])[None]
    with torch.inference_mode():
        before = plain(image)
    graph_of("plain", 1)
    with torch.inference_mode():
        after = plain(image)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not plain.training


def test_a_detector_beyond_what_one_file_holds_is_refused(plain, monkeypatch):
    monkeypatch.setattr(tracing, "_PROTOBUF_LIMIT", 10_000)
    with pytest.raises(tracing.InputError, match="2 GB that one ONNX file can hold"):
        trace(plain, plain.image_input)


@pytest.mark.parametrize("gone", [(), ("gone",)], ids=["unknown", "left out by a rewrite"])
def test_without_known_features_the_network_ends_at_the_last_convolution(graph_of, gone):
    """PatchCore's blur is a convolution, too, but of one channel: behind the distances."""
    known = graph_of("plain", 1)[1]
    unknown = replace(known, seams=(*known.seams[:1], *gone))
    kinds = {node.name: node.op_type for node in known.model.graph.node}
    found, expected = unknown.network_nodes(), known.network_nodes()
    assert found <= expected
    convolutions = {name for name, kind in kinds.items() if kind == "Conv" and name in expected}
    assert convolutions <= found
    assert "MatMul" not in {kinds[name] for name in found}


class Transformer(torch.nn.Module):
    """A token for each 8 × 8 pixels, a layer with attention, and distances to a bank."""

    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(1, 16, 8, 8)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.bank = torch.nn.Parameter(torch.randn(20, 16))

    def forward(self, image):
        tokens = self.layer(self.patches(image).flatten(2).mT)
        squares = tokens.square().sum(-1, keepdim=True) + self.bank.square().sum(-1)
        return (squares - 2 * tokens @ self.bank.T).amin(2).amax(1)


def test_a_transformer_ends_at_its_last_normalisation():
    torch.manual_seed(3)
    inputs = (torch.zeros(1, 1, 32, 32),)
    model = torch.onnx.export(Transformer().eval(), inputs, dynamo=True, verbose=False).model_proto
    found = tracing.TracedGraph(model, ()).network_nodes()
    behind = {node.op_type for node in model.graph.node if node.name not in found}
    assert "LayerNormalization" not in behind
    assert {"ReduceMin", "ReduceMax", "MatMul"} <= behind
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert sum(node.name not in found for node in products) == 1  # with the bank
