"""Pixel AUROC and AUPRO of anomaly maps, as MVTec's own evaluation defines them.

Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, and the evaluation code that comes
with it. Per-region overlap (PRO) is the share of a defect's pixels above a threshold, averaged
over all defects of all images: a small defect counts as much as a large one. A defect is an
8-connected component of a mask. The false positive rate is over all anomaly-free pixels of all
test images, those of normal images included.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vadexport.verification.curves import Curve
from vadexport.verification.statistics import Float64Array

#: AUPRO is taken up to this false positive rate: beyond, a map marks more than it tells.
FPR_LIMIT: Final = 0.3

_EIGHT_NEIGHBOURS: Final = np.ones((3, 3), np.int8)

Float32Array = NDArray[np.float32]


class PixelScores:
    """Gathers the pixels of test images one image at a time, and draws exact curves over them.

    It holds four bytes a pixel, as the curves need every pixel's score: those of anomaly-free
    pixels in no order, those of defects region by region, with each region's size.
    """

    def __init__(self) -> None:
        self._normal: list[Float32Array] = []
        self._anomalous: list[Float32Array] = []
        self._sizes: list[NDArray[np.int64]] = []

    @property
    def regions(self) -> int:
        """Number of defects."""
        return sum(map(len, self._sizes))

    def add(self, anomaly_map: NDArray[Any], mask: NDArray[np.bool_] | None) -> None:
        """Add an image.

        Args:
            anomaly_map: `[H, W]`, finite; compared as float32.
            mask: `[H, W]`, true where there is a defect; None for a normal image.

        Raises:
            ValueError: map and mask differ in size.
        """
        from scipy.ndimage import label

        scores = anomaly_map.astype(np.float32)  # a copy, so that no larger array stays behind it
        if mask is None:
            self._normal.append(scores.ravel())
            return
        if scores.shape != mask.shape:
            raise ValueError(f"map {scores.shape} and mask {mask.shape} differ in size")
        self._normal.append(scores[~mask])
        regions = label(mask, _EIGHT_NEIGHBOURS)[0][mask]
        self._anomalous.append(scores[mask][np.argsort(regions, kind="stable")])
        self._sizes.append(np.bincount(regions)[1:])

    def curves(self) -> tuple[Curve, Curve] | None:
        """The ROC curve of all pixels, and the PRO curve over the false positive rate.

        Pixel AUROC is the area under the first, AUPRO that under the second up to `FPR_LIMIT`.
        None without pixels of both kinds.
        """
        normal, anomalous = _merged(self._normal), _merged(self._anomalous)
        if not (len(normal) and len(anomalous)):
            return None
        normal.sort()
        sizes = np.concatenate(self._sizes)
        return (
            Curve.over_thresholds(normal, anomalous),
            Curve.over_thresholds(normal, anomalous, np.repeat(1 / sizes, sizes)),
        )


def resized_map(anomaly_map: NDArray[Any], size: tuple[int, int]) -> Float32Array:
    """Resize a map bilinearly, as PyTorch's `interpolate` does without corner alignment.

    Args:
        anomaly_map: `[h, w]`.
        size: height and width in pixels.

    Returns:
        `[H, W]`; the map itself where it has that size.
    """
    wide = anomaly_map.astype(np.float64)
    for axis, length in enumerate(size):
        if wide.shape[axis] != length:
            low, high, share = _neighbours(wide.shape[axis], length)
            share = share[:, None] if axis == 0 else share
            wide = wide.take(low, axis) * (1 - share) + wide.take(high, axis) * share
    return wide.astype(np.float32)


def _neighbours(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Float64Array]:
    """Index of the pixel before and of that behind each new pixel's centre, and the way between."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = position.astype(np.intp)
    return low, np.minimum(low + 1, old - 1), position - low


def _merged(parts: list[Float32Array]) -> Float32Array:
    """Make one array of `parts`, which then holds nothing else.

    Each part is dropped once it is copied: joined as a whole, all would be held twice.
    """
    merged = np.empty(sum(map(len, parts)), np.float32)
    end = len(merged)
    while parts:
        part = parts.pop()
        merged[end - len(part) : end] = part
        end -= len(part)
    parts.append(merged)
    return merged
