"""A small network with a map and a score, saved in every format, and the way through the graph."""

import warnings
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from vadexport.contract import INPUT_NAME

SIZE = (32, 40)


class Network(nn.Module):
    """Score and map of images [N, C, 32, 40], in the structure that `returns` names."""

    def __init__(self, returns="dict", channels=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=generator))
        self.register_buffer("centre", torch.arange(4.0)[None, :, None, None])
        self.returns = returns

    def forward(self, x):
        anomaly_map = (self.norm(self.conv(x)) - self.centre).pow(2).mean(1, keepdim=True)
        score = anomaly_map.mean((1, 2, 3))
        match self.returns:
            case "dict":
                return {"pred_score": score, "anomaly_map": anomaly_map}
            case "tuple":
                return score[:, None], anomaly_map
            case "map":
                return anomaly_map[:, 0]
            case "score":
                return score
            case "nested":
                return [{"a": anomaly_map}, (score, None)]
            case "scores":
                return {"first": score, "second": -score}


@pytest.fixture
def network():
    return Network


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def camera_images():
    """Images of one input that no test has seen, `camera_images(image_input, number)`."""

    def make(image_input, number):
        rng = np.random.default_rng(11)
        shape = (number, image_input.height, image_input.width, image_input.channels)
        white = np.iinfo(image_input.dtype).max
        faint = np.linspace(1, 0.3, number)[:, None, None, None]
        return (rng.random(shape) * faint * white).astype(image_input.dtype)

    return make


@pytest.fixture(scope="session")
def whole_way(camera_images):
    """Trace, simplify and run a source in ONNX Runtime; hold it against its reference.

    Gives the reference's outputs for the images that it made.
    """
    from vadexport.tracing.graph import simplify, trace

    def go(source, batch=1, number=3):
        image_input = replace(source.detector.image_input, batch=batch)
        graph = simplify(trace(source.detector, image_input))
        session = onnxruntime.InferenceSession(graph.model.SerializeToString())
        names = [output.name for output in session.get_outputs()]
        images = camera_images(image_input, batch or number)
        found = dict(zip(names, session.run(None, {INPUT_NAME: images}), strict=True))
        expected = source.open_reference(1).infer(images)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name].shape == value.shape, name
            if value.dtype == bool:
                assert np.mean(found[name] != value) < 1e-3, name
            else:
                np.testing.assert_allclose(
                    found[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max(), err_msg=name
                )
        return graph, images, expected

    return go


@pytest.fixture
def save_onnx(tmp_path, quietly):
    """Export a network as users do, `save_onnx(network, names, …)`; the file's path."""

    def make(network, names, batch=2, *, dynamic=True, channels=3, opset=17, **options):
        path = tmp_path / "model.onnx"
        quietly(
            torch.onnx.export,
            network.eval(),
            (torch.zeros(batch, channels, *SIZE),),
            path,
            dynamo=False,
            input_names=["image"],
            output_names=names,
            dynamic_axes={"image": {0: "b"}} if dynamic else None,
            opset_version=opset,
            **options,
        )
        return path

    return make


@pytest.fixture(scope="session")
def preprocessed():
    """Camera images as torchvision-like code of a user would preprocess them."""

    def make(images, size=SIZE):
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / np.iinfo(images.dtype).max
        return torch.nn.functional.interpolate(x, size, mode="bilinear", antialias=True)

    return make


@pytest.fixture(scope="session")
def quietly():
    """Run what saves a model in a way that PyTorch deprecates."""

    def run(function, *args, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)

    return run
