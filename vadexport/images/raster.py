"""PNG, JPEG, BMP, TIFF and WebP files, read by Pillow.

The reference reads files with Pillow, so vadexport does too, and like it ignores EXIF
orientation, colour profiles and all frames but the first. What Pillow would change without a word
(16 bits a channel of a colour image cut to 8, a damaged part left gray) is refused here.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vadexport.contract import ImageArray
from vadexport.errors import InputError
from vadexport.images.headers import (
    LIMITS,
    ImageHeader,
    UnreadableImageError,
    check_file,
    check_size,
    damaged,
)

if TYPE_CHECKING:
    from PIL.Image import Image

#: The only decoders that untrusted files reach, whatever their suffix says.
_FORMATS: Final = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_GRAY_MODES: Final = ("1", "L", "LA")
#: Unsigned gray of up to 16 bits, in either byte order.
_DEEP_MODES: Final = ("I;16", "I;16L", "I;16B")

_TIFF_BITS_PER_SAMPLE: Final = 258
_TIFF_PHOTOMETRIC: Final = 262
_WHITE_IS_ZERO: Final = 0


def probe(path: Path) -> ImageHeader:
    """Read an image's size, colour and bit depth without its pixels.

    Raises:
        UnreadableImageError: no image, too large, or with bits that Pillow would cut.
    """
    with _opened(path) as image:
        deep = image.mode in _DEEP_MODES
        gray = deep or image.mode in _GRAY_MODES
        return ImageHeader(
            image.height, image.width, 1 if gray else 3, "uint16" if deep else "uint8"
        )


def read(path: Path) -> ImageArray:
    """Read an image's pixels, gray `[H, W]` or RGB `[H, W, 3]`.

    Raises:
        UnreadableImageError: no image, damaged, too large, partly transparent, or with bits that
            Pillow would cut.
    """
    with _opened(path) as image:
        if not _is_opaque(image):
            raise UnreadableImageError(
                f"{path} has transparency: save it without, on the background it is meant for"
            )
        if image.mode in _DEEP_MODES:
            return _deep_pixels(image)
        mode = "L" if image.mode in _GRAY_MODES else "RGB"
        pixels: NDArray[np.uint8] = np.array(image.convert(mode), dtype=np.uint8)
        return pixels


@contextmanager
def _opened(path: Path) -> Iterator["Image"]:
    """Open an image, its header read and checked; whatever goes wrong names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        check_file(path)
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, which does not touch the pixels, and of images larger
            # than its own limit, which is below ours.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                _check_header(path, image)
                yield image
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        # Raised beyond twice Pillow's limit, which is above ours: its message names another one.
        raise UnreadableImageError(f"{path} is too large for an image: {LIMITS}") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(_FORMATS)
        raise UnreadableImageError(
            f"{path} is not an image, or damaged in its header; {formats} of 8 bits a "
            "channel can be read, gray PNG and TIFF also of 16"
        ) from error
    except OSError as error:
        # Pillow's own have no errno; those of the file system do.
        reason = f"cannot be read: {error.strerror}" if error.errno else damaged(error)
        raise UnreadableImageError(f"{path} {reason}") from error
    except Exception as error:
        # Pillow's decoders raise whatever the damage leads them to, from KeyError to struct.error.
        raise UnreadableImageError(f"{path} {damaged(error)}") from error


def _check_header(path: Path, image: "Image") -> None:
    check_size(path, image.height, image.width)
    if image.mode == "F":
        raise UnreadableImageError(
            f"{path} holds floating-point numbers, which do not say what is black and what is "
            "white: save it with 8 or 16 bits a channel"
        )
    depth = _bits_per_channel(image)
    if depth > 8 and image.mode not in _DEEP_MODES:
        raise UnreadableImageError(
            f"{path} has {depth} bits a channel: more than 8 are read only of unsigned gray "
            "without transparency, up to 16; this image would be cut to 8 bits"
        )


def _bits_per_channel(image: "Image") -> int:
    """Bits a channel in the file; more than 8 do not show in the mode of a colour image."""
    from PIL.PngImagePlugin import PngImageFile
    from PIL.TiffImagePlugin import TiffImageFile

    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (1,))))
    if isinstance(image, PngImageFile):
        # A tile's last field is the raw mode, such as "RGB;16B".
        return 16 if any(";16" in str(tile[3]) for tile in image.tile) else 8
    return 8


def _deep_pixels(image: "Image") -> NDArray[np.uint16]:
    """Gray of 9 to 16 bits, 0 black; fewer than 16 are shifted up, so that white is white."""
    from PIL.TiffImagePlugin import TiffImageFile

    pixels: NDArray[np.uint16] = np.array(image).astype(np.uint16)
    if not isinstance(image, TiffImageFile):
        return pixels
    depth = int(max(image.tag_v2[_TIFF_BITS_PER_SAMPLE]))
    if image.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts only 8 bits
        pixels ^= np.uint16(2**depth - 1)
    return pixels << np.uint16(16 - depth)


def _is_opaque(image: "Image") -> bool:
    if image.mode in _DEEP_MODES:
        # Converting to RGBA would cut; a PNG file may name one value that is transparent.
        key = image.info.get("transparency")
        return key is None or not bool((np.array(image) == key).any())
    if not image.has_transparency_data:
        return True
    return image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
