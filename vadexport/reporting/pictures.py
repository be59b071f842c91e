"""Exhibits as pictures inside the page: PNG as data URIs, small enough for a mail."""

import base64
import io
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vadexport.contract import UInt8Array
from vadexport.images.colouring import colour, viewable
from vadexport.verification.result import Exhibit

#: Pixels of the long side: as much as a screen shows of one picture.
_LONGEST: Final = 512


@dataclass(frozen=True)
class ExhibitPictures:
    """An exhibit's four pictures as data URIs, and what their colours mean.

    Attributes:
        image: of the camera; 16 bits are stretched to the 8 of a screen.
        reference_map: coloured from `low` to `high`.
        anomaly_map: likewise, of the artifact.
        difference: of the maps, without sign, coloured from 0 to `difference_max`.
        low: smallest value of the reference's map.
        high: largest value of both maps.
        difference_max: largest difference where both maps are finite.
        not_finite: pixels where a map is NaN or infinite.
    """

    image: str
    reference_map: str
    anomaly_map: str
    difference: str
    low: float
    high: float
    difference_max: float
    not_finite: int


def exhibit_pictures(exhibit: Exhibit) -> ExhibitPictures:
    """Colour both maps on one scale, and their difference on its own."""
    expected, found = exhibit.reference_map, exhibit.anomaly_map
    finite = np.isfinite(expected) & np.isfinite(found)
    # NaN, which has a colour of its own, wherever there is no difference to speak of.
    # In float64, as two finite float32 values may be too far apart for float32.
    difference = np.full(expected.shape, np.nan)
    np.subtract(found, expected, out=difference, where=finite, dtype=np.float64)
    difference = np.minimum(np.abs(difference), np.finfo(np.float32).max).astype(np.float32)
    low = _finite_extreme(np.min, expected, found)
    high = _finite_extreme(np.max, np.stack([expected, found]))
    difference_max = _finite_extreme(np.max, difference)
    return ExhibitPictures(
        image=_data_uri(viewable(exhibit.image)),
        reference_map=_data_uri(_coloured(expected, low, high), colours=256),
        anomaly_map=_data_uri(_coloured(found, low, high), colours=256),
        difference=_data_uri(_coloured(difference, 0, difference_max), colours=256),
        low=low,
        high=high,
        difference_max=difference_max,
        not_finite=int(np.size(finite) - np.count_nonzero(finite)),
    )


def colour_scale() -> str:
    """The colours of the maps from low to high, as a data URI."""
    return _data_uri(colour(np.arange(256, dtype=np.float32)[None], 0, 255))


def _finite_extreme(extreme: Any, *candidates: NDArray[np.float32]) -> float:
    """Of the first candidate that has finite values; 0 if none has."""
    for values in candidates:
        finite = values[np.isfinite(values)]
        if len(finite):
            return float(extreme(finite))
    return 0.0


def _coloured(values: NDArray[np.float32], low: float, high: float) -> UInt8Array:
    """Colour a map in 255 steps: with that of NaN, as many colours as a palette holds.

    Infinite values get the colour of NaN.
    """
    values = np.where(np.isfinite(values), values, np.float32(np.nan))
    if not high > low:
        return colour(values, low, high)
    inside = np.clip(values.astype(np.float64), low, high)
    steps = np.rint((inside - low) / (high - low) * 254).astype(np.float32)
    return colour(steps, 0, 254)


def _data_uri(pixels: UInt8Array, colours: int | None = None) -> str:
    """A PNG; with a palette where it has no more than `colours`."""
    from PIL import Image

    gray = bool((pixels == pixels[:, :, :1]).all())
    image = Image.fromarray(pixels[:, :, 0] if gray else pixels)
    image.thumbnail((_LONGEST, _LONGEST))
    if colours and not gray:
        image = image.quantize(colours)
    data = io.BytesIO()
    image.save(data, format="PNG")  # to optimise takes ten times as long and saves a sixth
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
