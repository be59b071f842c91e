import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from tests.passes.half_graphs import (
    WEIGHTS,
    graph,
    in_network,
    names,
    planned,
    residual_network,
    run,
    stored_as_half,
)
from vadexport.passes.half_rounding import rounded_as_half

RNG = np.random.default_rng(3)
IMAGES = RNG.normal(size=(2, 3, 16, 16)).astype(np.float32)


@pytest.fixture
def network():
    return residual_network()


def by_name(model):
    return {node.name: node for node in model.graph.node}


def half_tensors(model):
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == 10}


class TestResult:
    def test_is_what_pytorch_gives_with_float16_storage(self, network):
        def stored(tensor):
            return tensor.half().float()

        w1, b1, w2, w3 = (
            stored(torch.from_numpy(value.astype(np.float32))) for value in WEIGHTS.values()
        )
        r1 = stored(functional.conv2d(stored(torch.from_numpy(IMAGES)), w1, b1, padding=1)).relu()
        block = stored(stored(functional.conv2d(r1, w2, padding=1)) + r1).relu()
        c3 = stored(functional.conv2d(functional.max_pool2d(block, 2), w3))
        resized = stored(functional.interpolate(c3, scale_factor=2, mode="bilinear"))
        _, half = planned(network, network_nodes=in_network(network))
        found = run(rounded_as_half(half), image=IMAGES)
        # Sums of another order may round one float16 otherwise here and there.
        step = 2**-11 * float(resized.abs().max())
        difference = np.abs(found["heat"] - resized.numpy())
        assert difference.max() <= 2 * step
        assert np.mean(difference > 0) < 0.01
        expected = (resized**2).sum(dim=(1, 2, 3)).numpy()
        np.testing.assert_allclose(found["score"], expected, rtol=1e-4)

    def test_is_what_numpy_gives_with_float16_storage(self, network):
        _, half = planned(network, network_nodes=in_network(network))
        found, expected = (
            run(rounded_as_half(half), image=IMAGES),
            stored_as_half(half, image=IMAGES),
        )
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=2e-3)
        exact = run(network, image=IMAGES)
        assert 0 < np.abs(found["heat"] - exact["heat"]).max() < 0.01 * np.abs(exact["heat"]).max()

    def test_is_a_valid_graph_that_onnx_runtime_takes(self, network):
        plan, half = planned(network, network_nodes=in_network(network))
        onnx.checker.check_model(half, full_check=True)
        assert plan.layers == 3
        found = run(half, image=IMAGES)
        assert {name: value.dtype for name, value in found.items()} == {
            "heat": np.float32,
            "score": np.float32,
        }
        assert half.graph.output == network.graph.output
        assert half.graph.input == network.graph.input
        assert len(names(half)) == len(half.graph.node)

    def test_leaves_what_it_was_given_alone(self, network):
        before = network.SerializeToString(deterministic=True)
        _, half = planned(network)
        assert network.SerializeToString(deterministic=True) == before
        assert half.SerializeToString() != before

    def test_nodes_outside_of_the_network_stay_byte_for_byte(self, network):
        _, half = planned(network, network_nodes=in_network(network))
        for name in ("squared", "score"):
            old, new = by_name(network)[name], by_name(half)[name]
            assert new.SerializeToString() == old.SerializeToString()

    def test_without_a_layer_nothing_changes(self, network):
        plan, half = planned(network, network_nodes=frozenset({"r1", "sum", "pooled"}))
        assert (plan.nodes, plan.layers, plan.kept) == (frozenset(), 0, ())
        assert half == network

    def test_weights_are_there_once_and_rounded_to_the_nearest(self, network):
        _, half = planned(network)
        kept = {each.name: numpy_helper.to_array(each) for each in half.graph.initializer}
        assert set(kept) == {"w1/half", "b1/half", "w2/half", "w3/half", "scales", "axes"}
        for name, value in WEIGHTS.items():
            expected = value.astype(np.float32).astype(np.float16)
            np.testing.assert_array_equal(kept[f"{name}/half"], expected)

    def test_a_weight_that_both_kinds_read_is_there_in_both(self):
        model = graph(
            "float[1,4] x",
            "a = MatMul(x, w)\n full = ReduceSum<keepdims = 0>(w)\n y = Add(a, full)",
            "float[1,4] y",
            w=np.eye(4),
        )
        _, half = planned(model, network_nodes=frozenset({"a"}))
        onnx.checker.check_model(half, full_check=True)
        types = {each.name: each.data_type for each in half.graph.initializer}
        assert types == {"w": TensorProto.FLOAT, "w/half": TensorProto.FLOAT16}
        assert run(half, x=np.ones((1, 4), np.float32))["y"].tolist() == [[5, 5, 5, 5]]


class TestCasts:
    def test_a_tensor_that_both_kinds_read_is_cast_once(self):
        model = graph(
            "float[1,4] x",
            """
            a = MatMul(x, w)
            b = Relu(a)
            root = Sqrt(b)
            other = Exp(b)
            y = Add(root, other)
            """,
            "float[1,4] y, float[1,4] b",
            w=np.eye(4) / 3,
        )
        plan, half = planned(model, network_nodes=frozenset({"a", "b", "root", "other"}))
        assert plan.nodes == {"a", "b"}
        onnx.checker.check_model(half, full_check=True)
        casts = [node for node in half.graph.node if node.op_type == "Cast"]
        assert sorted(node.output[0] for node in casts) == ["b", "x/half"]
        x = np.array([[1, 2, 3, 0]], np.float32)
        b = (np.float16(1 / 3).astype(np.float32) * x).astype(np.float16).astype(np.float32)
        found = run(rounded_as_half(half), x=x)
        np.testing.assert_array_equal(found["b"], b)
        np.testing.assert_allclose(found["y"], np.sqrt(b) + np.exp(b), rtol=1e-6)

    def test_between_two_nodes_in_float16_there_is_none(self, network):
        _, half = planned(network, network_nodes=in_network(network))
        casts = {n.output[0] for n in half.graph.node if n.op_type == "Cast"}
        assert casts == {"image/half", "heat"}

    def test_movers_between_float32_nodes_stay_float32(self):
        model = graph(
            "float[2,4] x",
            """
            turned = Transpose(x)
            e = Exp(turned)
            back = Transpose(e)
            both = Concat<axis = 0>(back, x)
            y = MatMul(both, w)
            """,
            "float[4,4] y",
            w=np.eye(4),
        )
        plan, half = planned(model)
        assert plan.nodes == {"y"}
        assert half_tensors(half) == {"both/half", "y/half"}

    def test_sizes_scales_and_indices_keep_their_type(self):
        model = graph(
            "float[1,4,5,5] x",
            """
            c = Conv(x, w)
            clipped = Clip(c, low, high)
            padded = Pad(clipped, pads, fill)
            resized = Resize<mode = "linear">(padded, , scales)
            both = Concat<axis = 1>(resized, resized)
            cut = Slice(both, starts, ends, axes)
            taken = Gather<axis = 1>(cut, indices)
            y = Reshape(taken, shape)
            """,
            "float[1,2,100] y",
            w=np.eye(4).reshape(4, 4, 1, 1),
            low=np.array(0.0),
            high=np.array(6.0),
            pads=np.array([0, 0, 0, 0, 0, 0, 0, 0]),
            fill=np.array(0.5, np.float32),
            scales=np.array([1, 1, 2, 2.0]),
            starts=np.array([0]),
            ends=np.array([6]),
            axes=np.array([1]),
            indices=np.array([1, 4]),
            shape=np.array([1, 2, -1]),
        )
        plan, half = planned(model)
        assert plan.nodes == names(model)
        onnx.checker.check_model(half, full_check=True)
        inputs = {name: list(node.input) for name, node in by_name(half).items()}
        assert inputs["clipped"] == ["c/half", "low/half", "high/half"]
        assert inputs["padded"] == ["clipped/half", "pads", "fill/half"]
        assert inputs["resized"] == ["padded/half", "", "scales"]
        assert inputs["both"] == ["resized/half", "resized/half"]
        assert inputs["taken"] == ["cut/half", "indices"]
        x = RNG.normal(size=(1, 4, 5, 5)).astype(np.float32) * 5
        found, expected = run(rounded_as_half(half), x=x), stored_as_half(half, x=x)
        np.testing.assert_array_equal(found["y"], expected["y"])

    def test_what_a_loop_reads_from_outside_stays_float32(self):
        model = looping()
        plan, half = planned(model)
        assert plan.nodes == {"step", "grown"}
        onnx.checker.check_model(half, full_check=True)
        assert half_tensors(half) == {"x/half", "step/half", "grown/half"}
        x = np.array([[0.1, 0.2]], np.float32)
        step = x.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(run(rounded_as_half(half), x=x)["y"], 3 * step)


def looping():
    """Adds x·1, a network's output, three times inside a Loop."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["old", "grown"], ["new"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("old", TensorProto.FLOAT, [1, 2]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("new", TensorProto.FLOAT, [1, 2]),
        ],
    )
    model = graph(
        "float[1,2] x",
        "step = MatMul(x, one)\n grown = Identity(step)\n y = Identity(grown)",
        "float[1,2] y",
        one=np.eye(2),
        trips=np.array(3),
        zero=np.zeros((1, 2)),
    )
    loop = helper.make_node("Loop", ["trips", "", "zero"], ["y"], "loop", body=body)
    model.graph.node[-1].CopyFrom(loop)
    onnx.checker.check_model(model, full_check=True)
    return model
