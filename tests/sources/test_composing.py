from dataclasses import replace

import onnx
import pytest
from onnx import helper

from vadexport import contract
from vadexport.errors import InputError
from vadexport.sources import SourceSpec, open_source
from vadexport.tracing.composing import compose
from vadexport.tracing.graph import OPSET, simplify, trace

NAMES = ["pred_score", "anomaly_map"]


@pytest.fixture
def detector(save_onnx, network):
    path = save_onnx(network("tuple"), NAMES)
    return open_source(SourceSpec(str(path), image_size=(50, 60), threshold=1.0)).detector


@pytest.mark.parametrize("batch", [1, 4, None])
@pytest.mark.parametrize("layout", ["nhwc", "float-nchw"])
def test_the_graph_is_that_of_the_contract(detector, batch, layout):
    image_input = replace(detector.image_input, batch=batch, layout=layout)
    graph = compose(detector, detector.onnx_network(), image_input)
    onnx.checker.check_model(graph.model, full_check=True)
    opsets = {each.domain: each.version for each in graph.model.opset_import}
    assert opsets[""] == OPSET
    (image,) = graph.model.graph.input
    assert image.name == contract.INPUT_NAME
    sizes = [dim.dim_value or None for dim in image.type.tensor_type.shape.dim]
    assert tuple(sizes) == image_input.shape
    outputs = [output.name for output in graph.model.graph.output]
    assert outputs == list(contract.OUTPUT_NAMES)
    for output in graph.model.graph.output:
        first = output.type.tensor_type.shape.dim[0]
        assert (first.dim_value or None) == batch, output.name
    names = [node.name for node in graph.model.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
    assert graph.seams == ("preprocessed",)
    assert simplify(graph).seams == graph.seams


def test_the_same_bytes_each_time(detector):
    first, second = (trace(detector, detector.image_input).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_nothing_of_the_makers_machine_is_left(save_onnx, network):
    path = save_onnx(network("tuple"), NAMES)
    model = onnx.load(path)
    model.doc_string = model.graph.doc_string = "/home/somebody"
    model.producer_name = "somebody"
    model.graph.node[0].doc_string = "/home/somebody"
    helper.set_model_props(model, {"path": "/home/somebody"})
    onnx.save(model, path)
    detector = open_source(SourceSpec(str(path))).detector
    assert b"somebody" not in trace(detector, detector.image_input).model.SerializeToString()


def test_an_operator_that_no_longer_is(detector):
    network = detector.onnx_network()
    network.graph.node[0].op_type = "Upsample"
    network.opset_import[0].version = 7
    with pytest.raises(InputError, match=f"cannot be taken to opset {OPSET}"):
        compose(detector, network, detector.image_input)


def test_the_network_is_made_once(detector, monkeypatch):
    make, made = type(detector).onnx_network, []
    monkeypatch.setattr(type(detector), "onnx_network", lambda own: made.append(own) or make(own))
    trace(detector, detector.image_input)
    assert len(made) == 1


def test_the_network_that_is_given_is_left_alone(detector):
    network = detector.onnx_network()
    before = network.SerializeToString(deterministic=True)
    compose(detector, network, detector.image_input)
    assert network.SerializeToString(deterministic=True) == before
