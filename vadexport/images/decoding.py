"""Image files to the bytes that a camera would have delivered: `uint8 [H, W, C]`.

The reference reads files with Pillow, so vadexport does too, and like it ignores EXIF
orientation, colour profiles and all frames but the first. What the reference's loader would
change without a word (16 bits cut to 8, a transparent part made opaque, a damaged part left
gray) is refused here.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vadexport.contract import ImageInput, UInt8Array
from vadexport.errors import InputError
from vadexport.images.listing import ImageFile

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pixels a side; the graph contract's limit.
_MAX_SIDE: Final = 16384
#: Pixels in all, 16384×8192 say: no industrial camera has more, and decoded they take 400 MB.
_MAX_PIXELS: Final = 2**27
_LIMITS: Final = f"at most {_MAX_SIDE} pixels a side and {_MAX_PIXELS} in all"
#: The bytes of a file: what an uncompressed RGBA image of the largest size takes.
_MAX_BYTES: Final = 4 * _MAX_PIXELS

#: The only decoders that untrusted files reach, whatever their suffix says.
_FORMATS: Final = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_GRAY_MODES: Final = ("1", "L", "LA")

_TIFF_BITS_PER_SAMPLE: Final = 258


class UnreadableImageError(InputError):
    """One image file is missing, damaged, or of a kind that vadexport does not read."""


@dataclass(frozen=True)
class ImageHeader:
    """Size and colour of an image, in pixels; `channels` is 1 for gray, 3 for colour."""

    height: int
    width: int
    channels: int


def probe(path: Path) -> ImageHeader:
    """Read an image's size and colour without its pixels.

    Raises:
        UnreadableImageError: no image, too large, or more than 8 bits a channel.
    """
    with _opened(path) as image:
        return ImageHeader(image.height, image.width, 1 if image.mode in _GRAY_MODES else 3)


def decode(path: Path, channels: int) -> UInt8Array:
    """Read an image as `uint8 [H, W, channels]`, RGB (3) or gray (1).

    Gray files are repeated into RGB. A colour file becomes gray only if its three channels are
    equal: weighing them would be a choice of preprocessing that is not vadexport's to make.
    EXIF orientation is not applied, as PIL, torchvision and anomalib do not.

    Raises:
        UnreadableImageError: no image, damaged, too large, partly transparent, or more than 8
            bits a channel.
        InputError: a colour image, and `channels` is 1.
    """
    with _opened(path) as image:
        if not _is_opaque(image):
            raise UnreadableImageError(
                f"{path} has transparency: save it without, on the background it is meant for"
            )
        mode = "L" if image.mode in _GRAY_MODES else "RGB"
        pixels: UInt8Array = np.array(image.convert(mode), dtype=np.uint8)
    if mode == "L":
        return np.repeat(pixels[:, :, None], channels, axis=2)
    if channels == pixels.shape[2]:
        return pixels
    if (pixels == pixels[:, :, :1]).all():
        return pixels[:, :, :1]
    raise InputError(f"{path} is a colour image, the detector takes gray")


def common_input(files: Sequence[ImageFile], *, skip_unreadable: bool = False) -> ImageHeader:
    """The size that all images have; 3 channels if any of them is a colour image.

    Args:
        files: the images; only their headers are read.
        skip_unreadable: leave out files whose header cannot be read; `load_images` tells of them.

    Raises:
        UnreadableImageError: a header cannot be read.
        InputError: sizes differ, or there is no readable image.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    examples: dict[tuple[int, int], str] = {}
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
        channels = max(channels, header.channels)
    if not sizes:
        raise _none_readable(files)
    if len(sizes) > 1:
        most = " and ".join(
            f"{count} of {_pixels(*size)} (like {examples[size]})"
            for size, count in sizes.most_common(2)
        )
        raise InputError(f"images differ in size, there are {most}: give images of one size")
    (height, width) = next(iter(sizes))
    return ImageHeader(height, width, channels)


def load_images(
    files: Sequence[ImageFile],
    image_input: ImageInput,
    *,
    skip_unreadable: bool = False,
    on_skip: Callable[[ImageFile, str], None] | None = None,
) -> Iterator[tuple[ImageFile, UInt8Array]]:
    """Decode images one at a time, each `uint8 [H, W, C]` as the graph's input wants it.

    Args:
        files: the images.
        image_input: the size and channels that each must have.
        skip_unreadable: leave out files that cannot be read, instead of ending there. Images
            that can be read but do not fit the input are never left out.
        on_skip: called with each file left out and the reason.

    Raises:
        UnreadableImageError: a file cannot be read.
        InputError: an image has another size or is a colour image where gray is wanted; or none
            was left.
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
        height, width, _ = image.shape
        if (height, width) != (image_input.height, image_input.width):
            size, wanted = _pixels(height, width), _pixels(image_input.height, image_input.width)
            raise InputError(f"{file.path} is {size}, the detector takes {wanted}")
        yield file, image
        loaded += 1
    if not loaded:
        raise _none_readable(files)


def _with_advice(error: UnreadableImageError) -> UnreadableImageError:
    return UnreadableImageError(f"{error}; --skip-unreadable leaves it out")


def _none_readable(files: Sequence[ImageFile]) -> InputError:
    return InputError(f"none of the {len(files)} images can be read")


def _pixels(height: int, width: int) -> str:
    return f"{height}×{width} pixels (height×width)"


@contextmanager
def _opened(path: Path) -> Iterator["Image"]:
    """Open an image, its header read and checked; whatever goes wrong names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        _check_file(path)
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
        raise UnreadableImageError(f"{path} is too large for an image: {_LIMITS}") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(_FORMATS)
        raise UnreadableImageError(
            f"{path} is not an image, or damaged in its header; {formats} of 8 bits a "
            "channel can be read"
        ) from error
    except OSError as error:
        # Pillow's own have no errno; those of the file system do.
        reason = f"cannot be read: {error.strerror}" if error.errno else _damaged(error)
        raise UnreadableImageError(f"{path} {reason}") from error
    except Exception as error:
        # Pillow's decoders raise whatever the damage leads them to, from KeyError to struct.error.
        raise UnreadableImageError(f"{path} {_damaged(error)}") from error


def _damaged(error: Exception) -> str:
    return f"is truncated or damaged: {str(error) or type(error).__name__}"


def _check_file(path: Path) -> None:
    if not path.is_file():
        # Also what keeps a named pipe, which never ends, from being opened.
        raise UnreadableImageError(f"{path} is not a file, or a link that leads nowhere")
    size = path.stat().st_size
    if not size:
        raise UnreadableImageError(f"{path} is empty")
    if size > _MAX_BYTES:
        raise UnreadableImageError(f"{path} is too large: {size} bytes, at most {_MAX_BYTES}")


def _check_header(path: Path, image: "Image") -> None:
    if max(image.size) > _MAX_SIDE or image.width * image.height > _MAX_PIXELS:
        size = _pixels(image.height, image.width)
        raise UnreadableImageError(f"{path} is too large: {size}, {_LIMITS}")
    if image.mode == "F":
        raise UnreadableImageError(
            f"{path} holds floating-point numbers, which do not say what is black and what is "
            "white: save it with 8 bits a channel"
        )
    bits = _bits_per_channel(image)
    if bits > 8:
        raise UnreadableImageError(
            f"{path} has {bits} bits a channel: more than 8 are not supported yet and would be "
            "cut to 8 bits"
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


def _is_opaque(image: "Image") -> bool:
    if not image.has_transparency_data:
        return True
    return image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
