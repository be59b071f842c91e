"""Which image a file is, by its bytes: for telling whether two sets of images overlap."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vadexport.images.headers import UnreadableImageError

#: Hexadecimal digits kept of the SHA-256: 64 bits, so a million images hardly ever collide.
DIGEST_LENGTH: Final = 16


def image_digest(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file's bytes.

    Copies of a file have the same digest, whatever their names; the same picture saved anew has
    another.

    Raises:
        UnreadableImageError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]
    except OSError as error:
        raise UnreadableImageError(f"{path} cannot be read: {error.strerror}") from error


def digest_of_all(digests: Iterable[str]) -> str:
    """SHA-256 over the digests of images, in hexadecimal, whatever their names and order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
