"""`vadexport fit`: train a reference detector on normal images."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vadexport.contract import RAW_SCORE, ImageArray, ImageInput
from vadexport.detectors.base import Detector
from vadexport.detectors.checkpoint import save_detector
from vadexport.detectors.families import Family, find_family
from vadexport.detectors.preprocessing import check_size
from vadexport.errors import InputError
from vadexport.images import (
    ImageFile,
    check_depth,
    common_input,
    image_digest,
    load_images,
    test_images,
    training_images,
)
from vadexport.listening import Listener
from vadexport.verification.statistics import best_f1_threshold, interquartile_range

if TYPE_CHECKING:
    from vadexport.detectors.training import Training

_FEW_IMAGES = 20
#: A quarter of 16 bits: what cameras of 14 bits use, and a whole set of bright images does not.
_NARROW_RANGE = 2**14


@dataclass(frozen=True)
class FitOptions:
    """What to train, on what.

    Attributes:
        family: name of the family.
        images: IMAGES; of a category folder `train/good`, else all that are not labelled as
            anomalous.
        destination: of the checkpoint.
        config: choices of the family; default its own.
        size: height and width of the network's input; default the images' own.
        quantile: fraction of the normal images that stays below the threshold.
        labelled: IMAGES with labels; their best F1 score sets the image threshold instead.
        skip_unreadable: leave out images that cannot be read.
        max_minutes: training by gradient descent stops after this long.
    """

    family: str
    images: str
    destination: Path
    config: Any = None
    size: tuple[int, int] | None = None
    quantile: float = 0.95
    labelled: str | None = None
    skip_unreadable: bool = False
    max_minutes: float | None = None


def fit(options: FitOptions, listener: Listener) -> Detector:
    """Fit a detector and write its checkpoint.

    Whatever can be wrong with the options, the files' headers and the destination is said before
    the work begins, which may take an hour.

    Raises:
        InputError: an option or an image is wrong; nothing is written.
    """
    family = find_family(options.family)
    if not 0 < options.quantile <= 1:
        raise InputError(f"the threshold's quantile is in (0, 1], not {options.quantile:g}")
    if options.size is not None:
        check_size(options.size)
    _check_destination(options.destination)
    training = _training(family, options, listener)
    files = training_images(options.images)
    labelled = [] if options.labelled is None else _labelled_images(options.labelled)
    header = common_input(files, skip_unreadable=options.skip_unreadable)
    check_size(options.size or (header.height, header.width))
    image_input = ImageInput(header.height, header.width, header.channels, dtype=header.dtype)
    if labelled:
        _check_labelled_size(labelled, image_input, options)
    loaded = list(_load(files, image_input, options, listener))
    images = [image for _, image in loaded]
    digests = {image_digest(file.path) for file, _ in loaded}
    if len(images) < _FEW_IMAGES:
        listener.warn(f"{len(images)} normal images are few: thresholds will be rough")
    _warn_of_unused_range(images, listener)
    detector: Detector = family.load("fit")(
        images,
        options.config or family.load(family.config)(),
        image_input,
        size=options.size,
        quantile=options.quantile,
        progress=listener.step,
        **({} if training is None else {"training": training}),
    )
    detector.fitted_on = tuple(sorted(digests))
    if all(np.array_equal(image, images[0]) for image in images):
        # What their scores differ by comes from the fit's own folds, and is no spread.
        detector.normal_scores = detector.normal_scores[:1].clone()
    _warn_of_no_spread(detector, listener)
    if labelled:
        _set_threshold_from(labelled, detector, options, listener)
    save_detector(detector, options.destination)
    if training is not None:
        training.clear()
    return detector


def _warn_of_no_spread(detector: Detector, listener: Listener) -> None:
    """Say at once what `build` would refuse, after a training that may take an hour."""
    scores = detector.normal_scores.numpy().astype(np.float64)
    if len(scores) > 1 and interquartile_range(scores) > 0:
        return
    listener.warn(
        "the normal images have no spread of scores, so drift has no unit: `vadexport build` will "
        "need normal images that differ (--calibration)"
    )


def _check_destination(path: Path) -> None:
    """Raises InputError where a checkpoint cannot be written; leaves nothing there."""
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent} does not exist: make the folder first")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the file to write")
    try:
        # Tried, because permissions do not tell of a file system that is read-only.
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _labelled_images(spec: str) -> list[ImageFile]:
    """The images whose best F1 score sets the threshold, of both labels."""
    files = [file for file in test_images(spec) if file.label is not None]
    if {file.label for file in files} != {True, False}:
        raise InputError(
            f"{spec} must hold labelled images, normal and anomalous: a category folder, or "
            "folders of which one is named good"
        )
    return files


def _warn_of_unused_range(images: Sequence[ImageArray], listener: Listener) -> None:
    """Tell of 16-bit images that hardly use them, such as 12 bits that are not shifted up."""
    if images[0].dtype == np.uint8:
        return
    lowest = min(int(image.min()) for image in images)
    highest = max(int(image.max()) for image in images)
    if 0 < highest - lowest < _NARROW_RANGE:  # 0 is one colour in any depth
        listener.warn(
            f"all values lie between {lowest} and {highest} of 65535, so to the network the images "
            "are nearly flat: spread them over the range, all images in the same way"
        )


def _check_labelled_size(
    files: Sequence[ImageFile], image_input: ImageInput, options: FitOptions
) -> None:
    header = common_input(files, skip_unreadable=options.skip_unreadable)
    check_depth(f"each of {options.labelled}", header.dtype, image_input)
    if (header.height, header.width) != (image_input.height, image_input.width):
        raise InputError(
            f"the labelled images of {options.labelled} are {header.height}×{header.width} pixels "
            f"(height×width), those to fit on {image_input.height}×{image_input.width}"
        )


def _training(family: Family, options: FitOptions, listener: Listener) -> "Training | None":
    """How a family that trains is run; None for the others."""
    if not family.trains:
        if options.max_minutes is not None:
            raise InputError(f"{family.name} does not train: it takes no --max-minutes")
        return None
    from vadexport.detectors.training import Training

    state = _training_state(options.destination)
    return Training(options.max_minutes, state, listener.warn, listener.note)


def _training_state(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.training")


def training_kept_since(destination: Path, start: float) -> bool:
    """Whether a fit that was stopped has kept its training since `start`, as `time.time` gives it.

    The same fit, begun again, goes on from there.
    """
    from vadexport.detectors.training_state import find_states

    try:
        return any(
            each.stat().st_mtime >= start for each in find_states(_training_state(destination))
        )
    except OSError:
        return False


def _set_threshold_from(
    files: Sequence[ImageFile], detector: Detector, options: FitOptions, listener: Listener
) -> None:
    """Replace the image threshold by the one of the best F1 score on labelled images."""
    import torch

    scores, truth = [], []
    with torch.inference_mode():
        for file, image in _load(files, detector.image_input, options, listener):
            outputs = detector(torch.from_numpy(image)[None])
            scores.append(float(outputs[RAW_SCORE]))
            truth.append(bool(file.label))
            listener.step("labelled images", len(scores), len(files))
    array = np.array(scores)
    old = detector.thresholds
    detector.thresholds = replace(
        old,
        image=float(np.float32(best_f1_threshold(array, np.array(truth)))),
        minimum=min(old.minimum, float(array.min())),
        maximum=max(old.maximum, float(array.max())),
        rule=f"largest F1 score on {len(array)} labelled images",
    )


def _load(
    files: Sequence[ImageFile], image_input: ImageInput, options: FitOptions, listener: Listener
) -> Iterator[tuple[ImageFile, ImageArray]]:
    return load_images(
        files,
        image_input,
        skip_unreadable=options.skip_unreadable,
        on_skip=lambda _file, reason: listener.warn(f"left out: {reason}"),
    )
