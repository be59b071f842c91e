import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.passes.half_graphs import graph
from vadexport.backends.tensorrt.limits import check_limits, unsupported
from vadexport.errors import BackendError


def fault(model, largest_batch=8):
    """What is wrong with a graph, in one line; None where it is nothing."""
    try:
        check_limits(model, largest_batch)
    except BackendError as error:
        text = str(error)
        assert text.startswith("TensorRT: ")
        assert len(text.splitlines()) == 1
        return text.removeprefix("TensorRT: ")
    return None


def quantised(zero, *, named=True, scale=0.1):
    kept = ", zero" if named else ""
    constants = {"zero": zero} if named else {}
    return graph(
        "float[2,3] x",
        f"q = QuantizeLinear(x, scale{kept})\n y = DequantizeLinear(q, scale{kept})",
        "float[2,3] y",
        scale=np.array(scale),
        **constants,
    )


class TestCustomOperators:
    @pytest.mark.parametrize("domain", ["com.microsoft", "nobody.knows"])
    def test_are_named_with_their_domain(self, domain):
        model = graph("float[1] x", "y = Relu(x)", "float[1] y")
        node = helper.make_node("FusedConv", ["x"], ["z"], "fused", domain=domain)
        model.graph.node.append(node)
        model.opset_import.append(helper.make_opsetid(domain, 1))
        assert fault(model) == (
            f"node fused is the custom operator {domain}::FusedConv; export the model with ONNX's "
            "own operators"
        )

    @pytest.mark.parametrize("domain", ["", "ai.onnx"])
    def test_onnxs_own_are_none(self, domain):
        model = graph("float[1] x", "y = Relu(x)", "float[1] y")
        model.graph.node[0].domain = domain
        model.opset_import[0].domain = domain
        assert fault(model) is None


class TestTopK:
    def model(self, count, width=5000, batch="1"):
        constant = {} if count is None else {"k": np.array([count])}
        more = "" if count is not None else ", int64[1] k"
        return graph(
            f"float[{batch},{width}] x{more}",
            "y, indices = TopK(x, k)",
            f"float[{batch},K] y",
            **constant,
        )

    @pytest.mark.parametrize(("count", "fits"), [(1, True), (3840, True), (3841, False)])
    def test_takes_3840_at_most(self, count, fits):
        found = fault(self.model(count))
        if fits:
            assert found is None
        else:
            assert found == (
                "node y (TopK) takes the 3841 largest values, its limit is 3840; sort less, or "
                "use another target (onnxruntime:fp16@cuda)"
            )

    @pytest.mark.parametrize(("width", "fits"), [(3840, True), (3841, False)])
    def test_of_as_many_as_a_caller_wants_may_take_all(self, width, fits):
        found = fault(self.model(None, width))
        assert (found is None) == fits
        if not fits:
            assert "takes the 3841 largest values" in found

    @pytest.mark.parametrize(("batch", "fits"), [(3840, True), (4000, False)])
    def test_along_a_dynamic_batch(self, batch, fits):
        model = graph(
            "float[N,2] x, int64[1] k", "y, indices = TopK<axis = 0>(x, k)", "float[K,2] y"
        )
        assert (fault(model, batch) is None) == fits


class TestQuantisers:
    @pytest.mark.parametrize("shape", [(), (3,)])
    def test_int8_with_zero_point_0_is_what_it_knows(self, shape):
        zero, scale = np.zeros(shape, np.int8), np.full(shape, 0.1)
        assert fault(quantised(zero, scale=scale)) is None

    def test_uint8_would_be_read_as_int8(self):
        found = fault(quantised(np.array(0, np.uint8)))
        assert found == (
            "node q (QuantizeLinear) has uint8 values, which it takes for int8: scores would be "
            "wrong; quantise symmetrically, to int8 with zero point 0"
        )

    def test_uint8_is_meant_where_nothing_is_said(self):
        assert fault(quantised(None, named=False)).startswith(
            "node q (QuantizeLinear) has uint8 values"
        )

    def test_the_first_of_several_zero_points_that_is_not_0(self):
        found = fault(quantised(np.array([0, 0, 7], np.int8), scale=np.array([0.1, 0.2, 0.3])))
        assert found.startswith("node q (QuantizeLinear) has zero point ")
        assert found.endswith("it knows 0 only; quantise symmetrically")

    @pytest.mark.parametrize("zero", [-128, -1, 1, 127])
    def test_an_asymmetric_zero_point(self, zero):
        assert fault(quantised(np.array(zero, np.int8))) == (
            f"node q (QuantizeLinear) has zero point {zero}, it knows 0 only; quantise "
            "symmetrically"
        )

    @pytest.mark.parametrize("named", [True, False])
    @pytest.mark.parametrize(
        ("dtype", "words"),
        [(np.int32, "holds an int32 bias"), (np.uint8, "has uint8 values"), (np.int8, None)],
    )
    def test_constants(self, dtype, words, named):
        zero = {"zero": np.array(0, dtype)} if named else {}
        model = graph(
            "float[1,3] x",
            f"bias = DequantizeLinear(stored, scale{', zero' if named else ''})\n y = Add(x, bias)",
            "float[1,3] y",
            stored=np.array([1, 2, 3], dtype),
            scale=np.array(0.1),
            **zero,
        )
        found = fault(model)
        if words is None:
            assert found is None
        else:
            assert found.startswith(f"node bias (DequantizeLinear) {words}")


class TestTypes:
    def test_float64_would_be_rounded_without_a_word(self):
        model = graph(
            "float[2] x",
            "wide = Cast<to = 11>(x)\n sum = Add(wide, wide)\n y = Cast<to = 1>(sum)",
            "float[2] y",
        )
        assert fault(model) == (
            "node wide (Cast) gives float64, which it has not; let the model compute in float32"
        )

    @pytest.mark.parametrize(
        ("dtype", "words"),
        [
            ("UINT16", "uint16"),
            ("INT16", "int16"),
            ("UINT32", "uint32"),
            ("UINT64", "uint64"),
            ("STRING", "string"),
        ],
    )
    def test_others_that_it_has_not(self, dtype, words):
        number = getattr(TensorProto, dtype)
        model = graph("float[2] x", f"y = Cast<to = {number}>(x)", f"{words}[2] y")
        assert fault(model).startswith(f"node y (Cast) gives {words}, which it has not")

    @pytest.mark.parametrize(
        "dtype", ["FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "INT8", "UINT8", "BOOL"]
    )
    def test_that_it_has(self, dtype):
        number = getattr(TensorProto, dtype)
        model = graph("float[2] x", f"y = Cast<to = {number}>(x)", f"{dtype.lower()}[2] y")
        assert fault(model) is None


class TestSizes:
    def test_a_tensor_has_less_than_2_to_the_31_values(self):
        wide = graph("float[1,1] x", "y = Expand(x, to)", "float[H,W] y", to=[65536, 32768])
        assert fault(wide) == (
            "node y (Expand) gives 65536×32768 values, its limit is 2^31; a smaller --batch (of a "
            "dynamic one: --tensorrt batches=…), --image-size or memory bank may do"
        )
        fits = graph("float[1,1] x", "y = Expand(x, to)", "float[H,W] y", to=[65535, 32768])
        assert fault(fits) is None

    @pytest.mark.parametrize(("batch", "fits"), [(31, True), (32, False), (1024, False)])
    def test_a_dynamic_batch_counts_as_the_largest(self, batch, fits):
        # Distances of 4096 patches to a memory bank of 16384 rows.
        model = graph(
            "float[N,4096,1] x",
            "y = MatMul(x, bank)",
            "float[N,4096,16384] y",
            bank=np.zeros((1, 1, 16384)),
        )
        found = fault(model, batch)
        assert (found is None) == fits
        if not fits:
            assert f"gives {batch}×4096×16384 values" in found

    @pytest.mark.parametrize(
        ("shape", "fits"),
        [("N,3,4,4", True), ("N,3,H,4", False), ("1,3,4,W", False), ("1,C,4,4", False)],
    )
    def test_only_the_batch_may_be_open(self, shape, fits):
        found = fault(graph(f"float[{shape}] image", "y = Relu(image)", f"float[{shape}] y"))
        if fits:
            assert found is None
        else:
            assert found == (
                "input image leaves more open than the batch, and no profile says which sizes "
                "come; give --image-size"
            )


def test_a_detector_as_it_is_traced_has_no_fault(graph_of):
    from vadexport.backends.tensorrt.preparing import prepared

    assert fault(prepared(graph_of("resizing", 1)[1].model)) is None


def test_operators_that_a_parser_does_not_know_come_with_their_first_node():
    class Parser:
        def supports_operator(self, name):
            return name not in ("Relu", "Det")

    model = graph("float[2,2] x", "a = Relu(x)\n b = Abs(a)\n c = Relu(b)\n y = Det(c)", "float y")
    assert unsupported(Parser(), model) == {"Relu": "a", "Det": "y"}
