"""Checkpoints that `vadexport fit` wrote."""

from dataclasses import replace

from vadexport.detectors.checkpoint import load_detector
from vadexport.sources.base import Source
from vadexport.sources.spec import SourceSpec


def open_native(spec: SourceSpec) -> Source:
    """Read a checkpoint of `vadexport fit`.

    Raises:
        InputError: there is none, it is damaged, or an option is given that it does not take.
    """
    spec.only("a detector that vadexport fitted", "image_size")
    detector = load_detector(spec.path)
    if spec.image_size is not None:
        height, width = spec.image_size
        detector.image_input = replace(detector.image_input, height=height, width=width)
    return Source.of_file("native", spec, detector, detector)
