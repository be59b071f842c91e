"""Images in and out: which files IMAGES names, their pixels, generated ones, heatmaps.

Pillow and pydicom are imported only when a file is decoded or written, so importing this package
costs no more than numpy does.
"""

from vadexport.images.decoding import check_depth, common_input, decode, load_images, probe
from vadexport.images.digests import digest_of_all, image_digest
from vadexport.images.headers import ImageHeader, UnreadableImageError
from vadexport.images.listing import (
    IMAGE_SUFFIXES,
    ImageFile,
    list_images,
    test_images,
    training_images,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageFile",
    "ImageHeader",
    "UnreadableImageError",
    "check_depth",
    "common_input",
    "decode",
    "digest_of_all",
    "image_digest",
    "list_images",
    "load_images",
    "probe",
    "test_images",
    "training_images",
]
