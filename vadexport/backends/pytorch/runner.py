"""Run a detector's module, untouched, in PyTorch eager mode."""

import os
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vadexport.backends.base import Execution
from vadexport.contract import Outputs
from vadexport.errors import BackendError
from vadexport.machine import processor_name


class PyTorchRunner:
    """The reference: float32, eager, `torch.inference_mode`.

    Args:
        module: maps `[N, H, W, C]` to the contract's outputs by name; its method `prepared` does so
            to what its network is given.
        threads: that PyTorch may use in this process.
    """

    def __init__(self, module: nn.Module, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")  # on a GPU: no TF32
        torch.backends.cudnn.allow_tf32 = False
        self._device = torch.device("cpu")
        self._module = module.eval()
        self.execution = Execution(
            backend=f"PyTorch {torch.__version__.split('+')[0]} eager",
            precision="float32",
            device=processor_name(),
            threads=threads,
        )

    def use_gpu(self, sample: NDArray[Any]) -> None:
        """Move to the first NVIDIA GPU, where there is one and the module runs on it.

        A program may hold constants that stay on the processor, PyTorch may have no kernels for the
        GPU, or it lacks memory: then the module goes back.

        Args:
            sample: a call that tells whether it runs.
        """
        if not torch.cuda.is_available():
            return
        self._device = torch.device("cuda", 0)
        try:
            self._module.to(self._device)
            self.infer(sample)
        except RuntimeError:
            self._device = torch.device("cpu")
            self._module.to(self._device)
            return
        name = torch.cuda.get_device_name(self._device)
        self.execution = replace(self.execution, device=name)

    def compile(self, sample: NDArray[Any]) -> None:
        """Have `torch.compile` compile the module, with its default backend and no cache.

        Args:
            sample: a call, whose shape it is compiled for.

        Raises:
            BackendError: there is no C++ compiler, or it fails.
        """
        compiler = os.environ.get("CXX", "g++")
        if self._device.type == "cpu" and shutil.which(compiler) is None:
            raise BackendError(f"torch.compile needs a C++ compiler, and {compiler} is not here")
        torch.compiler.config.force_disable_caches = True  # or it is compiled once a machine
        try:
            self._module.compile()
            self.infer(sample)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise BackendError(f"torch.compile cannot compile it: {lines[0]}") from error
        backend = self.execution.backend.replace("eager", "torch.compile")
        self.execution = replace(self.execution, backend=backend)

    def infer(self, image: NDArray[Any]) -> Outputs:
        """See the base class."""
        with torch.inference_mode():
            outputs = self._module(torch.from_numpy(image).to(self._device))
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    def prepared(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """What the module gives its network for a call: `[N, C, h, w]`."""
        module: Any = self._module
        with torch.inference_mode():
            x: Tensor = module.prepared(torch.from_numpy(image).to(self._device))
        return x.cpu().numpy()
