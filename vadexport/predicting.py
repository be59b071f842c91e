"""`vadexport predict`: score images with an artifact. Imports neither torch nor onnx."""

import json
import os
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from vadexport.contract import ImageArray, UInt8Array
from vadexport.errors import CheckError, InputError
from vadexport.files import written_text
from vadexport.images import ImageFile, list_images, load_images
from vadexport.images.colouring import colour, overlay, save_png
from vadexport.listening import Listener
from vadexport.runtime import LoadedDetector, Prediction, load

_HEAT_ALPHA = 0.45


@dataclass(frozen=True)
class PredictOptions:
    """What to score.

    Attributes:
        artifact: an artifact, or a build folder with a single one.
        images: IMAGES.
        heatmaps: folder for overlays of image and anomaly map, one PNG an image.
        jsonl: file for one JSON object a line and image.
        threads: default all processors.
        skip_unreadable: leave out images that cannot be read.
    """

    artifact: Path
    images: str
    heatmaps: Path | None = None
    jsonl: Path | None = None
    threads: int | None = None
    skip_unreadable: bool = False


@dataclass(frozen=True)
class PredictedImage:
    """The scores of one image."""

    file: ImageFile
    prediction: Prediction

    def to_json(self) -> dict[str, Any]:
        """One line of the JSONL file."""
        return {
            "image": self.file.name,
            "pred_score": self.prediction.pred_score,
            "raw_score": self.prediction.raw_score,
            "pred_label": self.prediction.label,
        }


def predict(options: PredictOptions, listener: Listener) -> Generator[PredictedImage, None, None]:
    """Score images one after another, in the order they are listed.

    The JSONL file appears when all images are scored, a pipe gets each line at once; heatmaps
    appear one by one. Close the generator where it is not used up: until then the unfinished JSONL
    file lies beside its place.

    Raises:
        InputError: the artifact or an image is wrong, or an output cannot be written.
        CheckError: a score is not finite; the line names the image.
    """
    files = list_images(options.images)
    heatmaps = _heatmap_paths(options.heatmaps, files) if options.heatmaps else {}
    detector = load(options.artifact, threads=options.threads)
    if heatmaps and detector.manifest.map_size is None:
        raise InputError("the detector gives no anomaly map, so there are no heatmaps")
    loaded = load_images(
        files,
        detector.image_input,
        skip_unreadable=options.skip_unreadable,
        on_skip=lambda _file, reason: listener.warn(f"left out: {reason}"),
    )
    with nullcontext() if options.jsonl is None else written_text(options.jsonl) as jsonl:
        for number, (file, image) in enumerate(loaded, 1):
            try:
                found = PredictedImage(file, detector.predict(image))
            except CheckError as error:
                raise CheckError(f"{file.path}: {error}") from None
            if jsonl is not None:
                jsonl.write(json.dumps(found.to_json()) + "\n")
            if file.path in heatmaps:
                _save_heatmap(heatmaps[file.path], detector, found, image)
            listener.step("predict", number, len(files))
            yield found


def _heatmap_paths(folder: Path, files: Sequence[ImageFile]) -> dict[Path, Path]:
    """Where the heatmap of each image goes, always inside `folder`; by the image's path.

    Raises:
        InputError: one would replace an image, or the heatmap of another.
    """
    images = {os.path.realpath(file.path) for file in files}
    taken: dict[Path, Path] = {}
    for file in files:
        name = PurePath(file.name)
        parts = [part for part in name.relative_to(name.anchor).parts if part != ".."]
        path = folder.joinpath(*parts).with_name(f"{parts[-1]}.heatmap.png")
        if os.path.realpath(path) in images:
            raise InputError(f"the heatmap {path} would replace an image: name another folder")
        other = taken.setdefault(path, file.path)
        if other != file.path:
            raise InputError(f"{other} and {file.path} would have the same heatmap, {path}")
    return {image: path for path, image in taken.items()}


def _save_heatmap(
    path: Path, detector: LoadedDetector, found: PredictedImage, image: ImageArray
) -> None:
    """Overlay the map; from its minimum to the pixel threshold or beyond, so normal stays cool."""
    anomaly_map, thresholds = found.prediction.anomaly_map, detector.manifest.thresholds
    if anomaly_map is None:
        raise AssertionError("a detector without a map was refused")
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    if thresholds is not None:
        high = max(high, thresholds.pixel)
    heat = _resized(colour(anomaly_map, low, max(high, low + 1e-6)), image.shape[:2])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path.parent}: {error.strerror}") from None
    save_png(overlay(image, heat, _HEAT_ALPHA), path)


def _resized(heat: UInt8Array, size: tuple[int, ...]) -> UInt8Array:
    from PIL import Image

    if heat.shape[:2] == size:
        return heat
    return np.asarray(Image.fromarray(heat).resize((size[1], size[0])))
