"""`vadexport evaluate`: how well a detector tells anomalous from normal, on labelled images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vadexport.artifact import find_artifacts, open_artifact
from vadexport.backends.base import Execution, Runner, RunnerOpener, available_threads
from vadexport.backends.child import Child
from vadexport.backends.registry import opener
from vadexport.contract import ANOMALY_MAP, RAW_SCORE, Call, ImageArray, ImageInput, Outputs
from vadexport.errors import CheckError, InputError
from vadexport.images import ImageFile, check_depth, common_input, load_images
from vadexport.images.listing import is_category
from vadexport.images.listing import test_images as images_to_test
from vadexport.images.masks import find_masks, load_mask
from vadexport.listening import Listener
from vadexport.sources import SourceSpec, open_source, reference_opener
from vadexport.terminal import printable
from vadexport.verification.evaluation import CategoryEvaluation, Evaluation, check_labels
from vadexport.verification.segmentation import PixelScores, resized_map

_Infer = Callable[[Call], Outputs]


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate, on what.

    Attributes:
        detector: a source, which runs as trained, or the folder of an artifact.
        dataset: a category folder laid out like those of MVTec AD, a folder of such folders, or
            labelled IMAGES, which have no masks.
        threads: default all processors.
        skip_unreadable: leave out images that cannot be read.
    """

    detector: SourceSpec | Path
    dataset: str
    threads: int | None = None
    skip_unreadable: bool = False


@dataclass(frozen=True)
class _Subject:
    """The detector to evaluate; the fields are those of `Evaluation`."""

    detector: str
    kind: str
    target: str | None
    sha256: str | None
    image_input: ImageInput
    has_map: bool
    opener: RunnerOpener


@dataclass(frozen=True)
class _Category:
    """Test images, all labelled, and the mask file of each that has one."""

    name: str
    files: Sequence[ImageFile]
    masks: Mapping[Path, Path] = field(default_factory=dict)


def evaluate(options: EvaluateOptions, listener: Listener) -> Evaluation:
    """Score test images one call of the graph at a time, and compare with labels and masks.

    What can be wrong with the data set, short of damaged pixels, is found before the first image
    is scored.

    Raises:
        InputError: the detector, the data set, an image or a mask is wrong; or a category's test
            images are all normal, or all anomalous.
        CheckError: a score or a map is not finite; the line names the image.
        MissingPackageError: a backend is not installed here.
        BackendError: a backend crashed or timed out.
    """
    categories = _categories(options.dataset)
    subject = _subject(options)
    for category in categories:
        _check_size(category, subject, options)
    listener.step("load", 0, 1)
    with Child(subject.detector) as child:
        child.open(subject.opener)
        listener.step("load", 1, 1)
        infer = partial(child.apply, _infer)
        return Evaluation(
            detector=subject.detector,
            kind=subject.kind,
            target=subject.target,
            sha256=subject.sha256,
            execution=child.apply(_execution),
            dataset=options.dataset,
            categories=tuple(
                _evaluate(
                    *(category, infer, subject.image_input, options, listener),
                    has_map=subject.has_map,
                )
                for category in categories
            ),
        )


# --- detector and data set -------------------------------------------------------------------


def _subject(options: EvaluateOptions) -> _Subject:
    threads = options.threads or available_threads()
    spec = SourceSpec.of(options.detector)
    path = Path(spec.location)
    if not path.is_dir():
        source = open_source(spec)
        image_input = source.detector.image_input
        opened = reference_opener(spec, threads)
        has_map = source.detector.map_size is not None
        return _Subject(source.name, "source", None, source.sha256, image_input, has_map, opened)
    found = find_artifacts(path)
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise InputError(f"{path} holds several artifacts, name one of them: {names}")
    manifest = open_artifact(found[0]).manifest
    return _Subject(
        found[0].absolute().name,
        "artifact",
        str(manifest.target),
        manifest.source.get("sha256"),
        manifest.image_input,
        manifest.map_size is not None,
        opener(manifest.target, found[0], threads),
    )


def _categories(dataset: str) -> list[_Category]:
    """The one category that `dataset` is, or those that lie in it."""
    root = Path(dataset)
    several = dataset and root.is_dir() and not is_category(root)  # the empty path is no folder
    folders = _folders_of_categories(root) if several else []
    return [_category(str(folder)) for folder in folders] or [_category(dataset)]


def _folders_of_categories(root: Path) -> list[Path]:
    try:
        children = sorted(child for child in root.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot read {root}: {error.strerror}") from None
    return [child for child in children if child.is_dir() and is_category(child)]


def _category(spec: str) -> _Category:
    files = images_to_test(spec)
    for file in files:
        if file.label is None:
            raise InputError(
                f"{file.path} has no label: put normal images in a folder named good and "
                "anomalous ones in others beside it, or give a text list with labels"
            )
    check_labels(spec, [bool(file.label) for file in files])
    root = Path(spec)
    masks = find_masks(root, files) if root.is_dir() and is_category(root) else {}
    name = (root.absolute().name if root.is_dir() else "") or spec
    return _Category(printable(name), files, masks)


def _check_size(category: _Category, subject: _Subject, options: EvaluateOptions) -> None:
    """Read the headers: an image of another size should not show after an hour."""
    image_input = subject.image_input
    header = common_input(category.files, skip_unreadable=options.skip_unreadable)
    check_depth(category.files[0].path, header.dtype, image_input)
    size, wanted = (header.height, header.width), (image_input.height, image_input.width)
    if size != wanted:
        hint = (
            "" if subject.kind == "artifact" else f": --image-size {size[0]}x{size[1]} resizes it"
        )
        raise InputError(
            f"{category.files[0].path} is {size[0]}×{size[1]} pixels (height×width), the detector "
            f"takes {wanted[0]}×{wanted[1]}{hint}"
        )


# --- scoring ---------------------------------------------------------------------------------


def _evaluate(
    category: _Category,
    infer: _Infer,
    image_input: ImageInput,
    options: EvaluateOptions,
    listener: Listener,
    *,
    has_map: bool = True,
) -> CategoryEvaluation:
    pixels = PixelScores() if category.masks and has_map else None
    size = (image_input.height, image_input.width)
    scores, anomalous = [], []
    loaded = load_images(
        category.files,
        image_input,
        skip_unreadable=options.skip_unreadable,
        on_skip=lambda _file, reason: listener.warn(f"left out: {reason}"),
    )
    for file, score, anomaly_map in _scored(loaded, infer, image_input):
        if not (np.isfinite(score) and (anomaly_map is None or np.isfinite(anomaly_map).all())):
            raise CheckError(f"{file.path}: the detector gave a score that is not finite")
        scores.append(score)
        anomalous.append(bool(file.label))
        if pixels is not None and anomaly_map is not None:
            # The map is resized, never the mask: that would move the edges of defects.
            pixels.add(resized_map(anomaly_map, size), _mask(file, category.masks, listener))
        listener.step(f"evaluate {category.name}", len(scores), len(category.files))
    return CategoryEvaluation.of(category.name, scores, anomalous, pixels)


def _scored(
    loaded: Iterator[tuple[ImageFile, ImageArray]], infer: _Infer, image_input: ImageInput
) -> Iterator[tuple[ImageFile, float, NDArray[np.float32] | None]]:
    """Each image's raw score and anomaly map `[h, w]`, if any; a call's images at once."""
    while call := list(islice(loaded, image_input.batch or 1)):
        filled, _ = next(image_input.batches(np.stack([image for _, image in call])))
        outputs = infer(filled)
        for number, (file, _) in enumerate(call):
            anomaly_map = outputs[ANOMALY_MAP][number, 0] if ANOMALY_MAP in outputs else None
            yield file, float(outputs[RAW_SCORE][number]), anomaly_map


def _mask(
    file: ImageFile, masks: Mapping[Path, Path], listener: Listener
) -> NDArray[np.bool_] | None:
    """The mask of an image; None of a normal one, which may have a black one for completeness."""
    path = masks.get(file.path)
    if path is None:
        return None
    mask = load_mask(path)
    if not file.label:
        if mask.any():
            raise InputError(f"{path} marks a defect, but its image {file.path} counts as normal")
        return None
    if not mask.any():
        listener.warn(f"{path} is black: none of {file.path} counts as a defect")
    return mask


def _infer(runner: Runner, image: Call) -> Outputs:
    return runner.infer(image)


def _execution(runner: Runner) -> Execution:
    return runner.execution
