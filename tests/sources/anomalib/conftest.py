import importlib.util
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

_ZOO = Path(__file__).parents[3] / "benchmarks" / "anomalib_zoo.py"


@pytest.fixture(scope="session")
def zoo():
    """benchmarks/anomalib_zoo.py: checkpoints with random weights that are as anomalib's own."""
    spec = importlib.util.spec_from_file_location("anomalib_zoo", _ZOO)
    module = importlib.util.module_from_spec(spec)
    sys.modules["anomalib_zoo"] = module
    spec.loader.exec_module(module)
    return module


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
        rng = np.random.default_rng(seed)
        images = []
        for _ in range(count):
            coarse = rng.normal(size=(height // 16 + 1, width // 16 + 1, 3))
            coarse = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
            mixed = 128 + rng.uniform(10, 40) * coarse
            mixed += rng.uniform(5, 30) * rng.normal(size=(height, width, 3))
            images.append(mixed.clip(0, 255))
        return np.stack(images).astype(np.uint8)

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
