"""Weights that bfloat16 rounds together, against each one's nearest."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from tests.passes.half_graphs import graph, names, run
from vadexport.calibration.bfloat16 import (
    importance,
    nearest,
    round_weights,
    rounded,
    write_bfloat16,
)


def cost(weights, bias, made, mean, covariance):
    """Of each output channel: mean squared error of its output, and the ridge's part."""
    error, shift = made - weights, nearest(bias) - bias
    found = np.einsum("god,gde,goe->go", error, importance(mean, covariance), error)
    return found + 2 * shift * np.einsum("god,gd->go", error, mean) + shift**2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(1, 3, 8), (4, 1, 9), (2, 2, 1)]))
def test_each_is_a_neighbour_and_no_channel_is_worse_than_with_the_nearest(seed, shape):
    random = np.random.default_rng(seed)
    weights = random.normal(size=shape) * 10.0 ** random.integers(-6, 3, shape)
    weights[random.random(shape) < 0.2] = random.choice([0.0, 1.0, -0.5])  # exact in bfloat16
    bias = random.normal(size=shape[:2])
    columns = random.normal(size=(shape[0], 30, shape[2])) + random.normal(size=shape[2]) * 3
    mean = columns.mean(axis=1)
    apart = columns - mean[:, None]
    covariance = apart.transpose(0, 2, 1) @ apart / 30
    made = rounded(weights, bias, mean, covariance)
    np.testing.assert_array_equal(made, nearest(made))
    up, down = (np.nextafter(nearest(weights).astype(ml_dtypes.bfloat16), ml_dtypes.bfloat16(end))
                for end in (np.inf, -np.inf))  # fmt: skip
    low = np.where(nearest(weights) > weights, down.astype(float), nearest(weights))
    high = np.where(nearest(weights) < weights, up.astype(float), nearest(weights))
    assert np.all((made == low) | (made == high))
    simple = cost(weights, bias, nearest(weights), mean, covariance)
    assert np.all(cost(weights, bias, made, mean, covariance) <= simple * (1 + 1e-9) + 1e-300)


@pytest.fixture
def edges():
    """A depthwise layer of edge filters, and a layer that mixes, on bright images."""
    random = np.random.default_rng(2)
    filters = random.normal(size=(8, 1, 3, 3))
    return graph(
        "float[1,8,12,12] image",
        """
        edges = Conv<pads = [1,1,1,1], group = 8>(image, w1, b1)
        features = Conv(edges, w2, b2)
        raw_score = ReduceMax<keepdims = 0>(features, rest)
        """,
        "float[1] raw_score, float[1,8,12,12] features",
        w1=filters - filters.mean(axis=(2, 3), keepdims=True),
        b1=random.normal(size=8),
        w2=random.normal(size=(8, 8, 1, 1)),
        b2=random.normal(size=8),
        rest=np.array([1, 2, 3]),
    )


def bright(seed):
    random = np.random.default_rng(seed)
    return (random.uniform(3, 6) + random.normal(size=(1, 8, 12, 12)) / 4).astype(np.float32)


def test_what_leaves_a_network_is_nearer_than_with_the_nearest(edges, tmp_path):
    network = names(edges) - {"raw_score"}
    together = onnx.ModelProto.FromString(edges.SerializeToString())
    round_weights(together, network, [bright(seed) for seed in range(8)])
    errors = {"nearest": [], "together": []}
    rounds = {}
    for name, model in (("nearest", edges), ("together", together)):
        rounds[name] = onnx.ModelProto.FromString(model.SerializeToString())
        for tensor in rounds[name].graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                stored = nearest(numpy_helper.to_array(tensor).astype(float)).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(stored, tensor.name))
    for seed in range(100, 110):  # images that rounded nothing
        expected = run(edges, image=bright(seed))["features"]
        for name, model in rounds.items():
            errors[name].append(np.square(run(model, image=bright(seed))["features"] - expected))
    assert np.mean(errors["together"]) < np.mean(errors["nearest"]) / 4
    onnx.save(edges, tmp_path / "m.onnx")
    write_bfloat16(tmp_path / "m.onnx", network, [bright(0)], tmp_path / "b.onnx")
    kinds = {each.name: each.data_type for each in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert kinds["w1/bfloat16"] == TensorProto.BFLOAT16
