import math

import pytest

from vadexport.contract import ImageInput
from vadexport.detectors.preprocessing import PreprocessingConfig
from vadexport.errors import InputError

THIRDS = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("size", [(1, 1), (4096, 4096), (16384, 1024), (1024, 16384)])
def test_sizes_that_a_network_may_take(size):
    config = PreprocessingConfig(size, THIRDS, THIRDS)
    assert PreprocessingConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((0, 8), "1 … 16384 pixels a side, not 0x8"),
        ((8, -1), "pixels a side"),
        ((16385, 1), "pixels a side, not 16385x1"),
        ((1, 20000), "pixels a side, not 1x20000"),
        ((4096, 4097), "at most 16777216 pixels.*--size"),
        ((16384, 1025), "at most 16777216 pixels"),
        ((8,), "a height and a width"),
        ((8, 8, 8), "a height and a width"),
        ((8.0, 8), "a height and a width"),
        ((True, 8), "a height and a width"),
        ((math.nan, 8), "a height and a width"),
        (8, "a height and a width"),
    ],
)
def test_other_sizes_are_refused(size, words):
    with pytest.raises(InputError, match=words):
        PreprocessingConfig(size, THIRDS, THIRDS)


@pytest.mark.parametrize(
    "wrong", [(0.5, 0.5), (0.5,) * 4, (0.5, math.nan, 0.5), (0.5, 0.5, math.inf)]
)
def test_means_and_deviations_are_three_finite_numbers(wrong):
    with pytest.raises(InputError, match="three finite numbers each"):
        PreprocessingConfig((8, 8), wrong, THIRDS)
    with pytest.raises(InputError, match="three finite numbers each"):
        PreprocessingConfig((8, 8), THIRDS, wrong)


@pytest.mark.parametrize("std", [0.0, -0.1])
def test_no_channel_is_divided_by_zero_or_less(std):
    with pytest.raises(InputError, match="std is above 0"):
        PreprocessingConfig((8, 8), THIRDS, (0.5, 0.5, std))


@pytest.mark.parametrize(("asked", "size"), [(None, (40, 56)), ((8, 9), (8, 9))])
def test_the_size_is_the_cameras_if_none_is_asked_for(asked, size):
    class Network:
        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

    config = PreprocessingConfig.of_network(Network, ImageInput(40, 56, 1), asked)
    assert config == PreprocessingConfig(size, Network.mean, Network.std)
