import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from vadexport.errors import InputError
from vadexport.sources import SourceSpec, onnx_file, open_source

NAMES = ["raw_score", "anomaly_map"]


def own_run(path, x):
    session = onnxruntime.InferenceSession(path)
    (name,) = (each.name for each in session.get_inputs())
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {name: x}), strict=True))


@pytest.mark.parametrize("batch", [1, 3, None])
def test_scores_as_the_file_itself_does(save_onnx, network, whole_way, preprocessed, batch):
    path = save_onnx(network("tuple"), NAMES)
    source = open_source(SourceSpec(str(path), image_size=(57, 70), threshold=20.0))
    assert (source.kind, source.name, source.runs_code) == ("onnx", "model.onnx", None)
    assert source.size == path.stat().st_size
    graph, images, found = whole_way(source, batch)
    assert graph.seams == ("preprocessed",)
    expected = own_run(path, preprocessed(images).numpy())
    np.testing.assert_allclose(found["raw_score"], expected["raw_score"][:, 0], rtol=1e-5)
    np.testing.assert_allclose(found["anomaly_map"], expected["anomaly_map"], rtol=1e-5)
    assert (found["pred_mask"] == (found["anomaly_map"] > 20)).all()


def test_the_reference_says_what_it_is(save_onnx, network):
    source = open_source(SourceSpec(str(save_onnx(network("tuple"), NAMES))))
    execution = source.open_reference(1).execution
    assert execution.backend.startswith(f"ONNX Runtime {onnxruntime.__version__} on the ONNX file")
    assert "PyTorch" in execution.backend
    assert execution.precision == "float32"
    facts = source.detector.facts()
    assert "own run in ONNX Runtime" in facts["reference"]
    assert facts["framework"] == f"ONNX of opset 17, by pytorch {torch.__version__.split('+')[0]}"
    assert facts["weights"] == 3 * 4 * 9 + 4 + 4


def test_the_reference_stays_on_the_processor(save_onnx, network, monkeypatch):
    source = open_source(SourceSpec(str(save_onnx(network("tuple"), NAMES))))
    reference = source.open_reference(1)
    image = np.zeros(source.detector.image_input.shape, np.uint8)
    expected, execution = reference.infer(image), reference.execution
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    reference.use_gpu(np.zeros((1, 8, 8, 3), np.uint8))
    assert reference.execution == execution
    np.testing.assert_array_equal(reference.infer(image)["raw_score"], expected["raw_score"])


@pytest.mark.parametrize(
    ("returns", "names"),
    [("map", ["x:0"]), ("score", ["score"]), ("nested", ["map", "pred_score"])],
)
def test_other_outputs(save_onnx, network, whole_way, returns, names):
    source = open_source(SourceSpec(str(save_onnx(network(returns), names))))
    _, _, found = whole_way(source, None)
    assert ("anomaly_map" in found) == (returns != "score")


@pytest.mark.parametrize("opset", [9, 11, 13, 20])
def test_a_static_batch_of_any_opset_takes_any_batch(save_onnx, network, whole_way, opset):
    path = save_onnx(network("tuple"), NAMES, 1, dynamic=False, opset=opset)
    source = open_source(SourceSpec(str(path)))
    assert source.detector.facts()["images a call"] == "any number"
    whole_way(source, None)
    whole_way(source, 3)


def test_a_batch_that_is_baked_in_stays(tmp_path, whole_way):
    from dataclasses import replace

    from vadexport.tracing.graph import trace

    path = tmp_path / "fixed.onnx"
    flat = numpy_helper.from_array(np.array([2, 3 * 8 * 8]), "flat")
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["y"]),
        helper.make_node("ReduceMean", ["y"], ["score"], axes=[1], keepdims=0),
    ]
    save_graph(path, nodes, [2, 3, 8, 8], [("score", [2])], [flat])
    source = open_source(SourceSpec(str(path), image_size=(9, 11)))
    assert source.detector.facts()["images a call"] == 2
    whole_way(source, 2)
    with pytest.raises(InputError, match=r"takes 2 images a call.*--batch 2"):
        trace(source.detector, replace(source.detector.image_input, batch=1))


def test_gray(save_onnx, network, whole_way):
    path = save_onnx(network("tuple", channels=1), NAMES, channels=1)
    source = open_source(SourceSpec(str(path), image_size=(40, 52)))
    assert source.detector.image_input.channels == 1
    whole_way(source, 1)
    with pytest.raises(InputError, match="takes gray images"):
        open_source(SourceSpec(str(path), camera="rgb"))


def save_graph(path, nodes, shape, outputs, weights=(), dtype=TensorProto.FLOAT, **more):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs],
        list(weights),
    )
    opsets = [helper.make_opsetid("", more.pop("opset", 13)), *more.pop("opsets", [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, **more)
    onnx.save(model, path)
    return path


def mean(shape, dtype=TensorProto.FLOAT, path="mean.onnx"):
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["y"], ["score"], axes=[1, 2, 3], keepdims=0),
    ]
    return save_graph(path, nodes, shape, [("score", ["N"])], dtype=dtype)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (
            ["N", 3, 8, 8],
            TensorProto.FLOAT16,
            r"takes float16 \[\?, 3, 8, 8\]: wanted is one input",
        ),
        (["N", 8, 8, 3], TensorProto.UINT8, "takes uint8"),
        (["N", 8, 8, 3], TensorProto.FLOAT, r"channels last \(NHWC\)"),
        (["N", 4, 8, 8], TensorProto.FLOAT, r"takes float32 \[\?, 4, 8, 8\]"),
        (["N", 3, 8], TensorProto.FLOAT, r"takes float32 \[\?, 3, 8\]"),
    ],
)
@pytest.mark.usefixtures("in_folder")
def test_inputs_that_are_no_images(shape, dtype, message):
    with pytest.raises(InputError, match=message):
        open_source(SourceSpec(str(mean(shape, dtype))))


@pytest.mark.usefixtures("in_folder")
def test_any_size(whole_way):
    source = open_source(SourceSpec(str(mean(["N", 3, "h", "w"])), image_size=(20, 24)))
    assert source.detector.steps == ()
    whole_way(source, 1)


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("opset", [18, 21, 22, 23])
def test_opsets_of_later_years(whole_way, opset):
    axes = numpy_helper.from_array(np.array([1, 2, 3]), "axes")
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("ReduceMean", ["y", "axes"], ["score"], keepdims=0),
    ]
    path = save_graph("late.onnx", nodes, ["N", 3, 8, 8], [("score", ["N"])], [axes], opset=opset)
    whole_way(open_source(SourceSpec(path)), 1)


@pytest.mark.usefixtures("in_folder")
def test_two_inputs():
    nodes = [helper.make_node("ReduceMean", ["x"], ["score"], axes=[1, 2, 3], keepdims=0)]
    path = save_graph("two.onnx", nodes, [1, 3, 8, 8], [("score", [1])])
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"takes 2 inputs \(x, z\)"):
        open_source(SourceSpec(path))


@pytest.mark.parametrize("domain", ["my.ops", "ai.onnx.contrib"])
@pytest.mark.usefixtures("in_folder")
def test_custom_operators_are_refused_by_name(domain):
    nodes = [helper.make_node("Secret", ["x"], ["score"], domain=domain)]
    path = save_graph("own.onnx", nodes, [1, 3, 8, 8], [("score", [1])],
                      opsets=[helper.make_opsetid(domain, 1)])  # fmt: skip
    with pytest.raises(InputError, match=f"needs the operator {domain}.Secret"):
        open_source(SourceSpec(path))
    branch = helper.make_graph(nodes, "b", [], [helper.make_empty_tensor_value_info("score")])
    choice = numpy_helper.from_array(np.array([True])[0], "choice")
    node = helper.make_node("If", ["choice"], ["score"], then_branch=branch, else_branch=branch)
    save_graph(path, [node], [1, 3, 8, 8], [("score", [1])], [choice])
    with pytest.raises(InputError, match="Secret"):
        open_source(SourceSpec(path))


@pytest.mark.usefixtures("in_folder")
def test_functions_of_the_file_itself_are_taken(whole_way):
    body = [helper.make_node("ReduceMean", ["a"], ["b"], axes=[1, 2, 3], keepdims=0)]
    own = helper.make_function("my.ops", "Mean", ["a"], ["b"], body, [helper.make_opsetid("", 13)])
    nodes = [helper.make_node("Mean", ["x"], ["score"], domain="my.ops")]
    path = save_graph("own.onnx", nodes, ["N", 3, 8, 8], [("score", ["N"])],
                      opsets=[helper.make_opsetid("my.ops", 1)], functions=[own])  # fmt: skip
    whole_way(open_source(SourceSpec(path)), 1)


@pytest.mark.usefixtures("in_folder")
def test_branches_read_what_lies_outside(whole_way):
    inside = [helper.make_node("Mul", ["level", "gain"], ["out"])]
    branch = helper.make_graph(inside, "b", [], [helper.make_empty_tensor_value_info("out")])
    weights = [
        numpy_helper.from_array(np.array([True])[0], "choice"),
        numpy_helper.from_array(np.array([3], np.float32), "gain"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["level"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("If", ["choice"], ["score"], then_branch=branch, else_branch=branch),
    ]
    path = save_graph("if.onnx", nodes, ["N", 3, 8, 8], [("score", ["N"])], weights)
    _, images, found = whole_way(open_source(SourceSpec(path, image_size=(8, 8))), None)
    np.testing.assert_allclose(found["raw_score"], images.mean((1, 2, 3)) / 255 * 3, rtol=1e-5)


@pytest.fixture
def external(save_onnx, network):
    path = save_onnx(network("tuple"), NAMES)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def moved(path, location):
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, path)


def test_weights_beside_it(external, whole_way):
    source = open_source(SourceSpec(str(external)))
    weights = external.with_name("weights.bin")
    assert source.size == external.stat().st_size + weights.stat().st_size
    whole_way(source, 1)
    weights.write_bytes(weights.read_bytes()[::-1])
    try:
        assert open_source(SourceSpec(str(external))).sha256 != source.sha256
    except InputError as error:  # what the bytes mean backwards need not be finite
        assert "finite" in str(error)  # noqa: PT017


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "a/../../weights.bin", ""])
def test_weights_elsewhere_are_refused(external, location):
    external.parent.with_name("weights.bin").write_bytes(b"0" * 10000)
    moved(external, location)
    with pytest.raises(InputError, match="outside its own folder: refused"):
        open_source(SourceSpec(str(external)))


def test_weights_behind_a_link_are_refused(external, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "weights.bin"
    weights = external.with_name("weights.bin")
    elsewhere.write_bytes(weights.read_bytes())
    weights.unlink()
    weights.symlink_to(elsewhere)
    with pytest.raises(InputError, match="outside its own folder: refused"):
        open_source(SourceSpec(str(external)))


def test_weights_that_are_not_there(external):
    external.with_name("weights.bin").unlink()
    with pytest.raises(InputError, match=r"takes weights from weights\.bin, which is not there"):
        open_source(SourceSpec(str(external)))


def test_weights_that_are_too_short(external):
    external.with_name("weights.bin").write_bytes(b"12")
    with pytest.raises(InputError, match=r"weights of .* cannot be read") as caught:
        open_source(SourceSpec(str(external)))
    assert "\n" not in str(caught.value)


def test_files_that_are_too_large(external, monkeypatch):
    monkeypatch.setattr(onnx_file, "_LIMIT", external.stat().st_size)
    with pytest.raises(InputError, match="more than the 2 GB that one ONNX file can hold"):
        open_source(SourceSpec(str(external)))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated(save_onnx, network, keep):
    path = save_onnx(network("tuple"), NAMES)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(InputError, match=r"truncated or no ONNX|no valid ONNX") as caught:
        open_source(SourceSpec(str(path)))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("in_folder")
def test_graphs_that_are_no_valid_onnx():
    nodes = [helper.make_node("ReduceMean", ["nowhere"], ["score"])]
    path = save_graph("bad.onnx", nodes, [1, 3, 8, 8], [("score", [1])])
    with pytest.raises(InputError, match=r"bad\.onnx is no valid ONNX") as caught:
        open_source(SourceSpec(path))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("in_folder")
def test_chance_is_refused():
    nodes = [
        helper.make_node("RandomUniformLike", ["x"], ["y"]),
        helper.make_node("ReduceMean", ["y"], ["score"], axes=[1, 2, 3], keepdims=0),
    ]
    path = save_graph("chance.onnx", nodes, ["N", 3, 8, 8], [("score", ["N"])])
    with pytest.raises(InputError, match="two values of score for one image"):
        open_source(SourceSpec(path))


def test_options_that_do_not_fit(save_onnx, network):
    path = str(save_onnx(network("scores"), ["a", "b"]))
    with pytest.raises(InputError, match=r"a and b may each be the score.*--outputs"):
        open_source(SourceSpec(path))
    assert open_source(SourceSpec(path, outputs="score=b")).options == {"outputs": "score=b"}
