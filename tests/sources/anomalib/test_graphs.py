"""Graphs against the reference, of models that differ in kind."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from vadexport.backends import openvino
from vadexport.contract import ANOMALY_MAP, PRED_LABEL, PRED_SCORE, RAW_SCORE
from vadexport.sources import SourceSpec, open_source
from vadexport.targets import Target
from vadexport.tracing.graph import simplify, trace

#: Relative to the largest raw score; what issue 4 asks for.
CLOSE = 1e-4
#: Memory bank, Gaussians, student–teacher, three networks, a flow, an autoencoder, density, density
#: of reduced features, a bank of whitened patches, a vision transformer.
#: benchmarks/anomalib_export.py has all others.
FAST = ["Patchcore", "Padim", "Stfpm", "Dfkde"]
SLOW = [
    *("EfficientAd", "Fastflow", "Ganomaly", "Dfm", "MHPatchcore", "AnomalyDINO"),
]
CASES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def run(model, images):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": images}), strict=True))


def assert_alike(found, expected):
    assert set(found) == set(expected)
    largest = np.abs(expected[RAW_SCORE]).max()
    assert np.abs(found[RAW_SCORE] - expected[RAW_SCORE]).max() <= CLOSE * largest
    np.testing.assert_allclose(found[PRED_SCORE], expected[PRED_SCORE], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(found[PRED_LABEL], expected[PRED_LABEL])
    if ANOMALY_MAP in expected:
        assert found[ANOMALY_MAP].shape == expected[ANOMALY_MAP].shape
        np.testing.assert_allclose(found[ANOMALY_MAP], expected[ANOMALY_MAP], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_any_batch_scores_as_the_reference(name, checkpoint_of, textured):
    source = open_source(checkpoint_of(name))
    image_input = source.detector.image_input
    images = textured(3, image_input.height, image_input.width, seed=1)
    graph = simplify(trace(source.detector, replace(image_input, batch=None)))
    reference = source.open_reference(1)
    for count in (1, 3):
        assert_alike(run(graph.model, images[:count]), reference.infer(images[:count]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MHPatchcore", "Padim"])
def test_openvino_scores_as_the_reference(name, checkpoint_of, textured, tmp_path):
    """It computes in float32 what a graph says in float64, and MHPatchcore's whitening wrongly."""
    source = open_source(checkpoint_of(name))
    image_input = source.detector.image_input
    onnx.save(simplify(trace(source.detector, image_input)).model, tmp_path / "graph.onnx")
    target = Target("openvino", "fp32")
    openvino.compile_graph(tmp_path / "graph.onnx", tmp_path, target)
    runner, reference = openvino.open_runner(tmp_path, target, 1), source.open_reference(1)
    for image in textured(3, image_input.height, image_input.width, seed=5):
        assert_alike(runner.infer(image[None]), reference.infer(image[None]))


@pytest.mark.parametrize("size", [(300, 200), (512, 512), (1024, 640)])
def test_other_cameras_are_resized_with_antialiasing(size, checkpoint_of, textured):
    source = open_source(SourceSpec(str(checkpoint_of("Patchcore")), image_size=size))
    assert source.detector.image_input.shape == (1, *size, 3)
    graph = simplify(trace(source.detector, source.detector.image_input))
    images = textured(1, *size, seed=2)
    assert_alike(run(graph.model, images), source.open_reference(1).infer(images))


@pytest.mark.parametrize(("camera", "dtype"), [("gray", np.uint8), ("gray16", np.uint16)])
def test_gray_cameras(camera, dtype, checkpoint_of, textured):
    source = open_source(SourceSpec(str(checkpoint_of("Stfpm")), camera=camera))
    gray = textured(1, 256, 256)[..., :1]
    images = gray if dtype == np.uint8 else gray.astype(dtype) * 257
    graph = simplify(trace(source.detector, source.detector.image_input))
    found = run(graph.model, images)
    assert_alike(found, source.open_reference(1).infer(images))
    # As anomalib scores the same image, read as RGB.
    colour = open_source(checkpoint_of("Stfpm")).open_reference(1)
    assert_alike(found, colour.infer(gray.repeat(3, axis=3)))


def test_float_input_is_what_anomalibs_own_inferencers_feed(checkpoint_of, textured):
    source = open_source(SourceSpec(str(checkpoint_of("Padim")), image_size=(300, 260)))
    image_input = replace(source.detector.image_input, layout="float-nchw")
    model = simplify(trace(source.detector, image_input)).model
    (given,) = model.graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [each.dim_value for each in given.type.tensor_type.shape.dim] == [1, 3, 300, 260]
    images = textured(1, 300, 260)
    ((call, _),) = image_input.batches(images)
    assert_alike(run(model, call), source.open_reference(1).infer(images))


def test_sensitivities_as_trained(zoo, checkpoint_of, textured, tmp_path):
    module = zoo.reload(checkpoint_of("Patchcore"), "Patchcore")
    module.post_processor.image_sensitivity = 0.8
    module.post_processor.pixel_sensitivity = 0.3
    source = open_source(zoo.write(module, tmp_path / "sensitive.ckpt"))
    assert source.detector.thresholds.label_above == np.float32(1 - 0.8)
    assert source.detector.thresholds.pixel == np.float32(1 - 0.3)
    images = textured(4, 256, 256, seed=3)
    model = simplify(trace(source.detector, replace(source.detector.image_input, batch=4))).model
    found = run(model, images)
    assert_alike(found, source.open_reference(1).infer(images))
    np.testing.assert_array_equal(found[PRED_LABEL], found[PRED_SCORE] > np.float32(1 - 0.8))
    for number in range(4):
        one = {key: value[number] for key, value in found.items()}
        assert not source.detector.thresholds.contradicted_by(one)
        one[PRED_LABEL] = not one[PRED_LABEL]
        assert source.detector.thresholds.contradicted_by(one)


@pytest.mark.parametrize("switch", ["enable_normalization", "enable_thresholding"])
def test_what_the_post_processor_leaves_out(switch, zoo, checkpoint_of, textured, tmp_path):
    module = zoo.reload(checkpoint_of("Stfpm"), "Stfpm")
    setattr(module.post_processor, switch, False)
    source = open_source(zoo.write(module, tmp_path / "other.ckpt"))
    images = textured(1, 256, 256, seed=4)
    found = run(simplify(trace(source.detector, source.detector.image_input)).model, images)
    expected = source.open_reference(1).infer(images)
    assert set(found) == set(expected)
    np.testing.assert_allclose(found[PRED_SCORE], expected[PRED_SCORE], rtol=CLOSE)
    if switch == "enable_thresholding":
        assert source.detector.thresholds is None
        assert PRED_LABEL not in found
    else:
        np.testing.assert_array_equal(found[PRED_SCORE], found[RAW_SCORE])


def test_thresholds_follow_from_raw_scores(checkpoint_of, textured):
    source = open_source(checkpoint_of("Patchcore"))
    outputs = source.open_reference(1).infer(textured(1, 256, 256))
    one = {key: value[0] for key, value in outputs.items()}
    assert not source.detector.thresholds.contradicted_by(one)
    one[PRED_SCORE] = one[PRED_SCORE] + np.float32(0.01)
    assert source.detector.thresholds.contradicted_by(one)
