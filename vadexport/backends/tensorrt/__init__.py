"""TensorRT and TensorRT-RTX on NVIDIA GPUs: one backend over two libraries.

`library` holds what the two, and TensorRT 10 and 11, do differently; all else is shared.
"""
