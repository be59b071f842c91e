"""AUPRO of several detectors on the same images, with an interval of what one loses to another.

As `segmentation` defines it, on a thousand false positive rates in place of all: then an image is
a row of counts, and drawing images anew is a product of matrices.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vadexport.verification.losses import Compared, bootstrap_loss, drawn_images
from vadexport.verification.segmentation import FPR_LIMIT, resized_map
from vadexport.verification.statistics import Float64Array

#: False positive rates whose thresholds are tried: close together where the curve is steep.
_RATES: Final = np.union1d(np.geomspace(1e-6, 1.0, 500), np.linspace(1e-3, 1.5 * FPR_LIMIT, 500))
#: Pixels of normal regions that thresholds are taken from.
_MOST_PIXELS: Final = 2_000_000
_RESAMPLES: Final = 1000
_EIGHT_NEIGHBOURS: Final = np.ones((3, 3), np.int8)


class MapSpool:
    """Anomaly maps of all images on disk, four bytes a pixel and detector, until it is closed.

    Args:
        names: of the detectors whose maps come with each image.

    Raises:
        OSError: there is no room for a file.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self._file = tempfile.TemporaryFile(prefix="vadexport-")  # noqa: SIM115 - see __exit__
        self._shape: tuple[int, ...] = ()
        self._masks: list[tuple[NDArray[Any] | None, tuple[int, int]]] = []
        self._finite: list[set[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(
        self,
        maps: Mapping[str, NDArray[Any]],
        mask: NDArray[np.bool_] | None,
        size: tuple[int, int],
    ) -> None:
        """Add an image.

        Args:
            maps: of each detector, `[h, w]`. A detector whose map is not finite, and only that, is
                compared without the image.
            mask: `[H, W]`, true where there is a defect; None of a normal image.
            size: height and width of the image, which maps are resized to.

        Raises:
            OSError: the disk is full.
        """
        found = [np.ascontiguousarray(maps[name], np.float32) for name in self._names]
        pairs = zip(self._names, found, strict=True)
        self._finite.append({name for name, one in pairs if np.isfinite(one).all()})
        self._shape = found[0].shape
        for one in found:
            self._file.write(one.tobytes())
        self._masks.append((None if mask is None else np.packbits(mask), size))

    def compared(self, reference: str, *, seed: int = 0) -> dict[str, Compared]:
        """AUPRO of each detector beside that of one of them; empty without defects.

        The intervals are of a bootstrap over images (Efron 1979), normal and anomalous ones drawn
        apart, the maps of an image together.
        """
        groups: dict[tuple[int, ...], list[str]] = {}
        for name in self._names:
            if name != reference:
                pair = {reference, name}
                kept = tuple(n for n, finite in enumerate(self._finite) if pair <= finite)
                groups.setdefault(kept, [reference]).append(name)
        return {
            name: one
            for kept, names in groups.items()
            for name, one in self._compared(names, kept, seed).items()
        }

    def _compared(
        self, names: Sequence[str], kept: Sequence[int], seed: int
    ) -> dict[str, Compared]:
        """Of each detector but the first, the reference, on the images of these numbers."""
        anomalous = np.array([self._masks[number][0] is not None for number in kept])
        if not anomalous.any():
            return {}
        counts = {name: self._counts(name, kept) for name in names}
        if not all(normal.any() and regions.any() for normal, regions in counts.values()):
            return {}
        rng = np.random.default_rng(seed)
        drawn = drawn_images(rng, anomalous, _RESAMPLES)
        areas = {
            name: _areas(np.concatenate([np.ones((1, len(anomalous))), drawn]), *found)
            for name, found in counts.items()
        }
        found = {}
        reference, *others = names
        for name in others:
            loss = bootstrap_loss(areas[reference] - areas[name], anomalous)
            found[name] = Compared(float(areas[reference][0]), float(areas[name][0]), loss)
        return found

    def _images(
        self, name: str, kept: Sequence[int]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Each image's map and mask `[H, W]`, of one detector."""
        count = int(np.prod(self._shape))
        for number in kept:
            packed, size = self._masks[number]
            self._file.seek(4 * count * (number * len(self._names) + self._names.index(name)))
            values = np.frombuffer(self._file.read(4 * count), np.float32)
            mask = np.zeros(size, np.bool_)
            if packed is not None:
                mask = np.unpackbits(packed, count=mask.size).reshape(size).astype(np.bool_)
            yield resized_map(values.reshape(self._shape), size), mask

    def _counts(self, name: str, kept: Sequence[int]) -> tuple[Float64Array, Float64Array]:
        """Of every image, by threshold from the highest: normal pixels, and shares of defects.

        Each `[images, thresholds + 1]`: how many lie between a threshold and the one above it.
        """
        from scipy.ndimage import label

        edges = self._thresholds(name, kept)
        normal = np.zeros((len(kept), len(edges) + 1))
        regions = np.zeros_like(normal)
        for number, (scores, mask) in enumerate(self._images(name, kept)):
            places = len(edges) - np.searchsorted(edges, scores)
            normal[number] = np.bincount(places[~mask], minlength=len(edges) + 1)
            if mask.any():
                found = label(mask, _EIGHT_NEIGHBOURS)[0][mask]
                shares = 1 / np.bincount(found)[found]
                regions[number] = np.bincount(
                    places[mask], weights=shares, minlength=len(edges) + 1
                )
        return normal, regions

    def _thresholds(self, name: str, kept: Sequence[int]) -> NDArray[np.float32]:
        """Scores that normal pixels exceed at the wanted rates, ascending."""
        most = -(-_MOST_PIXELS // len(kept))
        pixels = []
        for scores, mask in self._images(name, kept):
            normal = scores[~mask]
            pixels.append(normal[:: max(1, len(normal) // most)])
        edges = np.quantile(np.concatenate(pixels), 1 - _RATES, method="lower")
        return np.unique(edges)


def _areas(drawn: Float64Array, normal: Float64Array, regions: Float64Array) -> Float64Array:
    """AUPRO of each resample."""
    x, y = (np.cumsum(drawn @ counts, axis=1) for counts in (normal, regions))
    x, y = x / x[:, -1:], y / y[:, -1:]
    areas = np.empty(len(drawn))
    for number, (rates, shares) in enumerate(zip(x, y, strict=True)):
        inside = rates < FPR_LIMIT
        a = np.concatenate([[0.0], rates[inside], [FPR_LIMIT]])
        b = np.concatenate([[0.0], shares[inside], [np.interp(FPR_LIMIT, rates, shares)]])
        areas[number] = np.sum(np.diff(a) * (b[1:] + b[:-1])) / 2 / FPR_LIMIT
    return areas
