"""What an image file says of itself, and how large it may be, whatever its format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vadexport.contract import Dtype
from vadexport.errors import InputError

#: Pixels a side; the graph contract's limit.
_MAX_SIDE: Final = 16384
#: Pixels in all, 16384×8192 say: no industrial camera has more, and decoded they take 400 MB.
_MAX_PIXELS: Final = 2**27
#: In words.
LIMITS: Final = f"at most {_MAX_SIDE} pixels a side and {_MAX_PIXELS} in all"
#: The bytes of a file: what an uncompressed RGBA image of the largest size takes.
_MAX_BYTES: Final = 4 * _MAX_PIXELS


class UnreadableImageError(InputError):
    """One image file is missing, damaged, or of a kind that vadexport does not read."""


@dataclass(frozen=True)
class ImageHeader:
    """Size, colour and bit depth of an image.

    Attributes:
        height: pixels.
        width: pixels.
        channels: 1 for gray, 3 for colour.
        dtype: of its pixels once decoded.
    """

    height: int
    width: int
    channels: int
    dtype: Dtype = "uint8"


def in_pixels(height: int, width: int) -> str:
    """A size in words."""
    return f"{height}×{width} pixels (height×width)"


def damaged(error: Exception) -> str:
    """What a decoder found, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"is truncated or damaged: {lines[0].rstrip(':')}"


def check_file(path: Path) -> None:
    """Raises UnreadableImageError where there is no file, or one too large to be an image."""
    if not path.is_file():
        # Also what keeps a named pipe, which never ends, from being opened.
        raise UnreadableImageError(f"{path} is not a file, or a link that leads nowhere")
    size = path.stat().st_size
    if not size:
        raise UnreadableImageError(f"{path} is empty")
    if size > _MAX_BYTES:
        raise UnreadableImageError(f"{path} is too large: {size} bytes, at most {_MAX_BYTES}")


def check_size(path: Path, height: int, width: int) -> None:
    """Raises UnreadableImageError where a file's header tells of an image that is too large."""
    if max(height, width) > _MAX_SIDE or height * width > _MAX_PIXELS:
        size = in_pixels(height, width)
        raise UnreadableImageError(f"{path} is too large: {size}, {LIMITS}")
