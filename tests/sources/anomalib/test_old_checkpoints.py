"""Checkpoints in the layouts of anomalib 2.0.0, 2.2.0 and 2.6.0.

Those versions were run, fitted Patchcore, Padim and Stfpm by `Engine.fit`, and wrote, all three:
hyper-parameters with `pre_processor`, `post_processor`, `evaluator` and `visualizer`, each True,
False or the object that the model was given, pickled; on those objects Lightning's `log` and
`log_dict`, bound methods that hold the whole model; the post-processor's buffers by the names of
2.7; none of 2.7's keys `anomalib_*`. Patchcore's hyper-parameter `precision` is in 2.6's alone.
Layouts are made here from checkpoints of the installed version.
"""

import os
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vadexport.errors import InputError
from vadexport.sources import SourceSpec, open_source
from vadexport.sources.anomalib.old_checkpoints import (
    modernised,
    read_recorded,
    settle_changes,
)

_OF_2_7 = (
    "anomalib_components_enabled",
    "anomalib_pre_processor_config",
    "anomalib_post_processor_config",
)


@pytest.fixture
def layouts(checkpoint_of, zoo, tmp_path):
    """One state in two files: as a version before 2.7 writes it, and as 2.7 does."""

    def write(name, *, lacks=("precision",), state=None, **components):
        content = torch.load(checkpoint_of(name), map_location="cpu", weights_only=False)
        content["state_dict"] |= state or {}
        new, old = tmp_path / "new.ckpt", tmp_path / "old.ckpt"
        for part, value in components.items():
            if value is False:
                content["anomalib_components_enabled"][part] = False
                _drop(content["state_dict"], part)
            elif value is not True:
                content[f"anomalib_{part}_config"] = value.checkpoint_config()
        torch.save(content, new)
        for key in _OF_2_7:
            del content[key]
        given = dict.fromkeys(("pre_processor", "post_processor", "evaluator", "visualizer"), True)
        content["hyper_parameters"] = {
            key: value for key, value in content["hyper_parameters"].items() if key not in lacks
        } | (given | components)
        module = zoo.reload(checkpoint_of(name), name)
        for value in components.values():
            if isinstance(value, torch.nn.Module):
                value.log, value.log_dict = module.log, module.log_dict
        torch.save(content, old)
        return old, new

    return write


def _drop(state, part):
    for name in [each for each in state if each.startswith(f"{part}.")]:
        del state[name]


def _same(old, new, images, **options):
    """Compare all outputs of both; the source of the old one."""
    sources = [open_source(SourceSpec(str(path), **options)) for path in (old, new)]
    found, expected = (source.open_reference(1).infer(images[:1]) for source in sources)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert sources[0].detector.thresholds == sources[1].detector.thresholds
    assert sources[0].detector.steps == sources[1].detector.steps
    return sources[0]


def _small_pre_processor():
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    return PreProcessor(Compose([Resize((192, 128)), Normalize([0.5] * 3, [0.25] * 3)]))


class TestScores:
    @pytest.mark.parametrize("name", ["Patchcore", "Padim", "Stfpm"])
    def test_of_default_components(self, layouts, textured, name):
        """2.2.0's; 2.0.0's of Padim and Stfpm are the same."""
        source = _same(*layouts(name), textured(1, 256, 256))
        assert source.detector.family == name

    def test_of_2_6_with_a_precision(self, layouts, textured):
        _same(*layouts("Patchcore", lacks=()), textured(1, 256, 256))

    def test_of_a_pickled_pre_processor(self, layouts, textured):
        """All three versions', the whole model pickled with it."""
        old, new = layouts("Stfpm", pre_processor=_small_pre_processor())
        assert "builtins.getattr" in torch.serialization.get_unsafe_globals_in_checkpoint(old)
        source = _same(old, new, textured(1, 192, 128))
        assert [str(step) for step in source.detector.steps] == [
            "resize to 192×128, bilinear antialiased",
            "mean 0.500/0.500/0.500, std 0.250/0.250/0.250",
        ]
        assert source.runs_code is None

    def test_of_a_pickled_post_processor(self, layouts, textured):
        from anomalib.post_processing import PostProcessor

        old, new = layouts("Padim", post_processor=PostProcessor(image_sensitivity=0.8))
        source = _same(old, new, textured(1, 256, 256))
        assert source.detector.thresholds.label_above == pytest.approx(0.2)

    def test_of_components_that_were_off(self, layouts, textured):
        off = {"pre_processor": False, "post_processor": False, "evaluator": False}
        source = _same(*layouts("Stfpm", **off), textured(1, 256, 256))
        assert source.detector.steps == ()
        assert source.detector.thresholds is None

    def test_of_a_trusted_pickle(self, layouts, textured):
        old, new = layouts("Stfpm", pre_processor=_small_pre_processor())
        source = _same(old, new, textured(1, 192, 128), trust_pickle=True)
        assert source.runs_code


class TestChangedDefaults:
    """2.0.0's Patchcore cropped by default: 28×28 vectors of an image, not 32×32."""

    def test_the_size_of_the_memory_bank_tells_the_crop(self, layouts, textured):
        from anomalib.models import Patchcore

        crop = Patchcore.configure_pre_processor((256, 256), (224, 224))
        bank = {"model.memory_bank": torch.rand(int(8 * 28 * 28 * 0.05), 384)}
        old, new = layouts("Patchcore", state=bank, pre_processor=crop)
        content = torch.load(old, weights_only=False)
        content["hyper_parameters"]["pre_processor"] = True
        torch.save(content, old)
        source = _same(old, new, textured(1, 256, 256))
        assert "centre crop to 224×224" in map(str, source.detector.steps)

    @pytest.mark.parametrize(
        "count", [int(49 * 32 * 32 * 0.05), 100], ids=["64 images or 49", "no number of images"]
    )
    def test_sizes_that_do_not_tell(self, layouts, count):
        bank = {"model.memory_bank": torch.rand(count, 384)}
        old, _ = layouts("Patchcore", state=bank)
        with pytest.raises(InputError, match=r"does not hold its transform.*2\.0's Patchcore crop"):
            open_source(old)

    def test_what_the_refusal_says_to_do_helps(self, layouts, zoo, tmp_path):
        from anomalib.models import Patchcore

        bank = {"model.memory_bank": torch.rand(100, 384)}
        old, _ = layouts("Patchcore", state=bank)
        with zoo.offline():
            module = Patchcore.load_from_checkpoint(old, pre_processor=_small_pre_processor())
        source = open_source(zoo.write(module, tmp_path / "again.ckpt"))
        assert "resize to 192×128, bilinear antialiased" in map(str, source.detector.steps)

    @pytest.mark.parametrize(
        ("name", "stored", "told"),
        [
            ("Dsr", {}, False),
            ("Draem", {"anomaly_source_path": None}, False),
            ("Draem", {"dtd_dir": "."}, True),
            ("Padim", {}, True),
        ],
    )
    def test_of_other_models(self, name, stored, told):
        module = type(name, (), {})()
        checkpoint = {"hyper_parameters": {"pre_processor": True, **stored}}
        if told:
            settle_changes(module, checkpoint, Path("a.ckpt"))
        else:
            with pytest.raises(InputError, match=r"load_from_checkpoint.*and save it again"):
                settle_changes(module, checkpoint, Path("a.ckpt"))


class TestChangedModels:
    def test_names_of_fastflow(self, layouts, textured):
        """2.0.0's and 2.6.0's: a layer of padding before each convolution."""
        old, new = layouts("Fastflow")
        content = torch.load(old, weights_only=False)
        content["state_dict"] = {
            name.replace(".subnet.2.", ".subnet.4.").replace(".subnet.0.", ".subnet.1."): value
            for name, value in content["state_dict"].items()
        }
        torch.save(content, old)
        _same(old, new, textured(1, 256, 256))

    def test_supersimplenet_scored_otherwise(self):
        """2.0.0's to 2.2.0's, told by a hyper-parameter that 2.3.0 brought."""
        module = type("Supersimplenet", (), {})()
        checkpoint = {"hyper_parameters": {"pre_processor": True}}
        with pytest.raises(InputError, match=r"before anomalib 2\.3.*train it again"):
            settle_changes(module, checkpoint, Path("a.ckpt"))
        checkpoint["hyper_parameters"]["adapt_cls_features"] = False
        settle_changes(module, checkpoint, Path("a.ckpt"))


class TestRecorded:
    """Pickled objects are read as data."""

    @pytest.mark.parametrize("which", ["none", "one", "several"])
    def test_transforms(self, zoo, lightning_checkpoint, which):
        zoo.import_anomalib()
        from anomalib.data.transforms import ExportableCenterCrop, SquarePad
        from anomalib.pre_processing import PreProcessor
        from anomalib.pre_processing.utils.spec import spec_to_transform, transform_to_spec
        from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize

        transform = {
            "none": None,
            "one": Resize(64, interpolation=InterpolationMode.NEAREST_EXACT),
            "several": Compose(
                [
                    SquarePad(),
                    Resize([64, 64], InterpolationMode.BICUBIC, antialias=False),
                    Compose([ExportableCenterCrop((48, 32))]),
                    Normalize([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
                ]
            ),
        }[which]
        path = lightning_checkpoint(hyper_parameters=_given(pre_processor=PreProcessor(transform)))
        found = modernised(read_recorded(path), path)
        config = found["anomalib_pre_processor_config"]
        # Names of modules in `class_path` differ, and mean the same.
        restored = transform_to_spec(spec_to_transform(config["transform"]))
        assert restored == transform_to_spec(transform)
        assert found["anomalib_components_enabled"]["pre_processor"]

    def test_members_of_enums_by_name(self, zoo, lightning_checkpoint):
        """As some releases of Python 3.11 and 3.12 pickle them."""
        zoo.import_anomalib()
        from anomalib.pre_processing import PreProcessor
        from torchvision.transforms.v2 import Resize

        resize = Resize((8, 8))
        resize.interpolation = _ByName("NEAREST_EXACT")
        path = lightning_checkpoint(hyper_parameters=_given(pre_processor=PreProcessor(resize)))
        found = modernised(read_recorded(path), path)["anomalib_pre_processor_config"]
        assert found["transform"]["init_args"]["interpolation"] == "nearest-exact"

    def test_paths(self, lightning_checkpoint):
        path = lightning_checkpoint(hyper_parameters={"imagenet_dir": Path("some") / "where"})
        found = read_recorded(path)
        assert found["hyper_parameters"] == {"imagenet_dir": os.path.join("some", "where")}  # noqa: PTH118

    def test_calls_do_not_run(self, zoo, lightning_checkpoint, tmp_path):
        zoo.import_anomalib()
        processor = _small_pre_processor()
        processor.log = _Evil(exec, f"open({str(tmp_path / 'ran')!r}, 'w')")
        path = lightning_checkpoint(hyper_parameters=_given(pre_processor=processor))
        assert "anomalib_pre_processor_config" in modernised(read_recorded(path), path)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("function", [Path.touch, os.remove])
    def test_methods_and_functions_of_the_system_do_not_run(
        self, zoo, lightning_checkpoint, tmp_path, function
    ):
        """PyTorch reads neither into stand-ins."""
        zoo.import_anomalib()
        processor, target = _small_pre_processor(), tmp_path / "there"
        if function is os.remove:
            target.touch()
        processor.log = _Evil(function, target)
        path = lightning_checkpoint(hyper_parameters=_given(pre_processor=processor))
        with pytest.raises(InputError, match=r"run code .*--trust-pickle"):
            open_source(path)
        assert target.exists() == (function is os.remove)


class TestRefused:
    def test_a_transform_of_the_users(self, layouts):
        from anomalib.pre_processing import PreProcessor
        from torchvision.transforms.v2 import Compose, Resize

        transform = Compose([Resize((64, 64)), _mine()])
        old, _ = layouts("Stfpm", pre_processor=PreProcessor(transform))
        with pytest.raises(InputError, match=r"transform \S+\.Mine, which .*--trust-pickle") as it:
            open_source(old)
        assert "\n" not in str(it.value)
        with pytest.raises(InputError, match="holds the transform Mine"):
            open_source(SourceSpec(str(old), trust_pickle=True))

    @pytest.mark.parametrize("what", ["pre_processor", "post_processor"])
    def test_a_component_of_the_users(self, lightning_checkpoint, what):
        path = lightning_checkpoint(hyper_parameters=_given(**{what: _Own()}))
        expected = rf"the {what.replace('_', '-')} \S+\._Own, which .*--trust-pickle"
        with pytest.raises(InputError, match=expected):
            open_source(path)

    @pytest.mark.parametrize("place", ["callbacks", "state_dict", "hyper_parameters"])
    def test_objects_elsewhere(self, lightning_checkpoint, place):
        path = lightning_checkpoint(**{place: _given(x=[(_Own(),)])})
        with pytest.raises(InputError, match=r"run code .*_Own.*--trust-pickle"):
            open_source(path)

    def test_settings_that_are_none(self, zoo, lightning_checkpoint):
        zoo.import_anomalib()
        from anomalib.post_processing import PostProcessor

        processor = PostProcessor(image_sensitivity=_Own())
        path = lightning_checkpoint(hyper_parameters=_given(post_processor=processor))
        with pytest.raises(InputError, match=r"settings that are no numbers.*--trust-pickle"):
            open_source(path)

    def test_a_class_of_dictionaries(self, lightning_checkpoint):
        """PyTorch fills no stand-in."""
        path = lightning_checkpoint(hyper_parameters=_given(evaluator=_Dictionary(a=1)))
        with pytest.raises(InputError, match=r"run code .*_Dictionary.*--trust-pickle"):
            open_source(path)

    def test_code_that_is_not_installed(self, lightning_checkpoint):
        path = lightning_checkpoint(hyper_parameters=_given(evaluator=_FromElsewhere()))
        with pytest.raises(InputError, match=r"code that is not installed: .*not_there"):
            open_source(SourceSpec(str(path), trust_pickle=True))

    @pytest.mark.parametrize(
        ("lacking", "surplus", "message"),
        [
            ("post_processor.image_min", None, r"lacks 'post_processor\.image_min'"),
            ("model.memory_bank", None, r"lacks 'model\.memory_bank'"),
            (None, "model.more", r"holds 'model\.more'"),
        ],
    )
    def test_another_state(self, layouts, lacking, surplus, message):
        old, _ = layouts("Patchcore", lacks=())
        content = torch.load(old, weights_only=False)
        if lacking:
            del content["state_dict"][lacking]
        if surplus:
            content["state_dict"][surplus] = torch.zeros(1)
        torch.save(content, old)
        with pytest.raises(InputError, match=message):
            open_source(SourceSpec(str(old), model="Patchcore"))


def test_of_another_project_nothing_changes():
    checkpoint = {"hyper_parameters": {"evaluator": True}}
    assert modernised(checkpoint, Path("a.ckpt")) is checkpoint
    checkpoint = {"hyper_parameters": SimpleNamespace()}
    assert modernised(checkpoint, Path("a.ckpt")) is checkpoint


def _given(**components):
    return {"pre_processor": True, "post_processor": True, **components}


def _mine():
    from torchvision.transforms.v2 import Transform

    class Mine(Transform):
        pass

    Mine.__qualname__ = "Mine"
    globals()["Mine"] = Mine  # where its pickle looks for it
    return Mine()


class _Own:
    def __init__(self):
        self.value = 1


class _Dictionary(OrderedDict):
    pass


class _Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


class _ByName:
    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        from torchvision.transforms.v2 import InterpolationMode

        return getattr, (InterpolationMode, self.name)


class _FromElsewhere:
    def __reduce__(self):
        return __import__, ("not_there",)
