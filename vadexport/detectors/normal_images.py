"""Normal images to train on, and those of them that are held out."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vadexport.contract import ImageArray
from vadexport.detectors.preprocessing import Preprocessing
from vadexport.detectors.seeds import seeded_generator
from vadexport.errors import InputError

#: Share of the normal images that is kept from training, for early stop and for thresholds.
HELD_OUT = 0.2
#: With fewer normal images than this, none is held out: all train, and all judge.
FEWEST_TO_SPLIT = 5


class NormalImages:
    """Normal images, preprocessed when they are asked for, split by a seed.

    Attributes:
        training: indices of the images to train on.
        held_out: indices of those kept for early stop and thresholds; all of them where there
            are fewer than `FEWEST_TO_SPLIT`.
        digest: of all pixels.
    """

    def __init__(
        self, images: Sequence[ImageArray], preprocessing: Preprocessing, *, seed: int
    ) -> None:
        if not images:
            raise InputError("training needs at least one normal image")
        self._images = images
        self._preprocessing = preprocessing
        count = len(images)
        if count < FEWEST_TO_SPLIT:
            self.training = self.held_out = tuple(range(count))
        else:
            order = torch.randperm(count, generator=seeded_generator(seed, 0)).tolist()
            kept = round(count * HELD_OUT)
            self.held_out = tuple(sorted(order[:kept]))
            self.training = tuple(sorted(order[kept:]))
        digest = hashlib.sha256()
        for image in images:
            digest.update(repr((image.shape, image.dtype.str)).encode())
            digest.update(image.tobytes())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """The network's input `[B, 3, h, w]`, on the device that the preprocessing is on."""
        stacked = torch.from_numpy(np.stack([self._images[index] for index in indices]))
        with torch.no_grad():
            x: Tensor = self._preprocessing(stacked.to(self._preprocessing.mean.device))
        return x
