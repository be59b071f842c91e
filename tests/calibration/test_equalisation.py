from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from tests.passes.half_graphs import graph, names, run
from vadexport.calibration.equalisation import equalise
from vadexport.calibration.network import find_layers
from vadexport.calibration.observing import extremes
from vadexport.passes.scaling import scaled_name
from vadexport.verification.tensors import largest_difference, tensor_values

HEAD = {"squared", "score"}
CLIP = {"zero": np.array(0.0), "six": np.array(6.0)}
AXES = {"axes": np.array([1, 2, 3])}


@dataclass(repr=False)
class Case:
    """A graph, what became of it, and images that it was made with."""

    model: onnx.ModelProto
    made: onnx.ModelProto
    factors: dict
    images: np.ndarray

    def differences(self, images=None):
        """Largest difference of each output, of its largest value."""
        images = self.images if images is None else images
        before, after = (run(each, image=images) for each in (self.model, self.made))
        return {k: np.abs(after[k] - v).max() / (np.abs(v).max() or 1) for k, v in before.items()}


def weights_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def uneven(random, *shape, axis=0):
    """Weights of which some output channels are a hundred times as large as others."""
    sizes = np.ones(len(shape), int)
    sizes[axis] = shape[axis]
    spread = 10 ** random.uniform(-2, 0, sizes)
    return random.normal(size=shape) * spread / np.sqrt(np.prod(shape[1:]))


def equalised(nodes, outputs="float[2,a,h,v] y", seed=0, head=frozenset(), scale=1.0, **weights):
    model = graph("float[2,3,12,12] image", nodes, outputs, **weights)
    images = scale * np.random.default_rng(seed).normal(size=(2, 3, 12, 12)).astype(np.float32)
    network = names(model) - head
    tensors = [name for node in model.graph.node if node.name in network for name in node.output]
    reached = extremes(model, tensors, [images])
    made, factors = equalise(model, find_layers(model, network), network, reached)
    onnx.checker.check_model(made, full_check=True)
    return Case(model, made, factors, images)


@st.composite
def networks(draw):
    """A stem, depthwise blocks with residual connections or plain ones, and a score head."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width = draw(st.integers(2, 6))
    act = draw(st.sampled_from(["Relu({})", "Clip({}, zero, six)"]))
    weights = {"w0": uneven(random, width, 3, 3, 3), "b0": random.normal(size=width), **CLIP}
    lines = ["c0 = Conv<pads = [1,1,1,1]>(image, w0, b0)", f"x0 = {act.format('c0')}"]
    last = "x0"
    blocks = draw(st.integers(1, 3))
    for n in range(1, blocks + 1):
        wide = draw(st.integers(2, 8))
        bias = draw(st.booleans())
        names_of = {
            f"e{n}": uneven(random, wide, width, 1, 1),
            f"d{n}": uneven(random, wide, 1, 3, 3),
            f"p{n}": uneven(random, width, wide, 1, 1),
        }
        weights |= names_of
        if bias:
            weights |= {f"{k}b": random.normal(size=len(v)) for k, v in names_of.items()}
        end = {k: f", {k}b" if bias else "" for k in names_of}
        lines += [
            f"ce{n} = Conv({last}, e{n}{end[f'e{n}']})",
            f"xe{n} = {act.format(f'ce{n}')}",
            f"cd{n} = Conv<pads = [1,1,1,1], group = {wide}>(xe{n}, d{n}{end[f'd{n}']})",
            f"xd{n} = {act.format(f'cd{n}')}",
            f"cp{n} = Conv(xd{n}, p{n}{end[f'p{n}']})",
        ]
        if draw(st.booleans()) and n > 1:
            lines.append(f"s{n} = Add(cp{n}, {last})")
            last = f"s{n}"
        else:
            last = f"cp{n}"
    lines += [f"squared = Mul({last}, {last})", "score = ReduceSum<keepdims = 0>(squared, axes)"]
    return equalised(
        "\n".join(lines),
        f"float[2] score, float[2,{width},12,12] squared",
        head=HEAD,
        scale=draw(st.sampled_from([0.1, 1, 10])),
        **weights,
        **AXES,
    )


@given(networks())
@settings(deadline=None, max_examples=60)
def test_changes_no_output(case):
    assert max(case.differences().values()) < 1e-4
    outputs = {each.name for each in case.model.graph.output}
    assert not outputs & case.factors.keys()


@given(networks())
@settings(deadline=None, max_examples=30)
def test_tensors_that_keep_their_names_keep_their_values(case):
    before, after = (
        {name for node in each.graph.node for name in node.output}
        for each in (case.model, case.made)
    )
    assert {scaled_name(name) for name in case.factors} <= after - before
    shared = [name for name in before if name in after]
    feed = case.images
    expected, found = (tensor_values(each, shared, feed) for each in (case.model, case.made))
    for name in shared:
        assert largest_difference(expected[name], found[name]) < 1e-4, name


@given(networks())
@settings(deadline=None, max_examples=30)
def test_behind_a_clip_channels_grow_and_the_clip_leaves_twice_what_was_reached(case):
    # A ReLU6 that cuts no channel at twice what it reached, or at what its tensor reached.
    ends = [node.output[0] for node in case.model.graph.node if node.op_type in ("Clip", "Relu")]
    found = extremes(case.model, ends, [case.images])
    for name in ends:
        factor = case.factors.get(name)
        if factor is None:
            continue
        assert (factor >= 1).all(), name
        reached = found[name].magnitude
        room = np.minimum(2 * reached, reached.max())
        assert (factor * room <= reached.max() * (1 + 1e-6)).all(), name


def ranges(model, name, images):
    return extremes(model, [name], [images])[name].magnitude


BLOCK = """
    c = Conv<pads = [1,1,1,1]>(image, w, b)
    x = {}
    d = Conv<pads = [1,1,1,1], group = 6>(x, v)
    e = {}
    y = Conv(e, u)
"""


def block(act, seed=1, **more):
    random = np.random.default_rng(seed)
    return equalised(
        BLOCK.format(act.format("c"), act.format("d")),
        w=uneven(random, 6, 3, 3, 3),
        b=0.1 * random.normal(size=6),
        v=uneven(random, 6, 1, 3, 3),
        u=uneven(random, 4, 6, 1, 1, axis=1),
        **CLIP,
        **more,
    )


class TestRanges:
    @pytest.mark.parametrize("act", ["Relu({})", "Clip({}, zero, six)"])
    def test_of_channels_that_a_depthwise_layer_reads_come_to_half_the_largest(self, act):
        case = block(act)
        assert case.factors.keys() == {"x", "e"}
        before = ranges(case.model, "x", case.images)
        after = ranges(case.made, scaled_name("x"), case.images)
        assert before.max() > 10 * before.min()
        # Half, for defects reach further; those above half stay, and none grows tenfold or more.
        largest = before.max()
        expected = np.where(before > largest / 2, before, largest / 2)
        expected = np.minimum(expected, 10 * before)
        np.testing.assert_allclose(after, expected, rtol=1e-4)
        assert max(case.differences().values()) < 1e-5

    def test_the_clip_acts_only_beyond_twice_what_was_reached(self):
        case = block("Clip({}, zero, six)")
        assert max(case.differences(1.2 * case.images).values()) < 1e-4
        assert max(case.differences(40 * case.images).values()) > 1e-2

    def test_a_relu_never_acts(self):
        case = block("Relu({})")
        assert max(case.differences(1000 * case.images).values()) < 1e-4

    def test_weights_that_share_a_scale_are_met_half_way(self):
        random = np.random.default_rng(3)
        case = equalised(
            "c = Conv(image, w)\n y = Conv(c, u)",
            w=uneven(random, 6, 3, 1, 1),
            u=random.normal(size=(4, 6, 1, 1)),
        )
        before = ranges(case.model, "c", case.images)
        after = ranges(case.made, scaled_name("c"), case.images)
        columns = [
            np.abs(weights_of(each)["u"]).max(axis=(0, 2, 3)) for each in (case.model, case.made)
        ]
        # SmoothQuant with α = ½: a channel's range and its weights come to a common proportion.
        share = before / before.max() > 0.1  # above the floor
        proportion = (after / columns[1])[share]
        np.testing.assert_allclose(proportion, proportion[0], rtol=1e-4)
        assert after.max() == pytest.approx(before.max(), rel=1e-5)
        assert max(case.differences().values()) < 1e-5


class TestLeftAlone:
    def check(self, case, *tensors):
        assert not set(tensors) & case.factors.keys()
        assert max(case.differences().values()) < 1e-4

    def test_layers_that_share_weights(self):
        random = np.random.default_rng(4)
        case = equalised(
            "c = Conv<pads = [1,1,1,1]>(image, w)\n a = Conv(c, u)\n y = Conv(a, u)",
            w=uneven(random, 4, 3, 3, 3),
            u=uneven(random, 4, 4, 1, 1),
        )
        self.check(case, "c", "a")

    def test_layers_that_share_a_bias(self):
        random = np.random.default_rng(4)
        case = equalised(
            "c = Conv(image, w, b)\n a = Conv(c, u, b)\n y = Conv(a, v)",
            w=uneven(random, 4, 3, 3, 3),
            u=uneven(random, 4, 4, 1, 1),
            v=uneven(random, 4, 4, 1, 1),
            b=random.normal(size=4),
        )
        self.check(case, "c", "a")

    def test_a_tensor_that_is_an_output(self):
        random = np.random.default_rng(5)
        case = equalised(
            "c = Conv(image, w)\n y = Conv(c, u)",
            "float[2,4,12,12] c, float[2,2,12,12] y",
            w=uneven(random, 4, 3, 1, 1),
            u=uneven(random, 2, 4, 1, 1),
        )
        self.check(case, "c")

    def test_a_group_convolution_that_is_not_depthwise(self):
        random = np.random.default_rng(6)
        case = equalised(
            "c = Conv(image, w)\n y = Conv<group = 2>(c, u)",
            w=uneven(random, 4, 3, 1, 1),
            u=uneven(random, 6, 2, 1, 1),
        )
        self.check(case, "c")

    @pytest.mark.parametrize("reader", ["MaxPool<kernel_shape = [1,1]>({})", "Sigmoid({})"])
    def test_what_something_else_of_the_network_reads(self, reader):
        random = np.random.default_rng(7)
        case = equalised(
            f"c = Conv(image, w)\n p = {reader.format('c')}\n a = Conv(c, u)\n y = Add(p, a)",
            w=uneven(random, 4, 3, 1, 1),
            u=uneven(random, 4, 4, 1, 1),
        )
        self.check(case, "c")

    @pytest.mark.parametrize(("low", "high"), [(-1, 6), (1, 6), (-6, 6), (None, 6), (0.5, None)])
    def test_a_clip_that_is_no_relu(self, low, high):
        random = np.random.default_rng(8)
        ends = [("low", low), ("high", high)]
        bounds = {name: np.array(float(value)) for name, value in ends if value is not None}
        given = ", ".join(name if name in bounds else "" for name, _ in ends)
        case = equalised(
            f"c = Conv(image, w)\n x = Clip(c, {given})\n y = Conv(x, u)",
            w=3 * uneven(random, 4, 3, 1, 1),
            u=uneven(random, 4, 4, 1, 1),
            **bounds,
        )
        self.check(case, "x")

    def test_a_sum_of_what_is_clipped_and_what_is_not(self):
        # Scaled as if nothing were clipped, the ReLU6 would cut what it passed.
        random = np.random.default_rng(9)
        case = equalised(
            "a = Conv(image, w)\n x = Clip(a, zero, six)\n b = Conv(image, v)\n s = Add(x, b)\n"
            "y = Conv(s, u)",
            w=6 * uneven(random, 4, 3, 1, 1),
            v=20 * uneven(random, 4, 3, 1, 1),
            u=uneven(random, 4, 4, 1, 1),
            **CLIP,
        )
        self.check(case, "x", "b", "s")

    def test_one_channel_that_is_added_to_all(self):
        random = np.random.default_rng(10)
        case = equalised(
            "a = Conv(image, w)\n b = Conv(image, v)\n s = Add(a, b)\n y = Conv(s, u)",
            w=uneven(random, 4, 3, 1, 1),
            v=uneven(random, 1, 3, 1, 1),
            u=uneven(random, 4, 4, 1, 1),
        )
        self.check(case, "a", "b", "s")

    def test_a_pre_activation_that_is_read_twice(self):
        random = np.random.default_rng(11)
        case = equalised(
            "c = Conv(image, w)\n x = Relu(c)\n a = Conv(x, u)\n b = Conv(c, v)\n y = Add(a, b)",
            w=uneven(random, 4, 3, 1, 1),
            u=uneven(random, 4, 4, 1, 1),
            v=uneven(random, 4, 4, 1, 1),
        )
        self.check(case, "c", "x")

    def test_a_tensor_that_is_always_zero(self):
        case = equalised(
            "c = Conv(image, w, b)\n x = Relu(c)\n s = Conv(image, v)\n t = Conv(x, u)\n"
            "y = Add(s, t)",
            w=np.zeros((4, 3, 1, 1)),
            b=-np.ones(4),
            u=np.ones((4, 4, 1, 1)),
            v=np.ones((4, 3, 1, 1)),
        )
        self.check(case, "x")


class TestScoreHead:
    NODES = "c = Conv(image, w)\n x = Relu(c)\n y = Conv(x, u)\n squared = Mul(x, x)"

    def case(self):
        random = np.random.default_rng(12)
        return equalised(
            self.NODES,
            "float[2,4,12,12] squared, float[2,4,12,12] y",
            head=HEAD,
            w=uneven(random, 4, 3, 1, 1),
            u=uneven(random, 4, 4, 1, 1),
        )

    def test_gets_its_tensors_as_they_were(self):
        case = self.case()
        assert case.factors.keys() == {"x"}
        assert (case.factors["x"] > 1.5).any()
        assert max(case.differences().values()) < 1e-5
        assert max(case.differences(50 * case.images).values()) < 1e-5

    def test_of_a_signal_has_one_axis_less(self):
        random = np.random.default_rng(13)
        model = graph(
            "float[2,3,20] image",
            self.NODES,
            "float[2,4,20] squared, float[2,4,20] y",
            w=uneven(random, 4, 3, 1),
            u=uneven(random, 4, 4, 1),
        )
        image = random.normal(size=(2, 3, 20)).astype(np.float32)
        network = names(model) - HEAD
        reached = extremes(model, ["c", "x", "y"], [image])
        made, factors = equalise(model, find_layers(model, network), network, reached)
        assert factors.keys() == {"x"}
        case = Case(model, made, factors, image)
        assert max(case.differences().values()) < 1e-5


def test_residual_connections_share_factors():
    random = np.random.default_rng(14)
    case = equalised(
        """
        a = Conv(image, w)
        c = Conv<pads = [1,1,1,1]>(a, v)
        x = Relu(c)
        d = Conv(x, u)
        s = Add(a, d)
        y = Conv(s, t)
        """,
        w=uneven(random, 5, 3, 1, 1),
        v=uneven(random, 6, 5, 3, 3),
        u=uneven(random, 5, 6, 1, 1),
        t=uneven(random, 2, 5, 1, 1),
    )
    assert case.factors.keys() == {"a", "x", "d", "s"}
    for name in ("d", "s"):
        np.testing.assert_array_equal(case.factors["a"], case.factors[name])
    assert not np.allclose(case.factors["a"], 1)
    assert max(case.differences().values()) < 1e-5


def test_the_graph_is_left_as_it_is():
    case = block("Relu({})")
    before = case.model.SerializeToString()
    equalise(case.model, find_layers(case.model, names(case.model)), names(case.model), {})
    assert case.model.SerializeToString() == before
