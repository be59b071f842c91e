import importlib
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

_BENCHMARKS = str(Path(__file__).parents[3] / "benchmarks")


@pytest.fixture(scope="session")
def zoo():
    """benchmarks/anomalib_zoo.py: checkpoints with random weights that are as anomalib's own."""
    return _benchmark("anomalib_zoo")


def _benchmark(name):
    """A module of benchmarks/: scripts, which find each other only by the path."""
    with mock.patch.object(sys, "path", [_BENCHMARKS, *sys.path]):
        return importlib.import_module(name)


@pytest.fixture(scope="session")
def checkpoint_of(zoo, tmp_path_factory):
    """A checkpoint of the named model, made once."""
    folder, made = tmp_path_factory.mktemp("zoo"), {}

    def get(name):
        if name not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Lightning and timm
                made[name] = zoo.save(name, folder)
        return made[name]

    return get


@pytest.fixture
def textured():
    """Images of coarse and fine noise, uint8 [n, h, w, 3], unlike those that states came from."""

    def get(count, height, width, seed=0):
        return np.stack(_benchmark("noise").rgb_noise(count, height, width, seed))

    return get


@pytest.fixture
def lightning_checkpoint(tmp_path):
    """A file that Lightning could have written, with the given entries."""

    def write(**entries):
        path = tmp_path / "some.ckpt"
        content = {
            "pytorch-lightning_version": "2.6.0",
            "state_dict": {"model.weight": torch.zeros(2)},
            "hyper_parameters": {"learning_rate": 0.1},
            **entries,
        }
        torch.save(content, path)
        return path

    return write
