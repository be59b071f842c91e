"""The images that a build calibrates and checks with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vadexport.building.options import BuildOptions
from vadexport.calibration import CalibrationSet, choose_calibration_set
from vadexport.calibration.contents import contents
from vadexport.calibration.diversity import description
from vadexport.calibration.sets import FEW_IMAGES
from vadexport.contract import ImageArray, ImageInput
from vadexport.errors import InputError
from vadexport.images import (
    ImageFile,
    UnreadableImageError,
    common_input,
    decode,
    load_images,
    training_images,
)
from vadexport.images.generated import generated_images
from vadexport.listening import Listener
from vadexport.targets import AUTO

_GENERATED_CHECKS = 8
#: Names in a warning.
_NAMED = 5


@dataclass(frozen=True)
class BuildImages:
    """Images of a build.

    Attributes:
        calibration: the calibration set; None without IMAGES.
        checks: that check every rung, `[n, H, W, C]`.
        words: what the check images are.
        real: whether they are images of the user, normal ones.
    """

    calibration: CalibrationSet | None
    checks: ImageArray
    words: str
    real: bool


def build_images(options: BuildOptions, image_input: ImageInput, listener: Listener) -> BuildImages:
    """Choose calibration and check images; without any IMAGES, checks are generated.

    Raises:
        InputError: INT8 is asked for without images, or an image is wrong.
    """
    int8 = [str(each) for each in options.targets if each.precision == "int8" or each.mixed]
    approximates = options.approximate is not False
    calibrates = approximates or any(target.precision != "fp32" for target in options.targets)
    if options.calibration is None:
        if approximates:
            raise InputError(
                "approximations are chosen by what they do to normal images: --calibration IMAGES"
            )
        if int8:
            raise InputError(
                f"{int8[0]} needs normal images to set its ranges: --calibration IMAGES"
            )
        checks = generated_images(image_input, _GENERATED_CHECKS, seed=0)
        words = f"{len(checks)} generated images (no --calibration)"
        return BuildImages(None, checks, words, real=False)
    files = _readable(training_images(options.calibration), image_input, options, listener)
    _check_sizes(files, image_input)
    chosen = choose_calibration_set(
        files,
        calibrates=calibrates,
        describe=lambda candidates: _descriptions(candidates, image_input, listener),
    )
    if sets_ranges(options):
        _check_contents(chosen, image_input, listener)
    loaded = load_images(chosen.check, image_input)
    checks = np.stack([image for _, image in loaded])
    words = f"{len(checks)} normal images"
    if calibrates:
        words += " apart from calibration" if chosen.disjoint else ", which also calibrated"
    return BuildImages(chosen, checks, words, real=True)


def _descriptions(
    files: Sequence[ImageFile], image_input: ImageInput, listener: Listener
) -> NDArray[np.float32]:
    found = []
    for _, image in load_images(files, image_input):
        found.append(description(image))
        listener.step("choose images", len(found), len(files))
    return np.stack(found)


def sets_ranges(options: BuildOptions) -> bool:
    """Whether calibration images set, or may set, INT8 ranges."""
    return any(target.precision in ("int8", AUTO) for target in options.targets)


def _check_contents(chosen: CalibrationSet, image_input: ImageInput, listener: Listener) -> None:
    """Refuse images that can set no range; warn of those that set poor ones."""
    found = contents(chosen.calibrate, image_input)
    if len(found.constant) == found.images:
        raise InputError(
            f"all {found.images} calibration images are of one gray level or colour each, so that "
            f"INT8 ranges cannot be set: give normal images of the product"
        )
    if found.constant:
        listener.warn(
            f"{len(found.constant)} of {found.images} calibration images are of one gray level or "
            f"colour each ({', '.join(found.constant[:_NAMED])}"
            f"{', …' if len(found.constant) > _NAMED else ''}): leave them out"
        )
    if found.distinct >= FEW_IMAGES:
        return
    if found.distinct == found.images:
        many = f"{found.images} calibration images are few"
    else:
        pictures = "one picture" if found.distinct == 1 else f"{found.distinct} pictures"
        many = f"the {found.images} calibration images are copies of {pictures}"
    listener.warn(f"{many}: INT8 ranges need at least {FEW_IMAGES} images, better 50")


def _check_sizes(files: list[ImageFile], image_input: ImageInput) -> None:
    """Refuse images of another size than the detector's, also those that are not chosen."""
    found = common_input(files)
    if (found.height, found.width) != (image_input.height, image_input.width):
        raise InputError(
            f"the normal images are {found.height}x{found.width}, the detector takes "
            f"{image_input.height}x{image_input.width}"
        )


def _readable(
    files: list[ImageFile], image_input: ImageInput, options: BuildOptions, listener: Listener
) -> list[ImageFile]:
    """Leave out what cannot be read, where that is asked for, before images are chosen."""
    if not options.skip_unreadable:
        return files
    kept = []
    for file in files:
        try:
            decode(file.path, image_input.channels)
        except UnreadableImageError as error:
            listener.warn(f"left out: {error}")
        else:
            kept.append(file)
    return kept
