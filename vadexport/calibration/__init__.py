"""INT8 and float16 with normal images: which images, which ranges, which part of the graph."""

from vadexport.calibration.half import halve
from vadexport.calibration.qdq import Plan
from vadexport.calibration.quantisation import plan_int8
from vadexport.calibration.sets import CalibrationSet, choose_calibration_set

__all__ = [
    "CalibrationSet",
    "Plan",
    "choose_calibration_set",
    "halve",
    "plan_int8",
]
