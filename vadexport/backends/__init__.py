"""Where detectors run: PyTorch (the reference), ONNX Runtime, OpenVINO."""
