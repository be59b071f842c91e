"""Calibration sets: the normal images that INT8 ranges are read from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vadexport.artifact import CalibrationEntry
from vadexport.errors import InputError
from vadexport.images import ImageFile, image_digest

#: Fewer images than this leave the ranges to chance.
FEW_IMAGES = 8
#: Bounds the time that calibration takes.
MAX_IMAGES = 100
MAX_CHECK_IMAGES = 16


@dataclass(frozen=True)
class CalibrationSet:
    """Normal images, split into those that set ranges and those that check what came of it.

    Attributes:
        calibrate: set the ranges.
        check: judge each rung of the build; the same images where there are too few to split.
        seed: of the choice.
    """

    calibrate: tuple[ImageFile, ...]
    check: tuple[ImageFile, ...]
    seed: int

    @property
    def disjoint(self) -> bool:
        """Whether no check image also set ranges."""
        return not set(self.calibrate) & set(self.check)

    def entry(self) -> CalibrationEntry:
        """What the manifest holds of it."""
        digests = sorted(image_digest(image.path) for image in self.calibrate)
        whole = hashlib.sha256("".join(digests).encode()).hexdigest()
        return CalibrationEntry(whole, self.seed, tuple(digests))


def choose_calibration_set(
    images: Sequence[ImageFile], *, calibrates: bool = True, seed: int = 0
) -> CalibrationSet:
    """Split normal images at random into calibration and check images.

    A quarter of them, at most 16, check; of the rest at most 100 calibrate. Where none needs to
    calibrate, at most 16 check.

    Raises:
        InputError: there is no image.
    """
    if not images:
        raise InputError("the calibration set holds no normal image")
    order = np.random.default_rng(seed).permutation(len(images))
    shuffled = [images[index] for index in order]
    if not calibrates:
        return CalibrationSet((), tuple(shuffled[:MAX_CHECK_IMAGES]), seed)
    checks = min(MAX_CHECK_IMAGES, len(images) // 4)
    calibrate = tuple(shuffled[checks : checks + MAX_IMAGES])
    check = tuple(shuffled[:checks]) or calibrate[:MAX_CHECK_IMAGES]
    return CalibrationSet(calibrate, check, seed)
