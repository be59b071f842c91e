"""Normal images that the reference takes for anomalous: defects, perhaps, among the normal ones."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from vadexport.calibration import CalibrationSet
from vadexport.contract import RAW_SCORE, ImageInput
from vadexport.images import ImageFile, load_images
from vadexport.listening import Listener
from vadexport.thresholds import Thresholds
from vadexport.verification.parity import Infer

#: Bounds what looking costs where a reference is slow.
_MOST_SECONDS: Final = 10.0
#: Names in a warning.
_NAMED: Final = 5


_Scores = list[tuple[ImageFile, float]]


def warn_of_defects(
    chosen: CalibrationSet,
    checked: Sequence[float],
    reference: Infer,
    image_input: ImageInput,
    thresholds: Thresholds,
    listener: Listener,
) -> None:
    """Name the calibration and check images that the reference scores above its threshold, if any.

    A defect among those that set ranges makes their steps coarse, one among those that check is no
    normal image. A threshold leaves some normal images above it, so this is no error.

    Args:
        chosen: images that can be read and fit.
        checked: raw scores of the check images.
        reference: its inference.
        image_input: of the graph.
        thresholds: the reference's.
        listener: told of the images that are looked at, and warned.
    """
    known = list(zip(chosen.check, checked, strict=True))
    others = [file for file in chosen.calibrate if file not in set(chosen.check)]
    known += _scored(others, reference, image_input, listener)
    missed = len(chosen.check) + len(others) - len(known)
    left = f" ({missed} more were not looked at, for the detector is slow)" if missed else ""
    above = [(file, score) for file, score in known if score > thresholds.decides_above]
    if not above:
        if missed:
            listener.note(f"none of {len(known)} normal images{left} looks like a defect")
        return
    above.sort(key=lambda one: -one[1])
    named = ", ".join(f"{file.name} {score:.4g}" for file, score in above[:_NAMED])
    listener.warn(
        f"{len(above)} of {len(known)} normal images{left} look like defects to the detector, with "
        f"raw scores above its threshold of {thresholds.decides_above:.4g} ({named}"
        f"{', …' if len(above) > _NAMED else ''}): leave out those that are"
    )


def _scored(
    files: Sequence[ImageFile], reference: Infer, image_input: ImageInput, listener: Listener
) -> _Scores:
    """Scores of images, a call at a time, until time is up; the last ones may be missing."""
    # Where the graph takes any number, one at a time needs the least memory.
    alone = replace(image_input, batch=image_input.batch or 1)
    ends = time.monotonic() + _MOST_SECONDS
    scores: list[float] = []
    while len(scores) < len(files) and (not scores or time.monotonic() < ends):
        part = files[len(scores) : len(scores) + (alone.batch or 1)]
        images = np.stack([image for _, image in load_images(part, image_input)])
        call, count = next(alone.batches(images))
        scores += map(float, reference(call)[RAW_SCORE][:count])
        listener.step("look for defects", len(scores), len(files))
    return list(zip(files, scores, strict=False))
