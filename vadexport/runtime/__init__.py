"""Load an artifact and score images with it. Imports neither torch nor onnx.

detector = vadexport.runtime.load("artifact")
prediction = detector.predict(image)      # a uint8 or uint16 array, or a path
prediction.pred_score, prediction.label, prediction.anomaly_map
"""

from vadexport.runtime.loading import LoadedDetector, Prediction, load

__all__ = ["LoadedDetector", "Prediction", "load"]
