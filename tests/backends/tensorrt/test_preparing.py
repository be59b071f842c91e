import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from tests.passes.half_graphs import OPSET, graph, run
from vadexport.backends.tensorrt.preparing import prepared
from vadexport.errors import BackendError

TURNED = """
    turned = Transpose<perm = [0,3,1,2]>(image)
    floats = Cast<to = 1>(turned)
    scaled = Div(floats, most)
    y = ReduceMean<keepdims = 0>(scaled, axes)
"""
CAST_FIRST = """
    floats = Cast<to = 1>(image)
    turned = Transpose<perm = [0,3,1,2]>(floats)
    scaled = Div(turned, most)
    y = ReduceMean<keepdims = 0>(scaled, axes)
"""
CAST_TWICE = """
    turned = Transpose<perm = [0,3,1,2]>(image)
    floats = Cast<to = 1>(turned)
    again = Cast<to = 1>(image)
    mean = ReduceMean<keepdims = 0>(again, all)
    scaled = Div(floats, most)
    bright = ReduceMean<keepdims = 0>(scaled, axes)
    y = Mul(bright, mean)
"""
BY_SHAPE = """
    flat = Flatten<axis = 1>(image)
    turned = Transpose<perm = [0,3,1,2]>(image)
    floats = Cast<to = 1>(turned)
    size = Shape<start = 0, end = 1>(image)
    wanted = Concat<axis = 0>(size, rest)
    shaped = Reshape(floats, wanted)
    scaled = Div(shaped, most)
    y = ReduceMean<keepdims = 0>(scaled, minus)
"""
CUT = """
    cut = Slice(image, begin, end, second)
    flat = Reshape(cut, rows)
    floats = Cast<to = 1>(flat)
    y = ReduceMax<keepdims = 0>(floats, minus)
"""
CONSTANTS = {
    "most": np.array(255.0),
    "axes": np.array([2, 3]),
    "all": np.array([0, 1, 2, 3]),
    "rest": np.array([3, 30]),
    "minus": np.array([-1]),
    "begin": np.array([1]),
    "end": np.array([4]),
    "second": np.array([1]),
    "rows": np.array([0, 3, -1]),
}


def made(nodes, *, dtype="uint8", batch="1", channels=3):
    used = {
        name: value for name, value in CONSTANTS.items() if f"{name})" in nodes.replace(",", ")")
    }
    return graph(f"{dtype}[{batch},5,6,{channels}] image", nodes, "float[M,3] y", **used)


NODES = {
    "turned, then cast": TURNED,
    "cast, then turned": CAST_FIRST,
    "by the image's shape": BY_SHAPE.replace("    flat = Flatten<axis = 1>(image)\n", ""),
    "cut": CUT,
}


@pytest.mark.parametrize("batch", ["1", "N"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("nodes", NODES.values(), ids=NODES)
class TestGraph:
    def test_casts_the_image_first_and_only_once(self, nodes, dtype, batch):
        model = made(nodes, dtype=dtype, batch=batch)
        result = prepared(model)
        onnx.checker.check_model(result, full_check=True)
        first = result.graph.node[0]
        assert (first.op_type, list(first.input)) == ("Cast", ["image"])
        readers = [node for node in result.graph.node if "image" in node.input]
        assert len(readers) == 1
        assert sum(node.op_type == "Cast" for node in result.graph.node) == 1
        assert [n.name for n in result.graph.node[1:]] == [n.name for n in model.graph.node]

    def test_outputs_stay_to_the_bit(self, nodes, dtype, batch):
        model = made(nodes, dtype=dtype, batch=batch)
        result = prepared(model)
        rng = np.random.default_rng(2)
        for _ in range(3):
            image = rng.integers(0, np.iinfo(dtype).max, (1, 5, 6, 3), dtype, endpoint=True)
            wider = image.astype(np.int32) if dtype == "uint16" else image
            found, expected = run(result, image=wider), run(model, image=image)
            np.testing.assert_array_equal(found["y"], expected["y"])

    def test_uint16_becomes_int32_and_uint8_stays(self, nodes, dtype, batch):
        model = made(nodes, dtype=dtype, batch=batch)
        before = model.SerializeToString(deterministic=True)
        result = prepared(model)
        wanted = TensorProto.INT32 if dtype == "uint16" else TensorProto.UINT8
        assert result.graph.input[0].type.tensor_type.elem_type == wanted
        assert (
            result.graph.input[0].type.tensor_type.shape
            == model.graph.input[0].type.tensor_type.shape
        )
        assert model.SerializeToString(deterministic=True) == before
        types = onnx.shape_inference.infer_shapes(result, strict_mode=True).graph.value_info
        assert TensorProto.UINT16 not in {each.type.tensor_type.elem_type for each in types}


def test_types_that_were_noted_are_dropped_where_they_no_longer_hold():
    described = onnx.shape_inference.infer_shapes(made(TURNED, dtype="uint16"))
    assert TensorProto.UINT16 in {
        each.type.tensor_type.elem_type for each in described.graph.value_info
    }
    onnx.checker.check_model(prepared(described), full_check=True)


@given(data=st.data(), count=st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_two_casts_become_one(data, count):
    model = made(CAST_TWICE, batch="N")
    result = prepared(model)
    assert sum(node.op_type == "Cast" for node in result.graph.node) == 1
    size = count * 5 * 6 * 3
    image = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    image = image.reshape(count, 5, 6, 3)
    np.testing.assert_array_equal(run(result, image=image)["y"], run(model, image=image)["y"])


def test_images_in_float_stay_as_they_are():
    model = graph("float[1,3,4,4] image", "y = Relu(image)", "float[1,3,4,4] y")
    result = prepared(model)
    assert result == model
    assert result is not model


def test_a_detector_as_it_is_traced(graph_of, coloured):
    for batch in (1, None):
        model = graph_of("resizing", batch)[1].model
        result = prepared(model)
        onnx.checker.check_model(result, full_check=True)
        image = np.stack(coloured[: batch or 2])
        found, expected = run(result, image=image), run(model, image=image)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


class TestRefused:
    @pytest.mark.parametrize(
        ("nodes", "node"),
        [
            ("brighter = Add(image, one)\n y = Cast<to = 1>(brighter)", "brighter (Add)"),
            ("both = Max(one, image)\n y = Cast<to = 1>(both)", "both (Max)"),
            ("t = Identity(image)\n o = Max(one, t)\n y = Cast<to = 1>(o)", "o (Max)"),
            (
                "f = Cast<to = 1>(image)\n y = Abs(f)\n t = Identity(image)\n z = Add(t, t)",
                "z (Add)",
            ),
        ],
    )
    def test_arithmetic_on_the_cameras_integers(self, nodes, node):
        model = graph("uint8[1,2,2,3] image", nodes, "float[1,2,2,3] y", one=np.array(1, np.uint8))
        with pytest.raises(BackendError) as caught:
            prepared(model)
        text = str(caught.value)
        assert text.startswith(f"node {node} computes with the camera's integers")
        assert text.endswith("let the model take floats")

    def test_casts_to_several_types(self):
        model = graph(
            "uint8[1,2] image",
            """
            a = Cast<to = 1>(image)
            b = Cast<to = 7>(image)
            c = Cast<to = 1>(b)
            y = Add(a, c)
            """,
            "float[1,2] y",
        )
        with pytest.raises(BackendError, match="casts an image to one type"):
            prepared(model)

    def test_an_image_that_is_never_cast(self):
        model = graph("uint8[1,2] image", "y = Identity(image)", "uint8[1,2] y")
        with pytest.raises(BackendError, match="casts an image to one type"):
            prepared(model)


def looping(read):
    """Adds up what its body reads from outside, which is no input of the node."""
    text = f"""
        <ir_version: 9, opset_import: ["" : {OPSET}]>
        g (uint8[1,2] image) => (float[1,2] y) <int64 trips = {{3}}, float[1,2] zero = {{0, 0}}> {{
            floats = Cast<to = 1>(image)
            y = Loop(trips, , zero) <body = b (int64 number, bool go, float[1,2] old)
                => (bool on, float[1,2] new) {{
                on = Identity(go)
                own = Cast<to = 1>({read})
                new = Add(old, own)
            }}>
        }}
    """
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model, full_check=True)
    return model


def test_a_loop_that_reads_the_floats():
    model, image = looping("floats"), np.array([[1, 200]], np.uint8)
    assert run(model, image=image)["y"].tolist() == [[3, 600]]
    assert run(prepared(model), image=image)["y"].tolist() == [[3, 600]]


def test_a_loop_that_reads_the_integers():
    with pytest.raises(BackendError, match=r"node y \(Loop\) computes with the camera's integers"):
        prepared(looping("image"))


def test_floats_that_are_an_output():
    model = graph("uint8[1,2] image", "y = Cast<to = 1>(image)", "float[1,2] y")
    image = np.array([[1, 200]], np.uint8)
    assert run(prepared(model), image=image)["y"].tolist() == [[1, 200]]
