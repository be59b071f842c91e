"""Image files to what a camera would have delivered: `uint8` or `uint16` `[H, W, C]`.

What a reference's loader might change without a word (16 bits cut to 8, a transparent part made
opaque, a damaged part left gray) is refused here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vadexport.contract import Dtype, ImageArray, ImageInput
from vadexport.errors import InputError
from vadexport.images import dicom, raster
from vadexport.images.headers import ImageHeader, UnreadableImageError, in_pixels
from vadexport.images.listing import ImageFile


def probe(path: Path) -> ImageHeader:
    """Read an image's size, colour and bit depth without its pixels.

    Raises:
        UnreadableImageError: no image, too large, or of a kind that is not read.
        MissingPackageError: a DICOM file, and pydicom is not installed.
    """
    return dicom.probe(path) if _is_dicom(path) else raster.probe(path)


def decode(path: Path, channels: int) -> ImageArray:
    """Read an image as `[H, W, channels]`, RGB (3) or gray (1), with the bit depth that it has.

    - Of 8 bits a channel and fewer: `uint8`. Black and white is 0 and 255, a palette gives its
      colours, CMYK becomes RGB.
    - Gray PNG and TIFF of 9 to 16 bits, and DICOM (`vadexport.images.dicom`): `uint16`, where
      fewer bits than 16 are shifted up. Colour and signed numbers of more than 8 bits are
      refused: Pillow would cut them.
    - An alpha channel that is opaque everywhere is dropped; with any transparency the image is
      refused, as the background it would be laid on is not known.
    - Gray files are repeated into RGB. A colour file, or one with a palette, becomes gray only if
      its three channels are equal: weighing them would be a choice of preprocessing that is not
      vadexport's to make.
    - EXIF orientation, colour profiles and all frames of a TIFF file but the first are ignored, as
      PIL, torchvision and anomalib do.

    Raises:
        UnreadableImageError: no image, damaged, too large, partly transparent, or of a kind that
            is not read.
        InputError: a colour image, and `channels` is 1.
        MissingPackageError: a DICOM file, and pydicom is not installed.
    """
    pixels = dicom.read(path) if _is_dicom(path) else raster.read(path)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], channels, axis=2)
    if channels == pixels.shape[2]:
        return pixels
    if (pixels == pixels[:, :, :1]).all():
        return pixels[:, :, :1]
    raise InputError(f"{path} is a colour image, the detector takes gray")


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() in dicom.DICOM_SUFFIXES


def common_input(files: Sequence[ImageFile], *, skip_unreadable: bool = False) -> ImageHeader:
    """Size and bit depth that all images have; 3 channels if any of them is a colour image.

    Args:
        files: the images; only their headers are read.
        skip_unreadable: leave out files whose header cannot be read; `load_images` tells of them.

    Raises:
        UnreadableImageError: a header cannot be read.
        InputError: sizes or bit depths differ, or there is no readable image.
        MissingPackageError: there are DICOM files, and pydicom is not installed.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    examples: dict[tuple[int, int], str] = {}
    depths: dict[Dtype, str] = {}
    channels = 1
    for file in files:
        try:
            header = probe(file.path)
        except UnreadableImageError as error:
            if skip_unreadable:
                continue
            raise _with_advice(error) from error
        size = (header.height, header.width)
        sizes[size] += 1
        examples.setdefault(size, file.name)
        depths.setdefault(header.dtype, file.name)
        channels = max(channels, header.channels)
    if not sizes:
        raise _none_readable(files)
    if len(depths) > 1:
        raise InputError(
            f"images differ in bit depth: {depths['uint8']} has 8 bits a channel, "
            f"{depths['uint16']} has 16: give images of one depth"
        )
    if len(sizes) > 1:
        most = " and ".join(
            f"{count} of {in_pixels(*size)} (like {examples[size]})"
            for size, count in sizes.most_common(2)
        )
        raise InputError(f"images differ in size, there are {most}: give images of one size")
    (height, width), (dtype,) = next(iter(sizes)), depths
    return ImageHeader(height, width, channels, dtype)


def check_depth(name: str | Path, dtype: str, image_input: ImageInput) -> None:
    """Raises InputError where images have another bit depth than the detector takes.

    Args:
        name: of the image.
        dtype: of its pixels.
        image_input: what the detector takes.
    """
    if dtype != image_input.dtype:
        found, wanted = ("8", "16") if dtype == "uint8" else ("16", "8")
        raise InputError(
            f"{name} has {found} bits a channel, the detector takes {wanted}: wrong bit depth"
        )


def load_images(
    files: Sequence[ImageFile],
    image_input: ImageInput,
    *,
    skip_unreadable: bool = False,
    on_skip: Callable[[ImageFile, str], None] | None = None,
) -> Iterator[tuple[ImageFile, ImageArray]]:
    """Decode images one at a time, each `[H, W, C]` as the graph's input wants it.

    Args:
        files: the images.
        image_input: the size, channels and bit depth that each must have.
        skip_unreadable: leave out files that cannot be read, instead of ending there. Images
            that can be read but do not fit the input are never left out.
        on_skip: called with each file left out and the reason.

    Raises:
        UnreadableImageError: a file cannot be read.
        InputError: an image has another size or bit depth, or is a colour image where gray is
            wanted; or none was left.
        MissingPackageError: a DICOM file, and pydicom is not installed.
    """
    loaded = 0
    for file in files:
        try:
            image = decode(file.path, image_input.channels)
        except UnreadableImageError as error:
            if not skip_unreadable:
                raise _with_advice(error) from error
            if on_skip is not None:
                on_skip(file, str(error))
            continue
        check_depth(file.path, image.dtype.name, image_input)
        height, width, _ = image.shape
        if (height, width) != (image_input.height, image_input.width):
            wanted = in_pixels(image_input.height, image_input.width)
            raise InputError(
                f"{file.path} is {in_pixels(height, width)}, the detector takes {wanted}"
            )
        yield file, image
        loaded += 1
    if not loaded:
        raise _none_readable(files)


def _with_advice(error: UnreadableImageError) -> UnreadableImageError:
    return UnreadableImageError(f"{error}; --skip-unreadable leaves it out")


def _none_readable(files: Sequence[ImageFile]) -> InputError:
    return InputError(f"none of the {len(files)} images can be read")
