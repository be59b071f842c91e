"""Artifacts on defects that are planted, where no images of real ones are given."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from vadexport.calibration.synthetic_defects import with_defect
from vadexport.contract import ImageArray
from vadexport.images import decode
from vadexport.listening import Listener
from vadexport.thresholds import Thresholds
from vadexport.verification.parity import compare_images
from vadexport.verification.records import ImageRecord
from vadexport.verifying.arena import REFERENCE, Arena

#: Images that get a defect, at most.
_MOST_IMAGES: Final = 32


def needs_defects(records: Sequence[ImageRecord]) -> bool:
    """Whether images of either label are missing."""
    return len({record.anomalous for record in records} - {None}) < 2


def planted_records(
    arena: Arena,
    records: Mapping[str, Sequence[ImageRecord]],
    thresholds: Thresholds | None,
    listener: Listener,
) -> dict[str, list[ImageRecord]]:
    """Score the verified images again with a defect in each, or in some of many.

    Args:
        arena: what takes part.
        records: of the images as they are, by artifact.
        thresholds: of the reference.
        listener: told of each.

    Returns:
        Of each artifact: the records of the chosen images as they are, normal, and then those with
        a defect, anomalous. Those that are anomalous as they are get none; nothing is left then.
    """
    whole = next(iter(records.values()))
    clean = [number for number, record in enumerate(whole) if record.anomalous is not True]
    step = -(-len(clean) // _MOST_IMAGES) or 1
    chosen = clean[::step]
    if not chosen:
        return {}
    contest = arena.contest
    planted = compare_images(
        contest.inference(REFERENCE),
        {name: contest.inference(name) for name in records},
        _planted(arena, [whole[number].name for number in chosen], listener),
        arena.image_input,
        thresholds,
    )
    return {
        name: [
            *(replace(found[number], anomalous=False) for number in chosen),
            *planted[name],
        ]
        for name, found in records.items()
    }


def with_defects(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Of those that `planted_records` gives, those with a defect, in the order of their defects."""
    return [record for record in records if record.anomalous]


def planted_image(arena: Arena, name: str, number: int) -> ImageArray:
    """Pixels `[H, W, C]` of a verified image with a defect.

    Args:
        arena: what takes part.
        name: of the image.
        number: of the defect: its place in `with_defects`.
    """
    return with_defect(decode(arena.files[name].path, arena.image_input.channels), number)


def _planted(
    arena: Arena, names: Sequence[str], listener: Listener
) -> Iterator[tuple[str, bool | None, ImageArray]]:
    for number, name in enumerate(names):
        yield name, True, planted_image(arena, name, number)
        listener.step("synthetic defects", number + 1, len(names))
