"""INT8 and float16 with normal images: which images, which ranges, which part of the graph."""

from vadexport.calibration.half import halve
from vadexport.calibration.quantisation import quantise, require_nncf
from vadexport.calibration.sets import CalibrationSet, choose_calibration_set

__all__ = ["CalibrationSet", "choose_calibration_set", "halve", "quantise", "require_nncf"]
