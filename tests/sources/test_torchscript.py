from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from vadexport.errors import InputError
from vadexport.sources import SourceSpec, open_source


class Pair(NamedTuple):
    pred_score: Tensor
    anomaly_map: Tensor


class Scripted(nn.Module):
    """With a branch, a loop, a named tuple and a list of sizes: what scripts hold."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.deep = True

    def forward(self, x: Tensor) -> Pair:
        y = self.norm(self.conv(x))
        for _ in range(2):
            y = torch.relu(y) + 0.1
        if self.deep:
            y = self.drop(y)
        coarse = nn.functional.avg_pool2d(y.pow(2).mean(1, keepdim=True), 4)
        size = x.shape[-2:]
        anomaly_map = nn.functional.interpolate(coarse, size=size, mode="bilinear")
        return Pair(anomaly_map.amax((1, 2, 3)), anomaly_map)


@pytest.fixture
def save(tmp_path, quietly):
    def make(module, batch=2, *, traced=False):
        path = tmp_path / "model.pt"
        if traced:
            example = torch.zeros(batch, 3, 32, 40)
            script = quietly(torch.jit.trace, module, example, strict=False)
        else:
            script = quietly(torch.jit.script, module)
        quietly(torch.jit.save, script, path)
        return path

    return make


@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize("returns", ["dict", "tuple", "map"])
def test_a_trace_scores_as_the_module_does(save, network, whole_way, preprocessed, batch, returns):
    module = network(returns).eval()
    given = SourceSpec(str(save(module, traced=True)), image_size=(32, 40), threshold=9.0)
    source = open_source(given)
    assert (source.kind, source.runs_code) == ("torchscript", None)
    _, images, found = whole_way(source, batch)
    x = preprocessed(images)
    with torch.inference_mode():
        expected = network("dict").eval()(x)
    torch.testing.assert_close(torch.from_numpy(found["anomaly_map"]), expected["anomaly_map"])
    score = expected["pred_score"] if returns != "map" else expected["anomaly_map"].amax((1, 2, 3))
    torch.testing.assert_close(torch.from_numpy(found["raw_score"]), score)


def test_a_script_on_images_of_another_size(save, whole_way, preprocessed):
    from vadexport.detectors.steps import Resize

    module = Scripted().eval()
    steps = (Resize((32, 40)),)
    source = open_source(SourceSpec(str(save(module)), image_size=(71, 53), steps=steps))
    assert source.detector.family == "Scripted"
    _, images, found = whole_way(source, None)
    with torch.inference_mode():
        expected = module(preprocessed(images))
    torch.testing.assert_close(torch.from_numpy(found["raw_score"]), expected.pred_score)


def test_gray_is_found_out(tmp_path, network, quietly, whole_way):
    module = network("tuple", channels=1).eval()
    traced = quietly(torch.jit.trace, module, torch.zeros(2, 1, 32, 40))
    quietly(torch.jit.save, traced, tmp_path / "gray.pt")
    source = open_source(SourceSpec(str(tmp_path / "gray.pt")))
    assert source.detector.image_input.channels == 1
    whole_way(source, 1)


def test_training_mode_names_the_layer(save):
    with pytest.raises(InputError, match=r"norm \(BatchNorm2d\).*call \.eval\(\).*torch\.jit"):
        open_source(SourceSpec(str(save(Scripted()))))


def test_random_numbers_are_refused(save):
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + torch.rand_like(x)).mean(1)

    with pytest.raises(InputError, match="two values of 0 for one image"):
        open_source(SourceSpec(str(save(Noisy().eval()))))


def test_a_size_that_does_not_fit(save):
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape([x.shape[0], 3 * 32 * 40]).mean(1)

    path = str(save(Fixed().eval()))
    with pytest.raises(InputError, match=r"cannot take float32 \[2, 3, 256, 256\].*--image-size"):
        open_source(SourceSpec(path))
    assert open_source(SourceSpec(path, image_size=(32, 40))).detector.map_size is None


def test_files_are_out_of_reach(save, tmp_path):
    class Writing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.save(x, "stolen.pt")
            return x.mean((1, 2, 3))

    path = save(Writing().eval())
    with pytest.raises(InputError, match=r"reaches files or networks \(save\).*--trust-pickle"):
        open_source(SourceSpec(str(path)))
    assert not (tmp_path / "stolen.pt").exists()


def test_what_cannot_be_converted_says_so(save):
    class Sorting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            names: list[str] = ["a", "b"]
            scale = 1.0
            while scale < float(x.mean()):
                scale = scale * 2.0 + len(names)
            return x.mean((1, 2, 3)) * scale

    with pytest.raises(InputError, match=r"no graph can be made of.*torch\.export\.save"):
        open_source(SourceSpec(str(save(Sorting().eval())), image_size=(32, 40)))


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated(save, network, keep):
    path = save(network("tuple").eval(), traced=True)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    from vadexport.sources.torchscript import open_torchscript

    with pytest.raises(InputError, match=r"truncated or damaged|no TorchScript") as caught:
        open_torchscript(SourceSpec(str(path)))
    assert "\n" not in str(caught.value)


class Deciding(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        score = x.mean((1, 2, 3))
        return score, x.mean(1, keepdim=True), score > 0.5


def test_a_script_that_also_decides(save):
    path = save(Deciding().eval())
    source = open_source(SourceSpec(str(path), outputs="score=0,map=1", image_size=(16, 16)))
    assert source.detector.map_size == (16, 16)
