"""The graph contract: the one input and the outputs that every artifact has.

Input `image`: `uint8 [N, H, W, C]`, RGB (C=3) or gray (C=1), or for gray cameras and radiographs
of more than 8 bits `uint16 [N, H, W, 1]`; H×W the camera's size. Where it is asked for, the input
is what anomalib's own inferencers feed instead: `float32 [N, C, H, W]` from 0 to 1. Outputs are
named as anomalib names them, so that code written for its exports keeps working; a graph has those
that its detector has.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray

from vadexport.errors import InputError

INPUT_NAME: Final = "image"

#: float32 [N, C, h, w]: what preprocessing gives the network, a tensor inside of graphs.
PREPROCESSED: Final = "preprocessed"
#: How the names begin of what the network hands to the score head.
FEATURE: Final = "feature_"

#: float32 [N]: the score that the reference reports, normalised to [0, 1], threshold at 0.5.
PRED_SCORE: Final = "pred_score"
#: float32 [N]: the score before normalisation and clamping; parity is judged on it.
RAW_SCORE: Final = "raw_score"
#: float32 [N, 1, h, w]: the anomaly map.
ANOMALY_MAP: Final = "anomaly_map"
#: bool [N]: True where the score is above the threshold.
PRED_LABEL: Final = "pred_label"
#: bool [N, 1, h, w]: True where the map is above the pixel threshold.
PRED_MASK: Final = "pred_mask"

OUTPUT_NAMES: Final = (PRED_SCORE, RAW_SCORE, PRED_LABEL, ANOMALY_MAP, PRED_MASK)

#: A camera's values: each of them is used, 0 is black and the largest is white.
Dtype = Literal["uint8", "uint16"]
#: Pixels of a camera.
ImageArray = NDArray[np.uint8 | np.uint16]
#: Pixels of a picture for people to look at.
UInt8Array = NDArray[np.uint8]
#: One call of a graph: camera pixels, or the same as float32 from 0 to 1.
Call = NDArray[Any]
Outputs = dict[str, NDArray[Any]]
#: How a graph takes its images.
Layout = Literal["nhwc", "float-nchw"]


_LAYOUTS: Final[dict[str, Layout]] = {"NHWC": "nhwc", "NCHW": "float-nchw"}


@dataclass(frozen=True)
class ImageInput:
    """The graph's input: camera size, channels, batch size and bit depth.

    Attributes:
        height: pixels.
        width: pixels.
        channels: 3 for RGB, 1 for gray.
        batch: images a call; None for any number.
        dtype: of the camera's values; `uint16`, for gray only, where it gives more than 8 bits.
        layout: `nhwc`, the camera's values as they are; or `float-nchw`, float32 from 0 to 1.
    """

    height: int
    width: int
    channels: int
    batch: int | None = 1
    dtype: Dtype = "uint8"
    layout: Layout = "nhwc"

    def __post_init__(self) -> None:
        if not (0 < self.height <= 16384 and 0 < self.width <= 16384):
            raise InputError(f"image size {self.height}x{self.width} is outside 1 … 16384 pixels")
        if self.channels not in (1, 3):
            raise InputError(f"images have 1 or 3 channels, not {self.channels}")
        if self.batch is not None and not 0 < self.batch <= 1024:
            raise InputError(f"batch size {self.batch} is outside 1 … 1024")
        if self.dtype not in get_args(Dtype):
            raise InputError(f"images are uint8 or uint16, not {self.dtype!r}")
        if self.dtype == "uint16" and self.channels != 1:
            raise InputError("uint16 images are gray: colour has 8 bits a channel")
        if self.layout not in get_args(Layout):
            raise InputError(f"a graph takes images as nhwc or float-nchw, not {self.layout!r}")

    @property
    def shape(self) -> tuple[int | None, int, int, int]:
        """Of the graph's input: `(N, H, W, C)` or `(N, C, H, W)`, N None where it is dynamic."""
        if self.layout == "float-nchw":
            return (self.batch, self.channels, self.height, self.width)
        return (self.batch, self.height, self.width, self.channels)

    @property
    def graph_dtype(self) -> str:
        """Of the graph's input."""
        return "float32" if self.layout == "float-nchw" else self.dtype

    def to_json(self) -> dict[str, Any]:
        """The form that manifests and checkpoints hold."""
        return {
            "name": INPUT_NAME,
            "dtype": self.graph_dtype,
            "camera_dtype": self.dtype,
            "layout": "NCHW" if self.layout == "float-nchw" else "NHWC",
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "batch": self.batch,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` wrote.

        Raises:
            InputError: a field is missing, has another type or a value that is none.
        """
        try:
            height, width, channels = value["height"], value["width"], value["channels"]
            batch, layout = value["batch"], _LAYOUTS[value["layout"]]
            dtype = value.get("camera_dtype", value["dtype"])
        except (KeyError, TypeError) as error:
            raise InputError(f"the image input lacks {error}") from None
        whole = all(type(size) is int for size in (height, width, channels))
        if not whole or type(batch) not in (int, type(None)):
            raise InputError("the image input's sizes are not whole numbers")
        found = cls(height, width, channels, batch, dtype, layout)
        if value["dtype"] != found.graph_dtype:
            raise InputError(f"images are uint8 or uint16, not {value['dtype']!r}")
        return found

    def check(self, image: NDArray[Any]) -> ImageArray:
        """Return `image` as `[N, H, W, C]` of this input's dtype, or say what is wrong with it.

        A single image `[H, W, C]`, and for gray `[H, W]`, gains the missing axes.

        Raises:
            InputError: another dtype, size or number of channels.
        """
        if image.dtype != np.dtype(self.dtype):
            depth = " (wrong bit depth)" if image.dtype.name in get_args(Dtype) else ""
            raise InputError(f"images are {self.dtype}, not {image.dtype}{depth}")
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim == 3:
            image = image[None]
        wanted = (self.height, self.width, self.channels)
        if image.ndim != 4 or image.shape[1:] != wanted:
            got = "×".join(map(str, image.shape[1:]))
            raise InputError(f"image is {got}, the detector takes {'×'.join(map(str, wanted))}")
        # Another byte order is the same dtype to numpy, but not to a backend.
        return cast("ImageArray", image.astype(self.dtype, copy=False))

    def batches(self, images: ImageArray) -> Iterator[tuple[Call, int]]:
        """Cut `[N, H, W, C]` into calls of the graph: `(call, images that count)`.

        A static batch is filled up by repeating the last image; dynamic takes all at once.
        """
        if self.batch is None:
            yield self._call(images), len(images)
            return
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            missing = self.batch - len(part)
            filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            yield self._call(filled), len(part)

    def _call(self, images: ImageArray) -> Call:
        if self.layout == "nhwc":
            return images
        white = np.float32(np.iinfo(self.dtype).max)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / white


def join_outputs(parts: Sequence[tuple[Outputs, int]]) -> Outputs:
    """Put the outputs of `batches` together again, without what was filled up."""
    names = parts[0][0].keys()
    return {name: np.concatenate([out[name][:count] for out, count in parts]) for name in names}
