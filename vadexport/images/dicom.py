"""DICOM radiographs, read by pydicom (optional): one gray image of up to 16 bits a file.

What is stored is what the detector sees: rescaling, windows and lookup tables, which are for
people to look at, are not applied. MONOCHROME1, where the smallest value is white, is inverted,
signed values are moved up so that the smallest is black, and values of fewer bits than 8 or 16
are shifted up (12 bits by 4), so that white is near the largest value whatever the device stores.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from vadexport.contract import Dtype, ImageArray
from vadexport.errors import InputError, MissingPackageError
from vadexport.images.headers import (
    ImageHeader,
    UnreadableImageError,
    check_file,
    check_size,
    damaged,
)

if TYPE_CHECKING:
    from pydicom import Dataset

#: Files with these suffixes, in any case, are read as DICOM.
DICOM_SUFFIXES: Final = (".dcm", ".dicom")

_REQUIRED: Final = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
#: All that is read; pydicom skips the rest, names of patients included.
_ELEMENTS: Final = (*_REQUIRED, "NumberOfFrames", "PixelData")


@dataclass(frozen=True)
class _Format:
    """How an image is stored: size in pixels, bits, whether signed, whether 0 is white."""

    rows: int
    columns: int
    allocated: int
    stored: int
    inverted: bool

    @property
    def dtype(self) -> Dtype:
        """The smallest that holds the stored bits."""
        return "uint8" if self.stored <= 8 else "uint16"


def probe(path: Path) -> ImageHeader:
    """Read an image's size and bit depth without its pixels.

    Raises:
        UnreadableImageError: no DICOM file, too large, or of a kind that is not read.
        MissingPackageError: pydicom is not installed.
    """
    with _opened(path, pixels=False) as dataset:
        form = _format(path, dataset)
        return ImageHeader(form.rows, form.columns, 1, form.dtype)


def read(path: Path) -> ImageArray:
    """Read an image's pixels `[H, W]`; uint8 of up to 8 stored bits, else uint16.

    Raises:
        UnreadableImageError: no DICOM file, damaged, too large, of a kind that is not read, or
            compressed in a way that nothing installed here decodes.
        MissingPackageError: pydicom is not installed.
    """
    with _opened(path, pixels=True) as dataset:
        form = _format(path, dataset)
        _check_pixel_data(path, dataset, form)
        values = _decoded(path, dataset)
        if values.shape != (form.rows, form.columns):
            raise UnreadableImageError(f"{path} is damaged: its pixels do not fill its size")
        return _scaled(values, form)


def _decoded(path: Path, dataset: "Dataset") -> np.ndarray[Any, Any]:
    from pydicom.pixels.utils import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        return pixel_array(dataset, raw=True)
    except RuntimeError as error:
        # After all decoders failed, some of them because they know a part of the syntax only.
        if not syntax.is_encapsulated:
            raise
        raise UnreadableImageError(
            f"{path} is damaged, or compressed ({syntax.name}) as no decoder installed here reads "
            "it: save it uncompressed"
        ) from error


def _scaled(values: np.ndarray[Any, Any], form: _Format) -> ImageArray:
    """Stored values to unsigned ones that use the whole range of 8 or 16 bits."""
    # Bits above those stored may repeat the sign, or hold what is no pixel.
    unsigned = values.astype(np.uint16) & np.uint16(2**form.stored - 1)
    if np.issubdtype(values.dtype, np.signedinteger):
        unsigned ^= np.uint16(2 ** (form.stored - 1))  # adds half the range, in two's complement
    if form.inverted:
        unsigned ^= np.uint16(2**form.stored - 1)
    dtype = np.dtype(form.dtype)
    shifted: ImageArray = (unsigned << np.uint16(8 * dtype.itemsize - form.stored)).astype(dtype)
    return shifted


# --- the file --------------------------------------------------------------------------------


class _BoundedFile:
    """A file as pydicom reads it, that never makes room for more bytes than the file has."""

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self.tell = file.tell
        self.seek = file.seek

    def read(self, count: int = -1) -> bytes:
        if count < 0:
            # pydicom asks for all that is left only to inflate it, without a bound.
            raise UnreadableImageError(
                f"{self._path} is a deflated DICOM file, which is not read: save it uncompressed"
            )
        return self._file.read(min(count, self._size))


@contextmanager
def _opened(path: Path, *, pixels: bool) -> Iterator["Dataset"]:
    """Read a file's elements; whatever goes wrong names the file."""
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise MissingPackageError("pydicom", "dicom") from None
    try:
        check_file(path)
        with warnings.catch_warnings(), path.open("rb") as file:
            # Of values that the standard forbids; those that matter are checked here.
            warnings.simplefilter("ignore")
            bounded: Any = _BoundedFile(path, file, path.stat().st_size)
            yield pydicom.dcmread(
                bounded, stop_before_pixels=not pixels, specific_tags=list(_ELEMENTS)
            )
    except (InputError, MemoryError):
        raise
    except InvalidDicomError as error:
        raise UnreadableImageError(f"{path} is not a DICOM file, or damaged in its header") from (
            error
        )
    except OSError as error:
        reason = f"cannot be read: {error.strerror}" if error.errno else damaged(error)
        raise UnreadableImageError(f"{path} {reason}") from error
    except Exception as error:
        # pydicom and its decoders raise whatever the damage leads them to.
        raise UnreadableImageError(f"{path} {damaged(error)}") from error


# --- what is read ----------------------------------------------------------------------------


def _format(path: Path, dataset: "Dataset") -> _Format:
    """Check what the header says of the image; an element that is missing counts as damage."""
    for name in _REQUIRED:
        if name not in dataset:
            raise UnreadableImageError(f"{path} holds no image, or is damaged: it lacks {name}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnreadableImageError(f"{path} holds {frames} frames: save each as a file of its own")
    colours = str(dataset.PhotometricInterpretation)
    if dataset.SamplesPerPixel != 1 or colours not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableImageError(f"{path} is {colours!r}: only gray DICOM images are read")
    form = _Format(
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        allocated=int(dataset.BitsAllocated),
        stored=int(dataset.BitsStored),
        inverted=colours == "MONOCHROME1",
    )
    check_size(path, form.rows, form.columns)
    if form.rows < 1 or form.columns < 1:
        raise UnreadableImageError(f"{path} has no pixels")
    if form.allocated not in (8, 16):
        raise UnreadableImageError(
            f"{path} has {form.allocated} bits allocated: DICOM images of 8 and 16 are read"
        )
    highest = int(dataset.HighBit)
    if not 1 <= form.stored <= form.allocated or highest != form.stored - 1:
        raise UnreadableImageError(
            f"{path} stores {form.stored} bits up to number {highest} of "
            f"{form.allocated}, which are not the lowest ones"
        )
    if dataset.PixelRepresentation not in (0, 1):
        raise UnreadableImageError(f"{path} does not say whether its values are signed")
    return form


def _check_pixel_data(path: Path, dataset: "Dataset", form: _Format) -> None:
    """What pydicom would pad or pass over, or say in several lines."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    if "PixelData" not in dataset:
        raise UnreadableImageError(f"{path} is truncated or damaged: it has no pixel data")
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise UnreadableImageError(f"{path} is encoded as {str(syntax)!r}, which is not known")
    if not syntax.is_encapsulated:
        length = form.rows * form.columns * form.allocated // 8
        found = len(dataset.PixelData)
        if found not in (length, length + length % 2):  # values have an even number of bytes
            raise UnreadableImageError(
                f"{path} is truncated or damaged: {found} bytes of pixel data, not {length}"
            )
        return
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise UnreadableImageError(
            f"{path} is compressed as {syntax.name}, and no decoder of it is installed here: "
            "install one that pydicom finds, such as pylibjpeg, or save the image uncompressed"
        )
