from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vadexport.passes import apply_passes
from vadexport.passes.mahalanobis import Mahalanobis


@dataclass
class Case:
    """`δᵀ A δ` at [positions], or `‖δᵀ W‖²`, as PyTorch exports it."""

    form: str = "inverse"  # or "lower", "upper", "full"
    positions: int = 3
    width: int = 40
    batch: int | str = 2
    opset: int = 20
    keepdims: int = 0
    by: str = "Mul"
    swapped: bool = False
    axis: int = -1
    outputs: tuple[str, ...] = ()
    again: str = ""
    other: bool = False
    dtype: Any = np.float32
    definite: bool = True
    images: int = 200
    scale: float = 1.0
    seed: int = 0

    def matrices(self):
        """Inverse covariances as PaDiM's: large where there were no data; or factors of them."""
        random = np.random.default_rng(self.seed)
        data = self.scale * random.normal(size=(self.positions, self.images, self.width))
        ridge = 0.01 * np.eye(self.width)
        covariance = data.transpose(0, 2, 1) @ data / self.images + ridge
        if self.form == "inverse":
            found = np.linalg.inv(covariance)
            if not self.definite:
                found[-1] -= 200 * np.eye(self.width)
            return found.astype(self.dtype)
        lower = np.tril(np.linalg.inv(np.linalg.cholesky(covariance)))
        if self.form == "full":
            return random.normal(size=lower.shape).astype(self.dtype)
        found = lower.transpose(0, 2, 1) if self.form == "upper" else lower
        return np.ascontiguousarray(found).astype(self.dtype)

    def model(self):
        add = helper.make_node
        nodes = [add("Identity", ["x"], ["delta"], "delta")]
        constants = {"a": self.matrices(), "two": np.float32(2), "axes": np.array([self.axis])}
        nodes.append(add("MatMul", ["delta", "a"], ["m"], "m"))
        other = "m"
        if self.form == "inverse":
            other = "delta"
        if self.other:
            nodes.append(add("Abs", ["delta"], ["sizes"], "sizes"))
            other = "sizes"
        factors = [other, "m"] if self.swapped else ["m", other]
        nodes.append(add(self.by, ["m", "two"] if self.by == "Pow" else factors, ["q"], "q"))
        nodes.append(add("ReduceSum", ["q", "axes"], ["y"], "y", keepdims=self.keepdims))
        outputs = ["y", *self.outputs]
        if self.again:
            nodes.append(add("Abs", [self.again], ["more"], "more"))
            outputs.append("more")
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        shape = [self.positions, self.batch, self.width]
        graph = helper.make_graph(
            nodes,
            "distance",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs],
            [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
        )
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9)
        return onnx.shape_inference.infer_shapes(model)

    def offsets(self):
        batch = 2 if isinstance(self.batch, str) else self.batch
        shape = (self.positions, batch, self.width)
        return np.random.default_rng(self.seed + 1).normal(size=shape).astype(self.dtype)

    def expected(self, offsets):
        x, a = offsets.astype(np.float64), self.matrices().astype(np.float64)
        product = x @ a
        other = x if self.form == "inverse" else product
        return (product * other).sum(axis=2, keepdims=bool(self.keepdims))


def rewritten(model):
    result, places = apply_passes(model, (Mahalanobis(),))
    onnx.checker.check_model(result, full_check=True)
    return result, places["mahalanobis"]


def run(model, x):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["y"], {"x": x})[0]


@given(
    case=st.builds(
        Case,
        form=st.sampled_from(["inverse", "lower", "upper"]),
        positions=st.integers(1, 5),
        width=st.integers(32, 70),
        batch=st.sampled_from([1, 3, "N"]),
        opset=st.integers(13, 20),
        keepdims=st.integers(0, 1),
        axis=st.sampled_from([2, -1]),
        swapped=st.booleans(),
        images=st.integers(1, 90),
        seed=st.integers(0, 2**20),
    ),
    power=st.booleans(),
)
@settings(deadline=None)
def test_distances_stay_the_same(case, power):
    if power and case.form != "inverse":
        case.by = "Pow"
    model, offsets = case.model(), case.offsets()
    result, places = rewritten(model)
    assert places == 1
    expected = case.expected(offsets)
    before, after = (run(each, offsets) for each in (model, result))
    assert after.shape == before.shape == expected.shape
    assert np.abs(after - expected).max() <= 1e-5 * expected.max()
    assert (after >= 0).all()


@pytest.mark.parametrize("form", ["inverse", "lower", "upper"])
def test_a_quarter_is_not_read(form):
    case = Case(form, width=96)
    result, _ = rewritten(case.model())
    held = sum(np.prod(t.dims) for t in result.graph.initializer if t.data_type == 1)
    assert held == 3 * 96 * 96 * 3 / 4


def constants(model):
    """Shapes of a graph's constants in float32, by the last part of their names."""
    return {
        tensor.name.rsplit("/", 1)[-1]: tuple(tensor.dims) for tensor in model.graph.initializer
    }


@given(
    form=st.sampled_from(["inverse", "lower", "upper"]),
    width=st.integers(32, 120),
    share=st.floats(0.05, 0.5),
    keepdims=st.integers(0, 1),
    positions=st.integers(1, 5),
    seed=st.integers(0, 2**20),
)
@settings(deadline=None)
def test_of_few_images_a_column_each_is_read(form, width, share, keepdims, positions, seed):
    images = max(1, int(share * width))
    case = Case(form, positions, width, images=images, keepdims=keepdims, scale=0.3, seed=seed)
    model, offsets = case.model(), case.offsets()
    result, places = rewritten(model)
    assert places == 1
    assert constants(result)["vectors"] == (positions, width, images)
    expected = case.expected(offsets)
    found = run(result, offsets)
    assert found.shape == expected.shape
    # Rounding in sums of `width` products by vectors whose squared norms are at most 1/ε = 100.
    lengths = 100 * np.square(offsets.astype(np.float64)).sum(axis=2, keepdims=bool(keepdims))
    steps = width * (1 + 2 * images**0.5) + images + 8
    assert (np.abs(found - expected) <= 2.0**-24 * steps * lengths).all()


def test_offsets_within_the_images_are_never_negative():
    case = Case("lower", images=12, width=64, scale=0.3)
    result, _ = rewritten(case.model())
    assert "vectors" in constants(result)
    values, vectors = np.linalg.eigh(case.matrices() @ case.matrices().transpose(0, 2, 1))
    along = vectors[:, :, :1].transpose(0, 2, 1).repeat(2, axis=1).astype(np.float32)
    found = run(result, along)
    assert (found >= 0).all()
    np.testing.assert_allclose(found, values[:, :1].repeat(2, 1), atol=1e-5 * values.max())


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(images=41, width=80), id="too many images"),
        pytest.param(Case(images=20, width=80, scale=30), id="differences that cancel"),
    ],
)
@pytest.mark.parametrize("form", ["inverse", "upper"])
def test_few_directions_that_do_not_pay_or_are_not_exact(case, form):
    result, places = rewritten(replace(case, form=form).model())
    assert places == 1
    assert "vectors" not in constants(result)


def test_many_positions_are_each_their_own():
    case = Case(positions=300, width=32)
    offsets = case.offsets()
    expected = case.expected(offsets)
    found = run(rewritten(case.model())[0], offsets)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(definite=False), id="not positive definite"),
        pytest.param(Case("full"), id="not triangular"),
        pytest.param(Case(other=True), id="another factor"),
        pytest.param(Case("upper", other=True), id="another factor than itself"),
        pytest.param(Case(axis=1), id="another axis"),
        pytest.param(Case(by="Add"), id="a sum"),
        pytest.param(Case(outputs=("m",)), id="the product is an output"),
        pytest.param(Case(outputs=("q",)), id="the squares are an output"),
        pytest.param(Case(again="m"), id="the product is read again"),
        pytest.param(Case(again="q"), id="the squares are read again"),
        pytest.param(Case(width=31), id="few channels"),
        pytest.param(Case(dtype=np.float64), id="float64"),
    ],
)
def test_left_alone(case):
    model = case.model()
    before = model.SerializeToString(deterministic=True)
    assert Mahalanobis().apply(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_matrices_that_are_an_input():
    model = Case().model()
    model.graph.input.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [3, 40, 40]))
    assert Mahalanobis().apply(model) == 0
    del model.graph.initializer[0]
    assert Mahalanobis().apply(model) == 0


def test_an_old_opset():
    model = Case().model()
    model.opset_import[0].version = 12
    assert Mahalanobis().apply(model) == 0
