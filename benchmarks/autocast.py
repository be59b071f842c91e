"""The reference under float16 autocast: how others make PyTorch faster on a GPU.

In a module of its own, for the child process that times it imports it by name.
"""

from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray

from vadexport.contract import Outputs
from vadexport.sources import SourceSpec, reference_opener


class AutocastRunner:
    """The reference on the GPU, where there is one."""

    def __init__(self, spec: SourceSpec) -> None:
        self._runner = reference_opener(spec, 1, on_gpu=True)()
        self.execution = replace(self._runner.execution, precision="float16 autocast")
        self._kind = "cuda" if torch.cuda.is_available() else "cpu"

    def infer(self, image: NDArray[Any]) -> Outputs:
        """See the base class."""
        with torch.autocast(self._kind, dtype=torch.float16):
            return self._runner.infer(image)
