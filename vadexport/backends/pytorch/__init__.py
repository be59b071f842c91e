"""PyTorch: where the reference runs."""

from vadexport.backends.pytorch.runner import PyTorchRunner

__all__ = ["PyTorchRunner"]
