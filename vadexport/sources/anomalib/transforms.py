"""From torchvision's transforms, as anomalib's PreProcessor holds them, to steps."""

from collections.abc import Iterator
from typing import Any

from vadexport.detectors.steps import CenterCrop, Interpolation, Normalise, Resize, SquarePad, Step
from vadexport.errors import InputError

_INTERPOLATIONS: dict[str, Interpolation] = {
    "nearest": "nearest",
    "nearest-exact": "nearest-exact",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}


def steps_of(transform: Any) -> tuple[Step, ...]:
    """The steps of a deterministic transform; none for None.

    Args:
        transform: a `torchvision.transforms.v2.Transform`.

    Raises:
        InputError: a transform that steps cannot tell, by name.
    """
    return () if transform is None else tuple(_steps(transform))


def _steps(transform: Any) -> Iterator[Step]:
    match type(transform).__name__:
        case "Compose":
            for each in transform.transforms:
                yield from _steps(each)
        case "Resize":
            yield _resize(transform)
        case "CenterCrop" | "ExportableCenterCrop":
            height, width = _pair(transform.size)
            yield CenterCrop((height, width))
        case "SquarePad":
            yield SquarePad()
        case "Normalize":
            mean, std = map(tuple, (transform.mean, transform.std))
            yield Normalise(mean, std)
        case "Identity" | "ToImage":
            pass
        case "ToDtype" if str(transform.dtype) == "torch.float32":
            pass  # images are float32 when they come here
        case name:
            raise InputError(
                f"anomalib's pre-processor holds the transform {name}, which vadexport cannot put "
                "into a graph: it takes Resize, CenterCrop, SquarePad and Normalize"
            )


def _resize(transform: Any) -> Resize:
    name = getattr(transform.interpolation, "value", transform.interpolation)
    if name not in _INTERPOLATIONS:
        raise InputError(f"anomalib's pre-processor resizes by {name}, which no graph can do")
    if transform.max_size is not None or transform.size is None:
        raise InputError("anomalib's pre-processor resizes with max_size, which no graph can do")
    interpolation = _INTERPOLATIONS[name]
    antialias = bool(transform.antialias) and interpolation in ("bilinear", "bicubic")
    size = list(transform.size) if not isinstance(transform.size, int) else [transform.size]
    if len(size) == 1:
        return Resize(int(size[0]), interpolation, antialias)
    return Resize((int(size[0]), int(size[1])), interpolation, antialias)


def _pair(size: Any) -> tuple[int, int]:
    sides = [int(size)] if isinstance(size, int) else [int(side) for side in size]
    return (sides[0], sides[-1])
