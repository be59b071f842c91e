import copy
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from vadexport.backends.pytorch import PyTorchRunner
from vadexport.detectors.steps import EagerPreprocessing, Normalise, Resize, SwapChannels
from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.verification.drift import DriftUnit, fitted_scores
from vadexport.verification.limits import Limits, parity_checks
from vadexport.verification.parity import compare_images, figures

# What is wrong with an artifact stands here as a wrong detector, or as wrong outputs of a right
# one; `judged` holds it against the untouched reference by the default limits of float32.


@pytest.fixture(scope="module")
def unseen(coloured):
    """Images that the detector was not fitted on, dark and bright ones among them."""
    images = [255 - image[:, ::-1] for image in coloured[:6]]
    return [*images, coloured[0] // 3, 255 - coloured[1] // 3]


@pytest.fixture(scope="module")
def judged(resizing, unseen):
    """Names of the checks that fall short, of something that takes images and gives outputs."""
    reference = PyTorchRunner(resizing, 1).infer
    unit = DriftUnit.of(fitted_scores(resizing.normal_scores.numpy())).value

    def judge(infer, batch=1, precision="fp32"):
        image_input = replace(resizing.image_input, batch=batch)
        named = [(str(number), None, image) for number, image in enumerate(unseen)]
        records = compare_images(reference, {"x": infer}, named, image_input, resizing.thresholds)[
            "x"
        ]
        checks = parity_checks(figures(records, unit), Limits.of_precision(precision))
        return {check.name for check in checks if not check.held}

    return judge


# ------------------------------------------------------------------------ wrong detectors
class Rebuilt(nn.Module):
    """The detector with other steps of preprocessing."""

    def __init__(self, detector, steps):
        super().__init__()
        self.detector, self.steps = detector, EagerPreprocessing(tuple(steps))

    def forward(self, image):
        detector = self.detector
        return detector.outputs(detector.scores(self.steps(image)))


def resized(steps, **changes):
    return [replace(step, **changes) if isinstance(step, Resize) else step for step in steps]


def normalised(steps, change):
    return [change(step) if isinstance(step, Normalise) else step for step in steps]


STEPS = {
    "no antialiasing": lambda steps: resized(steps, antialias=False),
    "nearest neighbours": lambda steps: resized(steps, interpolation="nearest", antialias=False),
    "bicubic": lambda steps: resized(steps, interpolation="bicubic"),
    "blue first": lambda steps: [SwapChannels(), *steps],
    "mean and deviation swapped": lambda steps: normalised(
        steps, lambda step: Normalise(step.std, step.mean)
    ),
    "no normalisation": lambda steps: [s for s in steps if not isinstance(s, Normalise)],
    "normalised twice": lambda steps: [*steps, *(s for s in steps if isinstance(s, Normalise))],
    "resized twice": lambda steps: [Resize((32, 40)), *steps],
    "divided by 256": lambda steps: normalised(
        steps, lambda step: Normalise(step.mean, tuple(256 / 255 * each for each in step.std))
    ),
}


@pytest.mark.parametrize("fault", STEPS)
def test_wrong_preprocessing(judged, resizing, fault):
    wrong = Rebuilt(resizing, STEPS[fault](resizing.steps))
    assert "drift" in judged(PyTorchRunner(wrong, 1).infer)


def first_convolution(detector):
    return next(module for module in detector.modules() if isinstance(module, nn.Conv2d))


def last_convolution(detector):
    return [module for module in detector.modules() if isinstance(module, nn.Conv2d)][-1]


def drop_a_channel(detector):
    first_convolution(detector).weight[0] = 0


def drop_a_deep_channel(detector):
    last_convolution(detector).weight[:8] = 0


def bfloat16_weights(detector):
    for parameter in detector.parameters():
        parameter.copy_(parameter.bfloat16().float())


def other_weights(detector):
    conv = first_convolution(detector)
    conv.weight.copy_(conv.weight.flip(0))


def drop_half_of_the_bank(detector):
    detector.memory_bank = detector.memory_bank[::2].contiguous()
    detector.neighbour_table = detector.neighbour_table[::2] // 2


def bfloat16_bank(detector):
    detector.memory_bank = detector.memory_bank.bfloat16().float()


def shift_the_bank(detector):
    detector.memory_bank = detector.memory_bank.roll(1, 1)


def another_threshold(detector):
    limits = detector.thresholds
    detector.thresholds = replace(limits, image=limits.image * 1.01)


def another_pixel_threshold(detector):
    limits = detector.thresholds
    detector.thresholds = replace(limits, pixel=limits.pixel * 0.99)


def another_range(detector):
    limits = detector.thresholds
    detector.thresholds = replace(limits, maximum=limits.maximum * 1.01)


def sharper_map(detector):
    detector.blur_kernel = torch.zeros_like(detector.blur_kernel)
    detector.blur_kernel[len(detector.blur_kernel) // 2] = 1


def clipped_activation(detector):
    batch_norm = next(each for each in detector.modules() if isinstance(each, nn.BatchNorm2d))
    batch_norm.register_forward_hook(lambda _module, _inputs, output: output.clamp(max=1.0))


WEIGHTS = {
    drop_a_channel: "drift",
    drop_a_deep_channel: "drift",
    bfloat16_weights: "drift",
    other_weights: "drift",
    clipped_activation: "drift",
    drop_half_of_the_bank: "drift",
    bfloat16_bank: "drift",
    shift_the_bank: "drift",
    another_threshold: "outputs",
    another_pixel_threshold: "outputs",
    another_range: "outputs",
    sharper_map: "map",
}


@pytest.mark.parametrize("plant", WEIGHTS, ids=lambda plant: plant.__name__)
def test_a_wrong_detector(judged, resizing, plant):
    wrong = copy.deepcopy(resizing)
    with torch.inference_mode():
        plant(wrong)
    assert WEIGHTS[plant] in judged(PyTorchRunner(wrong, 1).infer)


# -------------------------------------------------------------------------- wrong outputs
def spoilt(name, change):
    def spoil(outputs):
        return {**outputs, name: change(outputs[name])}

    return spoil


def rolled(axis):
    return lambda anomaly_map: np.roll(anomaly_map, 1, axis)


def upsampled_again(anomaly_map):
    small = functional.interpolate(torch.from_numpy(anomaly_map), scale_factor=0.25)
    return functional.interpolate(small, anomaly_map.shape[-2:]).numpy()


OUTPUTS = {
    "map shifted by a pixel": (spoilt("anomaly_map", rolled(2)), "map"),
    "map upside down": (spoilt("anomaly_map", lambda m: m[:, :, ::-1].copy()), "map"),
    "map mirrored": (spoilt("anomaly_map", lambda m: m[:, :, :, ::-1].copy()), "map"),
    "map of coarse pixels": (spoilt("anomaly_map", upsampled_again), "map"),
    "map of another scale": (spoilt("anomaly_map", lambda m: m * 1.03), "map"),
    "score before the root": (spoilt("raw_score", np.square), "drift"),
    "score clamped to one": (spoilt("raw_score", lambda raw: raw.clip(0, 1)), "drift"),
    "score of the mean": (spoilt("raw_score", lambda raw: raw * 0.9), "drift"),
    "normalised twice": (spoilt("pred_score", lambda s: (s - 0.5) / 2 + 0.5), "outputs"),
    "label inverted": (spoilt("pred_label", np.logical_not), "outputs"),
    "mask inverted": (spoilt("pred_mask", np.logical_not), "outputs"),
    "mask empty": (spoilt("pred_mask", np.zeros_like), "outputs"),
}


@pytest.mark.parametrize("fault", OUTPUTS)
def test_wrong_outputs(judged, resizing, fault):
    spoil, check = OUTPUTS[fault]
    infer = PyTorchRunner(resizing, 1).infer
    assert check in judged(lambda call: spoil(infer(call)))


class Misbehaving:
    """A runner that is right but for one thing."""

    def __init__(self, detector):
        self.infer_rightly = PyTorchRunner(detector, 1).infer
        self.calls = 0
        self.last = None

    def not_a_number(self, call):
        outputs = self.infer_rightly(call)
        self.calls += 1
        if self.calls == 4:
            outputs = {**outputs, "raw_score": outputs["raw_score"] * np.float32("nan")}
        return outputs

    def infinite_map(self, call):
        outputs = self.infer_rightly(call)
        self.calls += 1
        if self.calls == 2:
            outputs["anomaly_map"][0, 0, 0, 0] = np.inf
        return outputs

    def image_before(self, call):
        call, self.last = (call if self.last is None else self.last), call
        return self.infer_rightly(call)

    def noisy(self, call):
        outputs = self.infer_rightly(call)
        self.calls += 1
        noise = np.float32(1 + 0.01 * np.sin(99 * self.calls))
        return {**outputs, "raw_score": outputs["raw_score"] * noise}

    def signed_bytes(self, call):
        return self.infer_rightly(call.view(np.int8).astype(np.int16).clip(0, 127).astype(np.uint8))

    def mirrored(self, call):
        return self.infer_rightly(np.ascontiguousarray(call[:, :, ::-1]))

    def shifted(self, call):
        return self.infer_rightly(np.roll(call, 4, 2))


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("not_a_number", "finite"),
        ("infinite_map", "finite"),
        ("image_before", "drift"),
        ("noisy", "drift"),
        ("signed_bytes", "drift"),
        ("mirrored", "map"),
        ("shifted", "map"),
    ],
)
def test_a_wrong_run(judged, resizing, fault, check):
    assert check in judged(getattr(Misbehaving(resizing), fault))


def test_images_of_a_call_mixed_up(judged, resizing):
    infer = PyTorchRunner(resizing, 1).infer
    mixed = judged(lambda call: {k: v[::-1].copy() for k, v in infer(call).items()}, batch=4)
    assert {"drift", "map"} <= mixed


# ------------------------------------------------------------------------------- harmless
def run_onnx(model, level=None):
    options = onnxruntime.SessionOptions()
    if level is not None:
        options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return lambda call: dict(zip(names, session.run(names, {"image": call}), strict=True))


class TestHarmless:
    def test_the_reference_itself(self, judged, resizing):
        assert judged(PyTorchRunner(resizing, 1).infer) == set()

    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("step", [0, 1])
    def test_graphs(self, judged, graph_of, batch, step):
        assert judged(run_onnx(graph_of("resizing", batch)[step].model), batch) == set()

    def test_a_dynamic_batch(self, judged, graph_of):
        assert judged(run_onnx(graph_of("resizing", None)[1].model), 2) == set()

    def test_rewrites(self, judged, graph_of):
        model, places = apply_passes(graph_of("resizing", 1)[1].model, DEFAULT_PASSES)
        assert any(places.values())
        assert judged(run_onnx(model)) == set()

    def test_no_optimisation_of_the_graph(self, judged, graph_of):
        off = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        assert judged(run_onnx(graph_of("resizing", 1)[1].model, off)) == set()

    def test_a_bank_in_another_order(self, judged, resizing):
        other = copy.deepcopy(resizing)
        order = torch.randperm(len(other.memory_bank), generator=torch.Generator().manual_seed(0))
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        other.memory_bank = other.memory_bank[order]
        other.neighbour_table = place[other.neighbour_table[order]]
        assert judged(PyTorchRunner(other, 1).infer) == set()

    def test_another_layout_in_memory(self, judged, resizing):
        other = copy.deepcopy(resizing).to(memory_format=torch.channels_last)
        assert judged(PyTorchRunner(other, 1).infer) == set()

    def test_rounding_of_weights(self, judged, resizing):
        other = copy.deepcopy(resizing)
        rng = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            for parameter in other.parameters():
                parameter.mul_(1 + 1e-7 * torch.randn(parameter.shape, generator=rng))
        assert judged(PyTorchRunner(other, 1).infer) == set()

    def test_outputs_in_another_order(self, judged, resizing):
        infer = PyTorchRunner(resizing, 1).infer
        assert judged(lambda call: dict(reversed(infer(call).items()))) == set()

    def test_a_bank_stored_once_more(self, judged, graph_of):
        model = onnx.ModelProto()
        model.CopyFrom(graph_of("resizing", 1)[1].model)
        extra = numpy_helper.from_array(np.zeros(3, np.float32), "unused")
        model.graph.initializer.append(extra)
        assert judged(run_onnx(model)) == set()
