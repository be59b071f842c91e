"""Anomaly maps as pictures: colours for values, laid over the image, written as PNG."""

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vadexport.contract import ImageArray, UInt8Array
from vadexport.files import written_whole

#: Matplotlib's viridis at 0, 1/8, …, 1 (by Smith and van der Walt, CC0): lightness grows
#: steadily, so the order of values survives gray printing and every kind of colour blindness.
_ANCHORS: Final = np.array(
    [
        (0x44, 0x01, 0x54),
        (0x47, 0x2D, 0x7B),
        (0x3B, 0x52, 0x8B),
        (0x2C, 0x72, 0x8E),
        (0x21, 0x91, 0x8C),
        (0x28, 0xAE, 0x80),
        (0x5E, 0xC9, 0x62),
        (0xAD, 0xDC, 0x30),
        (0xFD, 0xE7, 0x25),
    ],
    np.float64,
)
#: Magenta is far from every colour of the scale.
_NAN_COLOUR: Final = np.array((255, 0, 255), np.uint8)


def colour(values: NDArray[np.float32], low: float, high: float) -> UInt8Array:
    """Colour a map: `low` and below dark violet, `high` and above yellow, NaN magenta.

    Args:
        values: `[H, W]`, in any unit.
        low: the value that the scale begins at.
        high: the value that it ends at; equal to `low`, only larger values are yellow.

    Returns:
        `[H, W, 3]` RGB.

    Raises:
        ValueError: the range is empty or not finite.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"no colour scale goes from {low} to {high}")
    wide = values.astype(np.float64)
    span = high - low
    share = (np.clip(wide, low, high) - low) / span if span > 0 else (wide > high).astype(float)
    missing = np.isnan(wide)
    steps = np.arange(len(_ANCHORS)) / (len(_ANCHORS) - 1)
    position = np.where(missing, 0, share)
    channels = [np.interp(position, steps, anchor) for anchor in _ANCHORS.T]
    colours: UInt8Array = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    colours[missing] = _NAN_COLOUR
    return colours


def viewable(image: ImageArray) -> UInt8Array:
    """An image as people see it on a screen, with 8 bits a channel; detectors never see it.

    16 bits are stretched from the 0.1% to the 99.9% quantile of the image's own values: many
    cameras and radiographs use a small part of the range, and a few dead pixels or a bright
    marker should not make the rest dark.

    Args:
        image: `[H, W, C]`.

    Returns:
        The same shape; an image of 8 bits as it is.
    """
    if image.dtype == np.uint8:
        return image.astype(np.uint8, copy=False)
    low, high = np.quantile(image, (0.001, 0.999))
    span = max(high - low, 1.0)
    stretched = (np.clip(image, low, high) - low) * (255 / span)
    seen: UInt8Array = np.rint(stretched).astype(np.uint8)
    return seen


def overlay(image: ImageArray, heat: UInt8Array, alpha: float) -> UInt8Array:
    """Lay a coloured map over its image.

    Args:
        image: `[H, W, 1 or 3]`; 16 bits are shown as `viewable` has them.
        heat: `[H, W, 3]`, of the same size.
        alpha: share of the map, 0 (image only) to 1 (map only).

    Returns:
        `[H, W, 3]` RGB.

    Raises:
        ValueError: the sizes differ, or `alpha` is outside 0 … 1.
    """
    if image.shape[:2] != heat.shape[:2]:
        raise ValueError(f"image {image.shape} and map {heat.shape} differ in size")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha} is outside 0 … 1")
    blended = viewable(image) * (1 - alpha) + heat * alpha
    mixed: UInt8Array = np.rint(blended).astype(np.uint8)
    return mixed


def save_png(array: ImageArray, path: Path) -> None:
    """Write `[H, W]`, `[H, W, 1]` or `[H, W, 3]` as PNG of its bit depth, whole or not at all.

    Raises:
        InputError: the folder is missing or cannot be written to.
    """
    from PIL import Image

    pixels: NDArray[Any] = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    with written_whole(path) as unfinished:
        Image.fromarray(pixels).save(unfinished, format="PNG")
