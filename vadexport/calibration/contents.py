"""What calibration images show: ones that set no range, and copies of others."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from vadexport.contract import ImageInput
from vadexport.images import ImageFile, load_images


@dataclass(frozen=True)
class Contents:
    """What the images of a set show.

    Attributes:
        images: how many there are.
        distinct: how many different pictures they are, by their pixels.
        constant: names of those that have one gray level, or one colour, all over.
    """

    images: int
    distinct: int
    constant: tuple[str, ...]


def contents(files: Sequence[ImageFile], image_input: ImageInput) -> Contents:
    """Look at each image once.

    Args:
        files: at least one.
        image_input: size, channels and bit depth that each must have.

    Raises:
        InputError: an image cannot be read, or has another size or bit depth.
    """
    pictures, constant = set(), []
    for file, image in load_images(files, image_input):
        pictures.add(hashlib.sha256(image.tobytes()).digest())
        if (image == image[:1, :1]).all():
            constant.append(file.name)
    return Contents(len(files), len(pictures), tuple(constant))
