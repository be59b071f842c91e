"""Ground-truth masks of a category laid out like MVTec AD: which files, and which pixels.

The mask of `test/<defect>/<stem>.png` is `ground_truth/<defect>/<stem>_mask.png`, or likewise
without `_mask`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vadexport.errors import InputError
from vadexport.images.decoding import decode, probe
from vadexport.images.headers import UnreadableImageError
from vadexport.images.listing import MASK_FOLDER, ImageFile, list_images

_MASK_ENDING: Final = "_mask"
#: Compression of these leaves a seam of gray pixels around each defect.
_LOSSY_SUFFIXES: Final = (".jpg", ".jpeg", ".webp")


def find_masks(
    category: Path, images: Sequence[ImageFile], tests: Path | None = None
) -> dict[Path, Path]:
    """The mask file of each image that has one, by the image's path.

    Empty where the category has no masks at all. Headers are read, pixels are not.

    Args:
        category: the folder that holds `test` and `ground_truth`.
        images: its test images, as `test_images` lists them.
        tests: the folder of these, as their paths spell it; default `test` in the category.

    Raises:
        InputError: an anomalous image has no mask while there are some, an image has several, a
            mask is that of no image or of two, has another size than its image, cannot be read,
            or is a JPEG or WebP file.
    """
    tests = tests or category / "test"
    files = _mask_files(category / MASK_FOLDER)
    if not files:
        return {}
    by_name = defaultdict(list)
    for path in files:
        by_name[path.relative_to(category / MASK_FOLDER).with_suffix("")].append(path)
    found: dict[Path, Path] = {}
    owners: dict[Path, Path] = {}
    for image in images:
        name = image.path.relative_to(tests).with_suffix("")
        mask = _mask_of(image, name, by_name)
        if mask is None:
            continue
        if mask in owners:
            raise InputError(f"{mask} is the mask of two images: {owners[mask]} and {image.path}")
        owners[mask] = image.path
        found[image.path] = mask
    for path in files:
        if path not in owners:
            raise InputError(f"{path} is the mask of no image in {tests}")
    for image_path, mask in found.items():
        _check_size(mask, image_path)
    return found


def load_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask as bool `[H, W]`: true, a defect, wherever it is not black.

    Raises:
        UnreadableImageError: no image, damaged, too large or partly transparent.
    """
    mask: NDArray[np.bool_] = np.any(decode(path, 3), axis=2)
    return mask


def _mask_files(folder: Path) -> list[Path]:
    try:
        if not folder.is_dir() or all(child.name.startswith(".") for child in folder.iterdir()):
            return []
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from None
    files = [file.path for file in list_images(folder)]
    for path in files:
        if path.suffix.lower() in _LOSSY_SUFFIXES:
            raise InputError(f"{path}: lossy compression blurs a mask's edges, make it a PNG file")
    return files


def _mask_of(image: ImageFile, name: Path, by_name: Mapping[Path, Sequence[Path]]) -> Path | None:
    marked = name.with_name(name.name + _MASK_ENDING)
    found = [path for one in (marked, name) for path in by_name.get(one, ())]
    if len(found) > 1:
        raise InputError(f"{image.path} has several masks: {' and '.join(map(str, found))}")
    if not found and image.label:
        raise InputError(
            f"{image.path} has no mask, others have: there is no {MASK_FOLDER}/{marked}.png"
        )
    return found[0] if found else None


def _check_size(mask: Path, image: Path) -> None:
    header = probe(mask)
    try:
        wanted = probe(image)
    except UnreadableImageError:
        return  # whoever loads the images tells of it, or leaves it out
    if (header.height, header.width) != (wanted.height, wanted.width):
        raise InputError(
            f"{mask} is {header.height}×{header.width} pixels (height×width), its image "
            f"{image} is {wanted.height}×{wanted.width}"
        )
