"""anomalib's models in forms that trace well; the reference is never touched."""

import copy
from typing import Any

from torch import nn


def adapted(module: Any) -> nn.Module:
    """The torch model of an `AnomalibModule`, or a copy of it that computes the same and traces."""
    model: nn.Module = copy.deepcopy(module.model)
    return model.eval()
