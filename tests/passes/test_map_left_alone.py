import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.passes.resized_maps import REPEATED, TAPS, Case, assert_left_alone

NEARLY = np.outer(TAPS, TAPS)
NEARLY[0, 0] *= 1.01


class TestMustNotApply:
    @pytest.mark.parametrize(
        "case",
        [
            pytest.param(Case(resize={"mode": "nearest"}), id="nearest"),
            pytest.param(Case(resize={"mode": "cubic"}), id="cubic"),
            pytest.param(
                Case(resize={"coordinate_transformation_mode": "align_corners"}), id="align corners"
            ),
            pytest.param(
                Case(resize={"coordinate_transformation_mode": "asymmetric"}), id="asymmetric"
            ),
            pytest.param(
                Case(opset=19, resize={"coordinate_transformation_mode": "half_pixel_symmetric"}),
                id="half pixel symmetric",
            ),
            pytest.param(Case(opset=18, resize={"antialias": 1}), id="antialias"),
            pytest.param(Case(resize={"exclude_outside": 1}), id="exclude outside"),
            pytest.param(
                Case(target=(28, 30), resize={"keep_aspect_ratio_policy": "not_larger"}),
                id="not larger",
            ),
            pytest.param(Case(channels=2), id="two channels"),
            pytest.param(Case(bias=True), id="bias"),
            pytest.param(Case(convs={"strides": [2, 1]}), id="stride"),
            pytest.param(Case(convs={"dilations": [2, 2]}), id="dilation"),
            pytest.param(Case(convs={"pads": [0, 1, 0, 1]}), id="pads"),
            pytest.param(Case(convs={"auto_pad": "SAME_UPPER"}), id="auto pad"),
            pytest.param(Case(kernels=((0, TAPS), (1, np.eye(2)))), id="not separable"),
            pytest.param(Case(kernels=((0, np.eye(2)), (1, TAPS))), id="not separable, first"),
            pytest.param(Case(kernels=((0, np.eye(3)),)), id="not separable, alone"),
            pytest.param(Case(kernels=((0, NEARLY),)), id="nearly separable"),
            pytest.param(Case(resize={**REPEATED, "nearest_mode": "ceil"}), id="ceil"),
            pytest.param(Case(target=(28, 17), resize=REPEATED), id="no whole factor"),
            pytest.param(
                Case(resize={**REPEATED, "coordinate_transformation_mode": "half_pixel"}),
                id="nearest, half pixel",
            ),
            pytest.param(Case(pad={"mode": "constant"}), id="constant pad"),
            pytest.param(Case(pad={"mode": "edge"}), id="edge pad"),
            pytest.param(Case(pad={"mode": "wrap"}), id="wrap pad"),
            pytest.param(Case(margins=(2, 2, 2, -1)), id="crop"),
            pytest.param(
                Case(target=(28, 3), margins=(2, 3, 2, 3)), id="margin as wide as the map"
            ),
            pytest.param(Case(outputs=("big",)), id="resized is an output"),
            pytest.param(Case(outputs=("padded",)), id="padded is an output"),
            pytest.param(Case(outputs=("once",)), id="half blurred is an output"),
            pytest.param(Case(read_again="big"), id="resized is read again"),
            pytest.param(Case(read_again="padded"), id="padded is read again"),
            pytest.param(Case(read_again="once"), id="half blurred is read again"),
            pytest.param(Case(static=False, scales=(4.0, 4.0)), id="dynamic size"),
            pytest.param(Case(dtype=np.float64), id="float64"),
            pytest.param(Case(dtype=np.float16), id="float16"),
        ],
    )
    def test_almost_the_rule(self, case):
        assert_left_alone(case.model())

    def test_a_resize_of_named_axes(self):
        model = Case(opset=18, resize={"axes": [2, 3]}).model()
        for tensor in model.graph.initializer:
            if tensor.name == "sizes":
                tensor.CopyFrom(numpy_helper.from_array(np.array([28, 20]), "sizes"))
        assert_left_alone(model)

    def test_a_pad_of_named_axes(self):
        model = Case(opset=18).model()
        pads = numpy_helper.from_array(np.array([2, 2, 2, 2]), "pads")
        for tensor in model.graph.initializer:
            if tensor.name == "pads":
                tensor.CopyFrom(pads)
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
        model.graph.node[1].input.extend(["", "axes"])
        assert_left_alone(model)

    @pytest.mark.parametrize("name", ["w0", "w1", "pads"])
    def test_a_constant_that_is_an_input_of_the_graph(self, name):
        model = Case().model()
        (tensor,) = [each for each in model.graph.initializer if each.name == name]
        value = helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        model.graph.initializer.remove(tensor)
        model.graph.input.append(value)
        assert_left_alone(model)

    @pytest.mark.parametrize("name", ["w0", "w1", "pads"])
    def test_a_default_that_the_caller_may_replace(self, name):
        model = Case().model()
        (tensor,) = [each for each in model.graph.initializer if each.name == name]
        value = helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(value)
        assert_left_alone(model)

    def test_a_kernel_that_is_computed(self):
        model = Case().model()
        model.graph.node.insert(0, helper.make_node("Abs", ["w0"], ["computed"], "abs"))
        model.graph.node[3].input[1] = "computed"
        assert_left_alone(model)

    def test_no_pad(self):
        model = Case().model()
        model.graph.node[2].input[0] = "big"
        del model.graph.node[1]
        assert_left_alone(model)

    def test_no_convolution(self):
        model = Case(kernels=()).model()
        model.graph.node[1].output[0] = "y"
        assert_left_alone(model)

    def test_an_empty_graph(self):
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        assert_left_alone(helper.make_model(helper.make_graph([], "empty", [value], [value])))
