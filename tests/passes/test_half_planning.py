import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.passes.half_graphs import (
    WEIGHTS,
    graph,
    in_network,
    names,
    planned,
    residual_network,
)
from vadexport.passes.half_precision import HEADROOM, half_candidates, layers_of, observed_tensors


@pytest.fixture
def network():
    return residual_network()


def test_candidates_are_float32_nodes_of_the_network(network):
    found = [node.name for node in half_candidates(network, in_network(network))]
    assert found == ["c1", "r1", "c2", "sum", "r2", "pooled", "c3", "heat"]
    whole = [node.name for node in half_candidates(network, names(network))]
    assert whole == [*found, "squared"]  # a sum of many values never


def test_observed_are_their_inputs_and_outputs_without_sizes(network):
    found = observed_tensors(half_candidates(network, in_network(network)))
    assert len(set(found)) == len(found)
    inner = {"c1", "r1", "c2", "sum", "r2", "pooled", "c3", "heat"}
    assert set(found) == {"image", *WEIGHTS, *inner}


@pytest.mark.parametrize(("share", "fits"), [(1.0, True), (1.001, False)])
def test_a_value_needs_its_headroom(network, share, fits):
    assert HEADROOM == 4
    plan, half = planned(network, {"c2": share * 65504 / 4})
    assert ("c2" in plan.nodes) == fits
    assert (plan.kept_layers == {}) == fits
    if not fits:
        (reason,) = plan.kept_layers
        assert reason == "c2 reaches 1.64e+04, float16 ends at 65504"
        # What reads it cannot have it either; what lies around is float16 still.
        assert {node.name for node in plan.kept} == {"c2", "sum"}
        assert {"c1", "r1", "c3"} <= plan.nodes
        assert plan.layers == 2
        onnx.checker.check_model(half, full_check=True)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_value_that_is_not_finite_does_not_fit(network, value):
    plan, _ = planned(network, {"c1": value})
    assert not {"c1", "r1"} & plan.nodes


@pytest.mark.parametrize(("value", "fits"), [(2.0**-14, True), (2.0**-14.1, False), (0, True)])
def test_a_value_that_is_always_tiny_keeps_its_bits(network, value, fits):
    plan, _ = planned(network, {"c3": value})
    assert ("c3" in plan.nodes) == fits
    if not fits:
        assert "c3 reaches no more than" in plan.kept[0].reason


@pytest.mark.parametrize(("largest", "fits"), [(65504, True), (65600, False)])
def test_a_weight_needs_no_headroom_but_must_fit(largest, fits):
    model = graph("float[1,2] x", "y = MatMul(x, w)", "float[1,2] y", w=np.eye(2) * largest)
    plan, half = planned(model)
    assert (plan.layers == 1) == fits
    assert sum(plan.kept_layers.values()) == 1 - fits
    weights = [numpy_helper.to_array(each) for each in half.graph.initializer]
    assert all(np.isfinite(weight).all() for weight in weights)


def test_weights_so_small_that_all_their_bits_would_go():
    model = graph("float[1,2] x", "y = MatMul(x, w)", "float[1,2] y", w=np.eye(2) * 1e-6)
    plan, _ = planned(model)
    assert plan.layers == 0
    assert plan.kept[0].reason == "w reaches no more than 1e-06, too little for float16"


def test_what_is_wanted_in_float32_stays_so_for_the_reason_given(network):
    plan, _ = planned(network, in_full={"c1": "it is first", "r2": "it is late"})
    assert not {"c1", "r1", "r2"} & plan.nodes  # r1 follows no layer in float16
    assert plan.kept_layers == {"it is first": 1}
    assert [(node.name, node.layer) for node in plan.kept] == [("c1", True), ("r2", False)]


def test_layers_come_with_what_follows_them(network):
    plan, _ = planned(network, network_nodes=in_network(network))
    assert layers_of(network, plan) == [
        ["c1", "r1"],
        ["c2", "sum", "r2", "pooled"],
        ["c3", "heat"],
    ]
