"""Random numbers that follow from a seed alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seeded_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator for one step, the same whatever was drawn in the steps before."""
    words = np.random.SeedSequence([seed % 2**64, step]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Modules made inside get the same random weights every time; the caller's seed stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        yield
