import io
import json
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from torch import nn

from vadexport.errors import InputError
from vadexport.sources import SourceSpec, open_source
from vadexport.sources.exported_archive import check_archive
from vadexport.tracing.graph import trace

WEIGHTS, MODEL = "data/weights/model_weights_config.json", "models/model.json"


@pytest.fixture
def save(tmp_path, quietly):
    def make(network, batch=2, *, dynamic=True, training=False, shape=(3, 32, 40)):
        path = tmp_path / "model.pt2"
        shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
        example = torch.zeros(batch, *shape)
        program = torch.export.export(network.train(training), (example,), dynamic_shapes=shapes)
        quietly(torch.export.save, program, path)
        return path

    return make


@pytest.fixture
def changed():
    """Write an archive again with some of its files changed or added."""

    def make(path, changes):
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        root = next(iter(files)).split("/")[0]
        for name, change in changes.items():
            full = f"{root}/{name}"
            files[full] = change(files[full]) if callable(change) else change
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path

    return make


@pytest.mark.parametrize("batch", [1, 3, None])
def test_scores_as_the_module_does(save, network, whole_way, preprocessed, batch):
    module = network().eval()
    source = open_source(SourceSpec(str(save(module)), image_size=(67, 50)))
    assert (source.kind, source.runs_code) == ("exported program", None)
    assert source.name == "model.pt2"
    outputs = "pred_score float32 [N], anomaly_map float32 [N, 1, 32, 40]"
    assert source.detector.facts()["model outputs"] == outputs
    assert source.size > 0
    graph, images, found = whole_way(source, batch)
    assert graph.seams == ("preprocessed",)
    with torch.inference_mode():
        expected = module(preprocessed(images))
    torch.testing.assert_close(torch.from_numpy(found["raw_score"]), expected["pred_score"])
    torch.testing.assert_close(torch.from_numpy(found["anomaly_map"]), expected["anomaly_map"])
    assert set(found) == {"pred_score", "raw_score", "anomaly_map"}


@pytest.mark.parametrize("returns", ["tuple", "map", "score", "nested"])
def test_other_structures(save, network, whole_way, returns):
    source = open_source(SourceSpec(str(save(network(returns))), threshold=20.0))
    _, _, found = whole_way(source, 1)
    assert ("anomaly_map" in found) == (returns != "score")
    assert found["pred_label"].dtype == bool
    assert (found["pred_label"] == (found["raw_score"] > 20)).all()
    assert source.options == {"threshold": 20.0}
    thresholds = source.detector.thresholds
    assert (thresholds.image, thresholds.pixel) == (20.0, 20.0)
    assert not thresholds.contradicted_by({name: value[0] for name, value in found.items()})


@pytest.mark.parametrize("batch", [1, 3])
def test_a_program_of_one_batch_runs_that_batch_alone(save, network, whole_way, batch):
    path = save(network("tuple"), batch, dynamic=False)
    source = open_source(SourceSpec(str(path)))
    assert source.detector.facts()["images a call"] == batch
    whole_way(source, batch)
    other = replace(source.detector.image_input, batch=None)
    with pytest.raises(InputError, match=f"takes {batch} image.*--batch {batch}.*dynamic batch"):
        trace(source.detector, other)


def test_the_reference_of_one_batch_scores_any_number(save, network, camera_images):
    path = save(network("tuple"), 3, dynamic=False)
    source = open_source(SourceSpec(str(path)))
    images = camera_images(source.detector.image_input, 5)
    runner = source.open_reference(1)
    together = runner.infer(images)
    assert together["raw_score"].shape == (5,)
    for number in range(5):
        alone = runner.infer(images[number : number + 1])
        assert abs(alone["raw_score"][0] - together["raw_score"][number]) < 1e-4


def test_gray(save, network, whole_way):
    path = save(network(channels=1), shape=(1, 32, 40))
    source = open_source(SourceSpec(str(path)))
    assert source.detector.image_input.channels == 1
    whole_way(source, 1)
    source = open_source(SourceSpec(str(path), camera="gray16", image_size=(40, 41)))
    assert source.detector.image_input.dtype == "uint16"
    whole_way(source, None)
    with pytest.raises(InputError, match="takes gray images"):
        open_source(SourceSpec(str(path), camera="rgb"))


def test_sizes_that_are_computed(save, whole_way):
    class Patches(nn.Module):
        def forward(self, x):
            images, channels, height, width = x.shape
            patches = x.permute(0, 2, 3, 1).reshape(-1, channels)
            nearest = torch.cdist(patches, torch.eye(3)).amin(1)
            return nearest.reshape(images, height, width)[:, : 2 * (height // 3)]

    whole_way(open_source(SourceSpec(str(save(Patches())))), None)


@pytest.mark.parametrize("batch", [1, 2])
def test_training_mode_is_refused(save, network, batch):
    path = save(network(), batch, dynamic=False, training=True)
    with pytest.raises(InputError, match=r"training mode, batch_norm for one: call \.eval\(\)"):
        open_source(SourceSpec(str(path)))


def test_a_program_that_counts_is_refused(save, quietly):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += 1
            return x.mean((1, 2, 3)) + self.seen

    path = save(Counting())
    with pytest.raises(InputError, match="keeps something from call to call"):
        open_source(SourceSpec(str(path)))
    quietly(torch.export.save, torch.export.load(path).run_decompositions({}), path)
    with pytest.raises(InputError, match="writes to seen whenever it runs"):
        open_source(SourceSpec(str(path)))


def test_random_numbers_are_refused(save):
    class Noisy(nn.Module):
        def forward(self, x):
            return (x + torch.rand_like(x)).mean(1)

    with pytest.raises(InputError, match=r"two values of 0 for one image.*\.eval\(\)"):
        open_source(SourceSpec(str(save(Noisy()))))


def test_values_that_are_not_finite_are_refused(save):
    class Broken(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3)) / 0

    with pytest.raises(InputError, match="values of 0 that are not finite"):
        open_source(SourceSpec(str(save(Broken()))))


@pytest.mark.parametrize("shape", [(3, 32), (5, 32, 40)])
def test_inputs_that_are_no_images(save, shape):
    class Mean(nn.Module):
        def forward(self, x):
            return x.flatten(1).mean(1)

    with pytest.raises(InputError, match=r"takes float32 \[.*wanted are images"):
        open_source(SourceSpec(str(save(Mean(), shape=shape))))


def test_options_that_do_not_fit(save, network):
    path = str(save(network("scores")))
    with pytest.raises(InputError, match="first and second may each be the score"):
        open_source(SourceSpec(path))
    source = open_source(SourceSpec(path, outputs="score=second"))
    assert source.detector.facts()["outputs used"] == "score=second"
    for options, message in (
        ({"outputs": "score=second,map=none"}, "no output is 'none'"),
        ({"outputs": "second"}, "names no outputs"),
        ({"model": "Patchcore"}, "takes no --model"),
        ({"pixel_threshold": 1.0}, "without --threshold"),
        ({"threshold": float("nan")}, "--threshold is a number"),
        ({"steps": ()}, "gives 50×60: --resize 32x40"),
    ):
        given = {"outputs": "score=second", "image_size": (50, 60)} | options
        with pytest.raises(InputError, match=message):
            open_source(SourceSpec(path, **given))


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


def torch_pickle(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def edited(change):
    def apply(data):
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    return apply


def pickled_weight(config):
    config["config"]["conv.weight"]["use_pickle"] = True


def first_node(target):
    def change(model):
        model["graph_module"]["graph"]["nodes"][0]["target"] = target

    return change


def batch_size(text):
    def change(model):
        values = model["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        values[0]["as_expr"]["expr_str"] = text

    return change


def imports(model):
    signature = model["graph_module"]["module_call_graph"][0]["signature"]
    spec = {"type": "collections.defaultdict", "context": "{}", "children_spec": []}
    signature["out_spec"] = json.dumps([1, spec])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({WEIGHTS: edited(pickled_weight)}, "conv.weight is pickled"),
        ({"data/sample_inputs/model.pt": torch_pickle((Bomb(),))}, "pickled sample inputs"),
        ({"data/constants/opaque_obj_0": pickle.dumps(Bomb())}, "file data/constants/opaque_obj_0"),
        ({"data/weights/model.pt": torch_pickle(Bomb())}, "file data/weights/model.pt"),
        ({"models/other.json": b"{}"}, "file models/other.json"),
        ({MODEL: edited(first_node("torch.os.system"))}, "operator 'torch.os.system'"),
        ({MODEL: edited(first_node("torch.ops.aten.from_file.default"))}, "from_file"),
        ({MODEL: edited(first_node("torch.ops.aten.add.__class__"))}, "__class__"),
        ({MODEL: edited(first_node("_operator.methodcaller"))}, "methodcaller"),
        ({MODEL: edited(batch_size("__import__('os').getpid()"))}, "size"),
        ({MODEL: edited(batch_size("exit()"))}, "size 'exit"),
        ({MODEL: edited(batch_size("Symbol('s0', positive=exit())"))}, "size"),
        ({MODEL: edited(imports)}, "structure"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_run_code_is_refused(save, network, changed, changes, message):
    path = changed(save(network()), changes)
    with pytest.raises(InputError, match=f"would run code.*{message}.*--trust-pickle") as caught:
        open_source(SourceSpec(str(path)))
    assert "\n" not in str(caught.value)


def test_trust_says_so(save, network):
    source = open_source(SourceSpec(str(save(network())), trust_pickle=True))
    assert source.runs_code == "its pickle was trusted"


def test_compiled_packages_and_old_ones(save, network, changed):
    path = save(network())
    changed(path, {"data/aotinductor/model/x.so": b""})
    with pytest.raises(InputError, match="compiled by AOTInductor"):
        open_source(SourceSpec(str(path)))


@pytest.mark.parametrize("keep", [0.2, 0.7, 0.99])
def test_truncated(save, network, keep):
    path = save(network())
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(InputError, match="truncated or damaged"):
        check_archive(path)


def test_damaged_description(save, network, changed):
    path = changed(save(network()), {MODEL: b'{"graph_module": 3}'})
    with pytest.raises(InputError, match=r"cannot load|damaged"):
        open_source(SourceSpec(str(path)))
    changed(path, {MODEL: b"{"})
    with pytest.raises(InputError, match="damaged"):
        open_source(SourceSpec(str(path)))
