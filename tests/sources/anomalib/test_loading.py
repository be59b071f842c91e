import pickle

import numpy as np
import pytest
import torch

from vadexport.errors import InputError
from vadexport.sources import SourceSpec, open_source, reference_opener
from vadexport.sources.anomalib import source as module


def test_the_class_is_told_by_the_checkpoint(checkpoint_of):
    source = open_source(checkpoint_of("Patchcore"))
    assert source.kind == "anomalib"
    assert source.detector.family == "Patchcore"
    assert source.options == {"model": "Patchcore"}
    assert source.runs_code is None


def test_the_reference_alone_prepares_nothing_for_tracing(checkpoint_of, textured, monkeypatch):
    spec = SourceSpec(str(checkpoint_of("Patchcore")))
    images = textured(1, 256, 256)
    expected = open_source(spec).open_reference(1).infer(images)

    def refused(*_):
        raise AssertionError("it will not be traced")

    monkeypatch.setattr(module, "adapted", refused)
    monkeypatch.setattr(module, "_measure", refused)
    found = reference_opener(spec, 1)().infer(images)
    np.testing.assert_array_equal(found["raw_score"], expected["raw_score"])
    with pytest.raises(AssertionError):
        open_source(spec)


def test_what_inspect_shows(checkpoint_of):
    found = open_source(checkpoint_of("Padim")).detector.facts()
    positions, channels = 64 * 64, 50
    assert found["backbone"] == "resnet18"
    assert found["layers"] == "layer1, layer2, layer3"
    assert found["gaussian inv covariance"] == f"{positions}×{channels}×{channels}"


@pytest.mark.parametrize("name", ["Stfpm", "Fastflow"])
def test_constructors_load_nothing_from_the_network(checkpoint_of, name, monkeypatch):
    path = checkpoint_of(name)

    def connect(*_args, **_kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", connect)
    assert open_source(path).detector.family == name


def test_another_class_does_not_fit(checkpoint_of):
    with pytest.raises(InputError, match=r"does not fit anomalib's Padim: .") as caught:
        open_source(SourceSpec(str(checkpoint_of("Patchcore")), model="Padim"))
    assert "\n" not in str(caught.value)


def test_a_class_that_anomalib_lacks(checkpoint_of):
    with pytest.raises(InputError, match=r"--model PatchKore is no image model .*Patchcore"):
        open_source(SourceSpec(str(checkpoint_of("Patchcore")), model="PatchKore"))


def test_a_pre_processor_of_another_size_is_kept(zoo, tmp_path):
    """Some networks take their shape from it, and it is no hyper-parameter."""
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    with zoo.offline():
        from anomalib.models import Fastflow

        transform = Compose([Resize((192, 128)), Normalize([0.5] * 3, [0.25] * 3)])
        module = Fastflow(
            backbone="resnet18", pre_trained=False, pre_processor=PreProcessor(transform)
        )
    path = zoo.write(module, tmp_path / "small.ckpt")
    source = open_source(path)
    assert [str(step) for step in source.detector.steps] == [
        "resize to 192×128, bilinear antialiased",
        "mean 0.500/0.500/0.500, std 0.250/0.250/0.250",
    ]
    assert source.detector.image_input.shape == (1, 192, 128, 3)
    assert source.detector.map_size == (192, 128)


class TestRefused:
    def test_a_memory_bank_with_nan(self, checkpoint_of, tmp_path):
        checkpoint = torch.load(checkpoint_of("Patchcore"), weights_only=False)
        checkpoint["state_dict"]["model.memory_bank"][3, 5] = torch.nan
        path = tmp_path / "damaged.ckpt"
        torch.save(checkpoint, path)
        with pytest.raises(InputError, match="the weights memory_bank hold NaN"):
            open_source(path)

    def test_an_error_without_a_word(self, checkpoint_of, monkeypatch):
        def end(*_args, **_kwargs):
            raise EOFError

        monkeypatch.setattr(torch, "load", end)
        with pytest.raises(InputError, match=r"truncated or damaged: EOFError\(\)"):
            open_source(checkpoint_of("Patchcore"))

    def test_of_another_lightning_project(self, lightning_checkpoint):
        with pytest.raises(InputError, match="another project than anomalib"):
            open_source(lightning_checkpoint())

    def test_no_lightning_checkpoint(self, tmp_path):
        path = tmp_path / "weights.pt"
        torch.save({"weight": torch.zeros(2)}, path)
        with pytest.raises(
            InputError, match=r"no checkpoint of anomalib: it holds no Lightning.*factory"
        ):
            open_source(path)

    def test_a_bare_tensor(self, tmp_path):
        path = tmp_path / "tensor.pt"
        torch.save(torch.zeros(2), path)
        with pytest.raises(
            InputError, match="no checkpoint of anomalib: it holds a value of type Tensor"
        ):
            open_source(path)

    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_truncated(self, checkpoint_of, tmp_path, share):
        whole = checkpoint_of("Patchcore").read_bytes()
        path = tmp_path / "cut.ckpt"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match="truncated") as caught:
            open_source(path)
        assert "\n" not in str(caught.value)

    def test_damaged_inside(self, checkpoint_of, tmp_path):
        content = bytearray(checkpoint_of("Patchcore").read_bytes())
        place = content.index(b"data.pkl") + 200
        content[place : place + 40] = bytes(40)
        path = tmp_path / "damaged.ckpt"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            open_source(path)
        assert "\n" not in str(caught.value)

    def test_one_that_runs_code_names_it(self, lightning_checkpoint, tmp_path):
        path = lightning_checkpoint(hyper_parameters={"x": _Evil(tmp_path / "ran")})
        with pytest.raises(InputError, match=r"run code .*pathlib.*--trust-pickle"):
            open_source(path)
        assert not (tmp_path / "ran").exists()

    def test_unless_it_is_trusted(self, lightning_checkpoint, tmp_path):
        path = lightning_checkpoint(hyper_parameters={"x": _Evil(tmp_path / "ran")})
        with pytest.raises(InputError, match="another project than anomalib"):
            open_source(SourceSpec(str(path), trust_pickle=True))
        assert (tmp_path / "ran").exists()

    def test_a_plain_pickle(self, tmp_path):
        path = tmp_path / "plain.ckpt"
        path.write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
        with pytest.raises(InputError, match="pickle"):
            open_source(path)
        assert not (tmp_path / "ran").exists()

    def test_an_empty_memory_bank(self, zoo, tmp_path):
        with zoo.offline():
            from anomalib.models import Patchcore

            module = Patchcore(backbone="resnet18", layers=["layer2"], pre_trained=False)
        path = zoo.write(module, tmp_path / "unfitted.ckpt")
        with pytest.raises(InputError, match="memory bank of this Patchcore is empty"):
            open_source(path)

    @pytest.mark.parametrize("option", [{"outputs": "score=0"}, {"threshold": 1.0}])
    def test_options_of_other_sources(self, checkpoint_of, option):
        with pytest.raises(InputError, match="an anomalib checkpoint, which takes no --"):
            open_source(SourceSpec(str(checkpoint_of("Patchcore")), **option))

    def test_a_transform_that_no_graph_takes(self, zoo, tmp_path):
        from anomalib.pre_processing import PreProcessor
        from torchvision.transforms.v2 import Compose, Grayscale, Resize

        with zoo.offline():
            from anomalib.models import Stfpm

            transform = Compose([Resize((64, 64)), Grayscale(3)])
            module = Stfpm(backbone="resnet18", pre_processor=PreProcessor(transform))
        path = zoo.write(module, tmp_path / "gray.ckpt")
        with pytest.raises(InputError, match="holds the transform Grayscale"):
            open_source(path)


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)
