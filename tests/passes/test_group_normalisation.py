"""Group normalisation without a change of layout: PyTorch's in float64, on random sizes."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.half_graphs import graph, run
from vadexport.building.compiling import compile_graph
from vadexport.passes import apply_passes
from vadexport.passes.group_normalisation import GroupNormalisation
from vadexport.targets import Target
from vadexport.tracing.graph import export_module

EPSILON = 1e-5


def written(batch=2, groups=3, size=2, plane=(4, 5), opset=20, *, seed=0, **changed):
    """As PyTorch writes it; any line and any constant may be another."""
    random = np.random.default_rng(seed)
    channels = groups * size
    lines = {
        "split": "split = Reshape(x, three)",
        "normal": f"normal = InstanceNormalization<epsilon = {EPSILON}>(split, ones, zeros)",
        "joined": "joined = Reshape(normal, four)",
        "scaled": "scaled = Mul(joined, weight)",
        "y": "y = Add(scaled, bias)",
    }
    lines |= {name: line for name, line in changed.items() if name in lines}
    values = {
        "three": np.array([0, groups, -1]),
        "four": np.array([batch, channels, *plane]),
        "ones": random.normal(size=groups),
        "zeros": random.normal(size=groups),
        "weight": random.normal(size=(channels, 1, 1)),
        "bias": random.normal(size=(1, channels, 1, 1)),
    }
    values |= {name: value for name, value in changed.items() if name in values}
    outputs = ["float[n, c, h, w] y", *changed.get("also", ())]
    sizes = ",".join(map(str, (batch, channels, *plane)))
    model = graph(f"float[{sizes}] x", "\n".join(lines.values()), ", ".join(outputs), **values)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", opset))
    return model, values


def rewritten(model):
    made, places = apply_passes(model, (GroupNormalisation(),))
    onnx.checker.check_model(made, full_check=True)
    return made, places["group-normalisation"]


def exact(x, values, groups):
    """Of float64."""
    data = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in values.items()}
    size = x.shape[1] // groups
    found = torch.nn.functional.group_norm(torch.from_numpy(x).double(), groups, eps=EPSILON)
    for scale, shift in (("ones", "zeros"), ("weight", "bias")):
        of = [data[name].double().reshape(-1) for name in (scale, shift)]
        factor, offset = (
            (each.repeat_interleave(size) if len(each) == groups < x.shape[1] else each)
            for each in of
        )
        found = found * factor[None, :, None, None] + offset[None, :, None, None]
    return found.numpy()


@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(2, 4)),
    plane=st.tuples(st.integers(1, 9), st.integers(2, 9)),
    opset=st.sampled_from([18, 20, 22]),
    offset=st.sampled_from([0.0, 100.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=80)
def test_is_pytorchs(batch, channels, plane, opset, offset, seed):
    groups, size = channels
    model, values = written(batch, groups, size, plane, opset, seed=seed)
    made, places = rewritten(model)
    assert places == 1
    x = offset + np.random.default_rng(seed).normal(size=(batch, groups * size, *plane))
    x = x.astype(np.float32)
    expected = exact(x, values, groups)
    errors = [np.abs(run(each, x=x)["y"] - expected).max() for each in (model, made)]
    # Values of a few units; means of 100 are rounded by 1e-5.
    assert errors[1] <= 3 * errors[0] + 1e-5 * (1 + offset)


def test_what_the_exporter_writes_of_any_batch():
    torch.manual_seed(2)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(4, 8)).eval()
    with torch.no_grad():
        layers[1].weight.uniform_(-2, 2)
        layers[1].bias.uniform_(-2, 2)
    for dynamic in (False, True):
        x = torch.randn(2, 3, 9, 7)
        model = export_module(layers, (x,), ["x"], ["y"], dynamic=dynamic)
        made, places = rewritten(model)
        assert places == 1
        assert "Reshape" not in {node.op_type for node in made.graph.node}
        for count in (1, 2, 5) if dynamic else (2,):
            x = torch.randn(count, 3, 9, 7)
            expected = layers(x).detach().numpy()
            np.testing.assert_allclose(run(made, x=x.numpy())["y"], expected, atol=1e-5)


@pytest.mark.parametrize("applies", [True, False])
def test_openvino_compiles_it(tmp_path, applies):
    import openvino

    model, values = written(**{} if applies else {"y": "y = Sub(scaled, bias)"})
    onnx.save(model, tmp_path / "graph.onnx")
    (tmp_path / "a").mkdir()
    facts = compile_graph(tmp_path / "graph.onnx", tmp_path / "a", Target("openvino", "fp32"))
    assert facts == ({"passes": {"group-normalisation": 1}} if applies else {})
    graph = openvino.Core().read_model(tmp_path / "a" / "model.xml")
    assert ("MVN" in {node.get_type_name() for node in graph.get_ops()}) != applies
    x = np.random.default_rng(4).normal(size=(2, 6, 4, 5)).astype(np.float32)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    (found,) = openvino.compile_model(graph, "CPU", settings)([x]).values()
    np.testing.assert_allclose(found, run(model, x=x)["y"], atol=1e-5)
    if applies:
        np.testing.assert_allclose(found, exact(x, values, 3), atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"scaled": "scaled = Mul(joined, x)"},
        {"y": "y = Sub(scaled, bias)"},
        {"weight": np.ones((4, 5))},
        {"normal": "normal = Relu(split)"},
        {"four": np.array([2, 6, 5, 4])},
        {"three": np.array([1, 6, -1]), "ones": np.ones(6), "zeros": np.zeros(6)},
        {"also": ["float[n, g, m] split"]},
        {"also": ["float[n, c, h, w] joined"]},
        {"also": ["float[n, c, h, w] scaled"]},
    ],
    ids=[
        "factor computed",
        "subtracted",
        "weights of pixels",
        "no normalisation",
        "turned",
        "of the whole batch",
        "groups read elsewhere",
        "normalised read elsewhere",
        "scaled read elsewhere",
    ],
)
def test_left_alone(changed):
    model, _ = written(**changed)
    made, places = rewritten(model)
    assert places == 0
    assert list(made.graph.node) == list(model.graph.node)
