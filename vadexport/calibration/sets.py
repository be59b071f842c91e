"""Calibration sets: the normal images that INT8 ranges are read from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vadexport.artifact import CalibrationEntry
from vadexport.calibration.diversity import spread_out
from vadexport.errors import InputError
from vadexport.images import ImageFile, digest_of_all, image_digest

#: Fewer images than this leave the ranges to chance.
FEW_IMAGES = 8
#: Bounds the time that calibration takes.
MAX_IMAGES = 100
#: Bounds the time that choosing takes: a diverse subset needs no more to choose from.
MAX_CANDIDATES = 400
MAX_CHECK_IMAGES = 16

#: Of images, a description each: `[n, D]`.
Describe = Callable[[Sequence[ImageFile]], NDArray[np.float32]]


@dataclass(frozen=True)
class CalibrationSet:
    """Normal images, split into those that set ranges and those that check what came of it.

    Attributes:
        calibrate: set the ranges, and show how a memory bank can be searched.
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
        return CalibrationEntry(digest_of_all(digests), self.seed, tuple(digests))


def choose_calibration_set(
    images: Sequence[ImageFile],
    *,
    calibrates: bool = True,
    seed: int = 0,
    describe: Describe | None = None,
) -> CalibrationSet:
    """Split normal images into calibration and check images.

    A quarter of them, at most 16, check, chosen at random. Of the rest at most 100 calibrate: of
    400 at random those that are described as least alike, which reach ranges that held-out images
    leave more seldom (benchmarks/calibration_sets.py). Where none needs to calibrate, at most 16
    check, and as many as are left of twice that may show how a bank can be searched.

    Args:
        images: normal ones.
        calibrates: whether any of them needs to.
        seed: of the choice.
        describe: images, where more than 100 could calibrate; None leaves that to chance.

    Raises:
        InputError: there is no image; what `describe` raises.
    """
    if not images:
        raise InputError("the calibration set holds no normal image")
    order = np.random.default_rng(seed).permutation(len(images))
    shuffled = [images[index] for index in order]
    if not calibrates:
        spare = shuffled[MAX_CHECK_IMAGES : 3 * MAX_CHECK_IMAGES]
        return CalibrationSet(tuple(spare), tuple(shuffled[:MAX_CHECK_IMAGES]), seed)
    checks = min(MAX_CHECK_IMAGES, len(images) // 4)
    rest = shuffled[checks:]
    if describe is not None and len(rest) > MAX_IMAGES:
        candidates = rest[:MAX_CANDIDATES]
        rest = [candidates[index] for index in spread_out(describe(candidates), MAX_IMAGES)]
    calibrate = tuple(rest[:MAX_IMAGES])
    check = tuple(shuffled[:checks]) or calibrate[:MAX_CHECK_IMAGES]
    return CalibrationSet(calibrate, check, seed)
