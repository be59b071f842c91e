from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.calibration.planning import FORMS, HEAD, IMAGES, block, planned
from tests.passes.half_graphs import graph, names
from vadexport.calibration.observing import run_graph
from vadexport.calibration.qdq import Form
from vadexport.calibration.repair import Corrector, leaving, write_form

CHANNELS = (0, 2, 3)


def means(model, tensors, images=IMAGES):
    """Of each channel, in float64, computed here."""
    marked = onnx.ModelProto.FromString(model.SerializeToString())
    del marked.graph.output[:]
    marked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    runs = list(run_graph(marked, images, tensors))
    return [
        np.concatenate([run[number] for run in runs]).astype(np.float64).mean(axis=CHANNELS)
        for number in range(len(tensors))
    ]


def corrector(case, images=IMAGES):
    return Corrector(case.model, case.plan, case.network, images)


def biases(model):
    """By the name of a layer's node."""
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return {
        n.name: values[n.input[2]]
        for n in model.graph.node
        if len(n.input) > 2 and n.op_type == "Conv"
    }


class TestMeans:
    @pytest.mark.parametrize("form", FORMS, ids=str)
    def test_of_what_leaves_the_network_come_back(self, form):
        # A shift that nothing explains, as if weights had been rounded badly.
        case = planned(block(), IMAGES, shift=-0.2)
        (expected,), (before,), (after,) = (
            means(model, ["c6"])
            for model in (case.model, case.made(form), corrector(case).form(form))
        )
        assert np.abs(before - expected).max() > 1
        # Biases are whole multiples of a step of their products, the one that was measured as well
        # as the one that is written: half a step of each is left at most.
        layer = next(each for each in case.plan.layers if each.node == "c6")
        step = case.plan.reach["s"] / 127 * case.plan.weights[layer.weight].scales
        assert (np.abs(after - expected) <= step + 1e-5).all()

    def test_nothing_but_the_last_biases_changes(self):
        case = planned(block(), IMAGES, shift=-0.2)
        plain, corrected = case.made(), corrector(case).form(Form())
        assert [n.SerializeToString() for n in plain.graph.node] == [
            n.SerializeToString() for n in corrected.graph.node
        ]
        before, after = biases(plain), biases(corrected)
        assert {name for name in before if not np.array_equal(before[name], after[name])} == {"c6"}

    def test_a_layer_in_float_is_left_alone(self):
        case = planned(block(), IMAGES, shift=-0.2)
        float_nodes = frozenset({"c6"})
        made = corrector(case).form(Form(), float_nodes)
        expected = case.made(Form(), float_nodes)
        assert made.SerializeToString() == expected.SerializeToString()

    def test_a_layer_without_a_bias_is_left_alone(self):
        model = graph(
            "float[2,3,10,10] image",
            "c = Conv(image, w)\n y = ReduceSum<keepdims = 0>(c, axes)\n score = Identity(y)",
            "float[2] score",
            w=np.random.default_rng(1).normal(size=(4, 3, 3, 3)),
            axes=np.array([1, 2, 3]),
        )
        case = replace(planned(model, IMAGES), network=frozenset({"c"}))
        assert leaving(case.model, case.plan, case.network).keys() == {"c"}
        assert corrector(case).form(Form()).SerializeToString() == case.made().SerializeToString()

    def test_are_of_the_images_that_were_given(self):
        case = planned(block(), IMAGES, shift=-0.2)
        one, other = (corrector(case, IMAGES[n : n + 1]).form(Form()) for n in (0, 1))
        assert not np.array_equal(biases(one)["c6"], biases(other)["c6"])


def chain(count, seed=0):
    """So many layers, each read by the next and by the score head."""
    random = np.random.default_rng(seed)
    lines, weights, last = [], {"axes": np.array([1, 2, 3])}, "image"
    for n in range(count):
        weights |= {
            f"w{n}": random.normal(size=(3, 3, 3, 3)) / 4,
            f"b{n}": random.normal(size=3) / 4,
        }
        lines += [
            f"c{n} = Conv<pads = [1,1,1,1]>({last}, w{n}, b{n})",
            f"x{n} = Relu(c{n})",
            f"y{n} = ReduceSum<keepdims = 0>(x{n}, axes)",
        ]
        last = f"x{n}"
    outputs = ", ".join(f"float[2] y{n}" for n in range(count))
    model = graph("float[2,3,10,10] image", "\n".join(lines), outputs, **weights)
    network = names(model) - {f"y{n}" for n in range(count)}
    return replace(planned(model, IMAGES, shift=0.1), network=network)


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_of_layers_behind_each_other_each_comes_closer(count, seed):
    case = chain(count, seed)
    assume(min(case.plan.reach.values()) > 0)  # a layer that reads zeros alone is in no plan
    ends = [f"c{n}" for n in range(count)]
    images = IMAGES if count <= 6 else IMAGES[::2]  # corrected on fewer, so that it takes no longer
    expected, before, after = (
        means(model, ends, images)
        for model in (case.model, case.made(), corrector(case).form(Form()))
    )
    left = [np.abs(found - wanted).max() for found, wanted in zip(after, expected, strict=True)]
    was = [np.abs(found - wanted).max() for found, wanted in zip(before, expected, strict=True)]
    assert max(left) < 0.02 < max(was)


class TestLeaving:
    def found(self, nodes, outputs, head=frozenset(HEAD), **weights):
        random = np.random.default_rng(3)
        given = {name: random.normal(size=shape) for name, shape in weights.items()}
        axes = {"axes": np.array([1, 2, 3])} if "axes" in nodes else {}
        model = graph("float[2,3,10,10] image", nodes, outputs, **given, **axes)
        case = replace(planned(model, IMAGES), network=names(model) - head)
        return {name: each.node for name, each in leaving(model, case.plan, case.network).items()}

    def test_of_a_clipped_tensor_it_is_what_is_clipped(self):
        nodes = "c = Conv(image, w, b)\n x = Relu(c)\n score = ReduceSum<keepdims = 0>(x, axes)"
        found = self.found(nodes, "float[2] score", w=(4, 3, 1, 1), b=(4,))
        assert found == {"c": "c"}

    def test_of_a_sum_it_is_the_layer_that_comes_last(self):
        nodes = """
            a = Conv(image, w, b)
            c = Conv(a, v, d)
            s = Add(c, a)
            x = Relu(s)
            score = ReduceSum<keepdims = 0>(x, axes)
        """
        found = self.found(nodes, "float[2] score", w=(4, 3, 1, 1), b=(4,), v=(4, 4, 1, 1), d=(4,))
        assert found == {"s": "c"}

    def test_an_output_of_the_graph_leaves(self):
        nodes = "a = Conv(image, w, b)\n c = Conv(a, v, d)"
        shapes = {"w": (4, 3, 1, 1), "b": (4,), "v": (2, 4, 1, 1), "d": (2,)}
        outputs = "float[2,4,10,10] a, float[2,2,10,10] c"
        assert self.found(nodes, outputs, frozenset(), **shapes) == {"a": "a", "c": "c"}

    def test_behind_something_that_is_no_layer_there_is_none(self):
        nodes = """
            c = Conv(image, w, b)
            p = MaxPool<kernel_shape = [2,2]>(c)
            score = ReduceSum<keepdims = 0>(p, axes)
        """
        assert self.found(nodes, "float[2] score", w=(4, 3, 1, 1), b=(4,)) == {}


def test_a_form_is_written_as_it_is_computed(tmp_path):
    case = planned(block(), IMAGES, shift=-0.2)
    path, written = tmp_path / "model.onnx", tmp_path / "form.onnx"
    onnx.save(case.model, path)
    form = Form(signed=False)
    write_form(path, case.plan, case.network, IMAGES, form, frozenset({"c2"}), written)
    expected = corrector(case).form(form, frozenset({"c2"}))
    assert onnx.load(written).SerializeToString() == expected.SerializeToString()
