"""Run a detector's module, untouched, in PyTorch eager mode on the CPU."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from vadexport.backends.base import Execution
from vadexport.contract import Outputs
from vadexport.machine import processor_name


class PyTorchRunner:
    """The reference: float32, eager, `torch.inference_mode`.

    Args:
        module: maps `[N, H, W, C]` to the contract's outputs by name.
        threads: that PyTorch may use in this process.
    """

    def __init__(self, module: nn.Module, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        self._module = module.eval()
        self.execution = Execution(
            backend=f"PyTorch {torch.__version__.split('+')[0]} eager",
            precision="float32",
            device=processor_name(),
            threads=threads,
        )

    def infer(self, image: NDArray[Any]) -> Outputs:
        """See the base class."""
        with torch.inference_mode():
            outputs = self._module(torch.from_numpy(image))
        return {name: value.numpy() for name, value in outputs.items()}
