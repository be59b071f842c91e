"""Run all images through the reference and each artifact, in every way that a verdict needs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vadexport.contract import ANOMALY_MAP, ImageArray, Outputs
from vadexport.errors import InputError
from vadexport.images import ImageFile, load_images
from vadexport.images.listing import TEST_FOLDER, is_category
from vadexport.images.masks import find_masks, load_mask
from vadexport.listening import Listener
from vadexport.sources import Source
from vadexport.thresholds import Thresholds
from vadexport.verification.losses import Compared
from vadexport.verification.overlap import MapSpool
from vadexport.verification.parity import compare_images
from vadexport.verification.records import ImageRecord
from vadexport.verifying.arena import REFERENCE, Arena
from vadexport.verifying.options import VerifyOptions
from vadexport.verifying.planting import needs_defects, planted_records

#: Images, spread over all, that are run again where nobody asks for more.
_REPEATED: Final = 8
#: Images that a warning names.
_NAMED: Final = 5


@dataclass(frozen=True)
class Findings:
    """What was found of one artifact.

    Attributes:
        first: of every image.
        again: of the artifact against itself.
        planted: of images with and without planted defects; None where labels are enough.
        aupro: of its maps and the reference's; None without masks.
        warnings: what was left out.
    """

    first: Sequence[ImageRecord]
    again: Sequence[ImageRecord]
    planted: Sequence[ImageRecord] | None
    aupro: Compared | None
    warnings: tuple[str, ...] = ()


def findings(
    arena: Arena,
    source: Source,
    files: Sequence[ImageFile],
    options: VerifyOptions,
    listener: Listener,
) -> dict[str, Findings]:
    """Compare every artifact with the reference, image by image; those that fail are left out.

    Raises:
        InputError: an image or a mask is wrong, or there is no room for their maps.
    """
    masks, warnings = _masks(Path(options.images), files) if source.detector.map_size else ({}, [])
    thresholds = source.detector.thresholds

    def compared() -> tuple[dict[str, list[ImageRecord]], dict[str, Compared]]:
        return _compared(arena, files, masks, thresholds, options, listener)

    first, aupro = arena.surviving(compared)
    seen = {record.name for records in first.values() for record in records}
    readable = [file for file in files if file.name in seen]
    left_out = [file.name for file in files if file.name not in seen]
    if readable and left_out:
        warnings.append(_left_out(left_out, len(files)))
    again = arena.surviving(lambda: _repeated(arena, readable, thresholds, options, listener))

    def planted() -> dict[str, list[ImageRecord]]:
        records = {name: first[name] for name in arena.artifacts}
        if not any(map(needs_defects, records.values())):
            return {}
        return planted_records(arena, records, thresholds, listener)

    defects = arena.surviving(planted)
    return {
        name: Findings(
            first[name], again[name], defects.get(name), aupro.get(name), tuple(warnings)
        )
        for name in arena.artifacts
    }


def _left_out(names: Sequence[str], of: int) -> str:
    """What the report says of images that could not be read; the listener heard why of each."""
    more = ", …" if len(names) > _NAMED else ""
    named = f"{', '.join(names[:_NAMED])}{more}"
    return f"{len(names)} of {of} images could not be read and are left out: {named}"


def _compared(
    arena: Arena,
    files: Sequence[ImageFile],
    masks: Mapping[Path, Path],
    thresholds: Thresholds | None,
    options: VerifyOptions,
    listener: Listener,
) -> tuple[dict[str, list[ImageRecord]], dict[str, Compared]]:
    """Records of all images, and AUPRO where there are masks, of each artifact."""
    if not arena.artifacts:
        return {}, {}
    with ExitStack() as stack:
        segmentation = None
        if masks:
            spool = stack.enter_context(_spool(REFERENCE, *arena.artifacts))
            segmentation = _Segmentation(spool, {file.name: file for file in files}, masks, arena)
        first = compare_images(
            arena.contest.inference(REFERENCE),
            {name: arena.contest.inference(name) for name in arena.artifacts},
            _named(files, arena, options, listener, "parity"),
            arena.image_input,
            thresholds,
            segmentation,
        )
        aupro = segmentation.spool.compared(REFERENCE) if segmentation else {}
    return first, aupro


def _masks(root: Path, files: Sequence[ImageFile]) -> tuple[dict[Path, Path], list[str]]:
    """Masks of a category, or those that lie beside its folder `test`; and warnings."""
    if not root.is_dir():
        return {}, []
    if is_category(root):
        return find_masks(root, files), []
    folder = root.resolve()
    if folder.name != TEST_FOLDER:
        return {}, []
    try:
        return find_masks(folder.parent, files, root), []
    except InputError as error:  # nobody said that they belong together
        return {}, [f"AUPRO is left out: {error}"]


def _spool(*names: str) -> MapSpool:
    try:
        return MapSpool(*names)
    except OSError as error:
        raise InputError(f"cannot keep anomaly maps: {error.strerror}") from None


@dataclass(frozen=True)
class _Segmentation:
    """Keeps the maps of images whose defects are marked, or that have none."""

    spool: MapSpool
    files: Mapping[str, ImageFile]
    masks: Mapping[Path, Path]
    arena: Arena

    def __call__(self, name: str, reference: Outputs, found: Mapping[str, Outputs]) -> None:
        """Keep the maps of one image."""
        file = self.files[name]
        mask = self._mask(file)
        image_input = self.arena.image_input
        maps = {REFERENCE: reference, **found}
        try:
            self.spool.add(
                {name: outputs[ANOMALY_MAP][0] for name, outputs in maps.items()},
                mask,
                (image_input.height, image_input.width),
            )
        except OSError as error:
            raise InputError(f"cannot keep anomaly maps: {error.strerror}") from None

    def _mask(self, file: ImageFile) -> NDArray[np.bool_] | None:
        path = self.masks.get(file.path)
        if path is None:
            return None
        mask = load_mask(path)
        if mask.any() and not file.label:
            raise InputError(f"{path} marks a defect, but its image {file.path} counts as normal")
        return mask if mask.any() else None


def _repeated(
    arena: Arena,
    files: Sequence[ImageFile],
    thresholds: Thresholds | None,
    options: VerifyOptions,
    listener: Listener,
) -> dict[str, list[ImageRecord]]:
    """Records of each artifact against itself, run again on the same images."""
    chosen = files
    if not options.repeat and len(files) > _REPEATED:
        places = np.linspace(0, len(files) - 1, _REPEATED).round().astype(int)
        chosen = [files[place] for place in places]
    found: dict[str, list[ImageRecord]] = {name: [] for name in arena.artifacts}
    for _ in range(options.repeat or 1):
        for name in arena.artifacts:
            infer = arena.contest.inference(name)
            images = _named(chosen, arena, options, listener, "repeat")
            again = compare_images(infer, {name: infer}, images, arena.image_input, thresholds)
            found[name] += again[name]
    return found


def _named(
    files: Sequence[ImageFile], arena: Arena, options: VerifyOptions, listener: Listener, step: str
) -> Iterator[tuple[str, bool | None, ImageArray]]:
    """Decode the images one by one, telling how far it is."""
    loaded = load_images(
        files,
        arena.image_input,
        skip_unreadable=options.skip_unreadable,
        on_skip=lambda _file, reason: listener.warn(f"left out: {reason}"),
    )
    for number, (file, image) in enumerate(loaded, 1):
        yield file.name, file.label, image
        listener.step(step, number, len(files))
