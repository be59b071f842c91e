import numpy as np
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from vadexport.passes.isolating import isolated, made

MODEL = parser.parse_model("""
    <ir_version: 10, opset_import: ["": 20]>
    g (float[2, 3] image) => (float[2, 3] end) {
        a = Sin (image)
        b = Add (a, image)
        c = Mul (a, b)
        zero = Constant <value = float {0.0}> ()
        end = Max (c, zero)
    }
""")


def run(model, names, feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return dict(zip(names, session.run(names, feeds), strict=True))


@given(st.sets(st.sampled_from("abc")), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_each_part_computes_with_what_it_is_fed(names, seed):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, 3)).astype(np.float32)
    fed = {name: rng.normal(size=(2, 3)).astype(np.float32) for name in sorted(names)}
    parts = isolated(MODEL, fed)
    for name in fed:
        parts.graph.output.add().CopyFrom(parts.graph.output[0])
        parts.graph.output[-1].name = made(name)
    found = run(parts, [*(made(name) for name in fed), "end"], {"image": image, **fed})
    a = fed.get("a", np.sin(image))
    b = fed.get("b", a + image)
    c = fed.get("c", a * b)
    expected = {"a": np.sin(image), "b": a + image, "c": a * b}
    for name in fed:
        np.testing.assert_allclose(found[made(name)], expected[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["end"], np.maximum(c, 0), rtol=1e-5, atol=1e-6)


def test_an_output_that_is_fed_is_made_too():
    image = np.ones((2, 3), np.float32)
    parts = isolated(MODEL, {"end": image})
    assert [each.name for each in parts.graph.output] == [made("end")]


def test_the_graph_is_left_as_it_is():
    before = MODEL.SerializeToString()
    isolated(MODEL, {"a": np.zeros((2, 3), np.float32)})
    assert MODEL.SerializeToString() == before
