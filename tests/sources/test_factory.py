import sys
from pathlib import Path

import pytest
import torch

from vadexport.errors import InputError
from vadexport.sources import SourceSpec, open_source

CODE = Path(__file__).with_name("conftest.py")


@pytest.fixture
def factory(in_folder, monkeypatch):
    """Write a module into the current folder; it is forgotten after the test."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(text, name="own_model"):
        (in_folder / f"{name}.py").write_text(text, encoding="utf-8")
        return f"python:{name}:make"

    yield make
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


GOOD = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("own_network", {str(CODE)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
def make(returns="dict"): return module.Network(returns).eval()
def train(): return module.Network()
def map_only(): return make("map")
def gray(): return module.Network(channels=1).eval()
value = 3
"""


@pytest.mark.parametrize("batch", [1, 3, None])
def test_scores_as_the_module_does(factory, network, whole_way, batch):
    source = open_source(
        SourceSpec(factory(GOOD), image_size=(41, 33), pixel_threshold=1, threshold=2)
    )
    assert (source.kind, source.name, source.size) == ("factory", "python:own_model:make", None)
    assert source.runs_code == "make of the Python module own_model"
    assert source.detector.family == "Network"
    _, images, found = whole_way(source, batch)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = network().eval()(x)
    torch.testing.assert_close(torch.from_numpy(found["raw_score"]), expected["pred_score"])
    assert (found["pred_mask"] == (found["anomaly_map"] > 1)).all()


def test_a_map_alone_and_gray(factory, whole_way):
    factory(GOOD)
    for name, camera in (("map_only", None), ("gray", "gray16")):
        given = SourceSpec(f"python:own_model:{name}", image_size=(32, 40), camera=camera)
        source = open_source(given)
        assert source.detector.image_input.channels == (1 if camera else 3)
        whole_way(source, None)


def test_the_digest_is_of_weights_and_code(factory):
    first = open_source(SourceSpec(factory(GOOD))).sha256
    assert open_source(SourceSpec(factory(GOOD))).sha256 == first
    assert open_source(SourceSpec("python:own_model:gray", camera="gray")).sha256 != first
    Path("own_model.py").write_text(GOOD + "# more\n", encoding="utf-8")
    assert open_source(SourceSpec("python:own_model:make")).sha256 != first


def test_the_search_path_stays_as_it_was(factory):
    before = list(sys.path)
    open_source(SourceSpec(factory(GOOD)))
    assert sys.path == before


def test_training_mode_names_the_layer(factory):
    factory(GOOD)
    with pytest.raises(InputError, match=r"norm \(BatchNorm2d\) for one: call \.eval\(\) in the"):
        open_source(SourceSpec("python:own_model:train"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make():\n    x = 1\n    raise ValueError('no weights\\nhere')",
         r"make fails: ValueError: no weights \(own_model\.py:3\)"),
        ("def make(): raise SystemExit(3)", r"fails: SystemExit: 3 \(own_model\.py:1\)"),
        ("def make(size): pass", r"fails: TypeError: .*missing 1 required.*'size'"),
        ("def make(): return 3", "returns a value of type int: wanted is an nn.Module"),
        ("make = 3", "make of own_model is of type int"),
        ("", "own_model has no make"),
        ("1 / 0", r"importing own_model fails: ZeroDivisionError.*\(own_model\.py:1\)"),
        ("def make(:", r"importing own_model fails: SyntaxError"),
        ("import own_missing_part", r"importing own_model fails: ModuleNotFoundError.*own_missing"),
        ("import sys; sys.exit(1)", "importing own_model fails: SystemExit"),
    ],
)  # fmt: skip
def test_factories_that_fail(factory, text, message):
    with pytest.raises(InputError, match=message) as caught:
        open_source(SourceSpec(factory(text)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["own_nowhere", "own_nowhere.models"])
def test_modules_that_are_not_there(in_folder, name):
    with pytest.raises(InputError, match=f"no Python module own_nowhere: .*{in_folder.name}"):
        open_source(SourceSpec(f"python:{name}:make"))


@pytest.mark.parametrize(
    "location",
    ["", "a", "a:", ":b", "a.py:b()", "a..b:c", "../a:b", "1a:b", "a:b:c"],
)
def test_locations_that_name_nothing(location):
    with pytest.raises(InputError, match=r"write python:package\.module:factory"):
        open_source(SourceSpec(f"python:{location}"))


def test_random_numbers_are_refused(factory):
    text = """
import torch
class Noisy(torch.nn.Module):
    def forward(self, x):
        return (x + torch.rand_like(x)).mean(1)
def make(): return Noisy().eval()
"""
    with pytest.raises(InputError, match=r"two values of 0 for one image.*call \.eval\(\).*seed"):
        open_source(SourceSpec(factory(text)))


def test_images_that_are_mixed_are_refused(factory):
    text = """
import torch
class Mixing(torch.nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3)) - x.mean()
def make(): return Mixing().eval()
"""
    with pytest.raises(InputError, match="depends on the other images"):
        open_source(SourceSpec(factory(text)))


def test_a_model_of_one_image_a_call(factory, whole_way):
    text = """
import torch
class One(torch.nn.Module):
    def forward(self, x):
        if x.shape[0] != 1:
            raise ValueError("one image, please")
        return x.mean(1)
def make(): return One().eval()
"""
    source = open_source(SourceSpec(factory(text), image_size=(20, 30)))
    assert source.detector.facts()["images a call"] == 1
    whole_way(source, 1)


FICKLE = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.calls = kind, 0
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        with torch.no_grad():
            for value in self.parameters():
                value.fill_(0.5)

    def forward(self, x):
        anomaly_map = self.conv(x)
        score = anomaly_map.amax((1, 2, 3))
        if self.kind == "growing":
            self.calls += 1
            return [score, anomaly_map] + [score] * self.calls
        found = [score, anomaly_map]
        found.append(found)
        return found

class Seeded(Model):
    def forward(self, x):
        torch.manual_seed(0)
        anomaly_map = self.conv(x) + torch.rand(x.shape[-2:])
        return anomaly_map.amax((1, 2, 3)), anomaly_map

def seeded(): return Seeded("seeded").eval()
def make(): return Model("growing").eval()
def endless(): return Model("endless").eval()
def unseeded(): return nn.Sequential(nn.Conv2d(3, 1, 3)).eval()
def talking():
    print("loading")
    return nn.Sequential(nn.Conv2d(3, 1, 3).requires_grad_(False).apply(zero)).eval()
def zero(layer):
    layer.weight.data.zero_()
    layer.bias.data.zero_()
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("make", "its outputs, of which there are others each time"),
        ("endless", "nested without end"),
        ("seeded", "draws random numbers, if always the same ones"),
        ("unseeded", "gives other weights each time that it is called"),
    ],
)
def test_models_that_are_never_the_same(factory, name, words):
    factory(FICKLE)
    with pytest.raises(InputError, match=words):
        open_source(SourceSpec(f"python:own_model:{name}", outputs="score=0,map=1"))


def test_what_a_factory_prints_is_no_result(factory, capsys):
    factory(FICKLE)
    open_source(SourceSpec("python:own_model:talking", image_size=(16, 16)))
    told = capsys.readouterr()
    assert told.out == ""
    assert "loading" in told.err
