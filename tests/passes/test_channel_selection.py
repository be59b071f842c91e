"""Channels chosen before maps are resized and joined: the same bits, where the rule holds."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.half_graphs import graph, run
from vadexport.passes import apply_passes
from vadexport.passes.channel_selection import ChannelSelection

MAPS = {"a": (2, 5, 8, 6), "b": (2, 7, 4, 3), "c": (2, 3, 2, 3)}


def feeds(seed=0):
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in MAPS.items()}


def selecting(chosen, *, b="sizes", mode="nearest", tail="y = Identity(chosen)", **more):
    """Three maps, two of them resized to the first one's size, joined; channels chosen of them."""
    options = (
        f'mode = "{mode}", coordinate_transformation_mode = "{more.pop("ways", "asymmetric")}"'
    )
    options += more.pop("options", "")
    how = {"sizes": f"Resize<{options}>(b, , , sizes)", "scales": f"Resize<{options}>(b, , scales)"}
    nodes = f"""
        rb = {how[b]}
        rc = Resize<{options}>(c, , scales_c)
        joined = Concat<axis = {more.pop("axis", 1)}>(a, rb, rc)
        chosen = Gather<axis = {more.pop("gather", 1)}>(joined, indices)
        {tail}
    """
    constants = {
        "sizes": np.array([2, 7, 8, 6]),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "scales_c": np.array([1, 1, 4, 2], np.float32),
        "indices": np.asarray(chosen),
        **more,
    }
    inputs = ", ".join(f"float[{','.join(map(str, s))}] {n}" for n, s in MAPS.items())
    used = {name: value for name, value in constants.items() if name in nodes}
    return graph(inputs, nodes, "float[n,k,h,w] y", **used)


def rewritten(model):
    made, places = apply_passes(model, (ChannelSelection(),))
    onnx.checker.check_model(made, full_check=True)
    return made, places["channel-selection"]


@given(
    st.lists(st.integers(-15, 14), min_size=1, max_size=14),
    st.sampled_from(["sizes", "scales"]),
    st.sampled_from(["nearest", "linear", "cubic"]),
    st.sampled_from(["asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"]),
    st.integers(0, 2**16),
)
@settings(max_examples=80)
def test_the_same_bits(chosen, b, mode, ways, seed):
    model = selecting(chosen, b=b, mode=mode, ways=ways)
    made, places = rewritten(model)
    assert places == 1
    expected = run(model, **feeds(seed))
    np.testing.assert_array_equal(run(made, **feeds(seed))["y"], expected["y"])


def operators(model):
    return [node.op_type for node in model.graph.node]


def test_nothing_is_resized_that_is_not_chosen():
    made, _ = rewritten(selecting([0, 4, 5, 13]))
    inferred = onnx.shape_inference.infer_shapes(made).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info
    }
    resized = [shapes[node.output[0]][1] for node in made.graph.node if node.op_type == "Resize"]
    assert resized == [1, 1]
    assert operators(made).count("Gather") == 3  # in order of the maps: none behind them


def test_a_map_of_which_none_is_chosen_is_not_resized():
    made, _ = rewritten(selecting([1, 12, 0]))
    assert operators(made).count("Resize") == 1
    assert operators(made)[-3:] == ["Concat", "Gather", "Identity"]  # put in place at last


def test_a_map_that_is_resized_along_its_channels_is_chosen_from_behind():
    nodes = """
        rb = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric">(b, , scales)
        joined = Concat<axis = 1>(a, rb)
        chosen = Gather<axis = 1>(joined, indices)
    """
    constants = {"scales": np.array([1, 2, 2, 2], np.float32), "indices": np.array([3, 5, 18])}
    inputs = "float[2,5,8,6] a, float[2,7,4,3] b"
    model = graph(inputs, nodes, "float[n,k,h,w] chosen", **constants)
    made, places = rewritten(model)
    assert places == 1
    assert operators(made).index("Resize") < operators(made).index("Gather")
    given_feeds = {name: value for name, value in feeds().items() if name != "c"}
    before, after = (run(each, **given_feeds)["chosen"] for each in (model, made))
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(selecting(list(range(15))), id="as many as there are"),
        pytest.param(selecting([3] * 15), id="as many, of one channel"),
        pytest.param(
            selecting([[0, 1]], tail="y = Squeeze(chosen, axes)", axes=np.array([1])),
            id="of two axes",
        ),
        pytest.param(selecting([0, 1], gather=2), id="rows are chosen"),
        pytest.param(
            selecting([0, 1], tail="z = Gather<axis = 1>(joined, indices)\n y = Add(chosen, z)"),
            id="what is joined is read twice",
        ),
    ],
)
def test_left_alone(model):
    made, places = rewritten(model)
    assert places == 0
    assert made.SerializeToString() == apply_passes(model, ())[0].SerializeToString()


def test_sizes_of_shapes_are_left_alone():
    nodes = "joined = Concat<axis = 0>(a, b)\n y = Gather<axis = 0>(joined, indices)"
    model = graph("float[3] a, float[2] b", nodes, "float[2] y", indices=np.array([0, 4]))
    assert rewritten(model)[1] == 0


def test_a_resize_with_empty_scales_and_computed_sizes_stays_before():
    nodes = """
        shape = Shape<start = 2>(a)
        sizes = Concat<axis = 0>(first, shape)
        rb = Resize<mode = "nearest">(b, , none, sizes)
        joined = Concat<axis = 1>(a, rb)
        y = Gather<axis = 1>(joined, indices)
    """
    constants = {"none": np.zeros(0, np.float32), "first": np.array([2, 7])}
    inputs = "float[2,5,h,w] a, float[2,7,4,3] b"
    # ONNX Runtime takes no empty scales beside sizes: only the rewrite is looked at.
    text = (
        f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => (float[n,k,q,v] y) {{{nodes}}}'
    )
    model = onnx.parser.parse_model(text)
    for name, value in {**constants, "indices": np.array([1, 6])}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    made, places = apply_passes(model, (ChannelSelection(),))
    assert places == {"channel-selection": 1}
    # The map is chosen from behind its Resize, which is as it was.
    resize = next(node for node in made.graph.node if node.op_type == "Resize")
    assert list(resize.input) == ["b", "", "none", "sizes"]
    assert [n.input[0] for n in made.graph.node if n.op_type == "Gather"] == ["a", "rb"]


def test_indices_that_a_caller_gives_are_left_alone():
    model = selecting([0, 1])
    indices = next(t for t in model.graph.initializer if t.name == "indices")
    model.graph.input.append(onnx.helper.make_tensor_value_info("indices", 7, [2]))
    assert indices.data_type == 7
    assert rewritten(model)[1] == 0


def test_indices_beyond_the_channels_are_left_to_the_runtime():
    assert rewritten(selecting([0, 15]))[1] == 0


def test_channels_that_are_not_known_are_left_alone():
    nodes = "joined = Concat<axis = 1>(a, b)\n y = Gather<axis = 1>(joined, indices)"
    model = graph(
        "float[2,n,8,6] a, float[2,5,8,6] b", nodes, "float[2,2,8,6] y", indices=np.array([0, 6])
    )
    assert rewritten(model)[1] == 0
