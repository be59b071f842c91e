"""From a PyTorch detector to one ONNX graph, camera bytes in, scores and map out."""
