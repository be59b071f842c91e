"""Normal images held out in turn, for families that need all of them to fit.

What a fit has seen scores lower than new images do, so thresholds and the unit of drift come from
k-fold cross-validation: each image is scored by a fit on the others that were not held out with it.
"""

from typing import Final

import torch
from torch import Tensor

#: Parts that the normal images are cut into, each scored by a fit on the others.
FOLDS: Final = 5


def fold_of(count: int) -> Tensor:
    """The fold of each of `count` images, int64 [count]: five folds, or one an image if fewer.

    Neighbours in the list lie in different folds, so each fold sees the whole of a series whose
    light or position changes slowly.
    """
    return torch.arange(count) % min(FOLDS, count)
