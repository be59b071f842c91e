"""Steps of a bank's rows in INT8, as builds choose them."""

from vadexport.backends.openvino.saturation import adds_exactly
from vadexport.machine import MOST_WITHOUT_VNNI
from vadexport.passes.search_plan import STEPS


def openvino_steps() -> int:
    """Of a row that OpenVINO searches on this processor."""
    return STEPS if adds_exactly() else MOST_WITHOUT_VNNI
