"""Which of a model's outputs are its score and its map, whatever structure it returns them in."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from vadexport.detectors.exportable import Scores
from vadexport.errors import InputError

#: What models call the score of an image, and its map; a name decides where shapes leave a choice.
SCORE_NAMES: Final = ("pred_score", "pred_scores", "anomaly_score", "anomaly_scores", "score")
MAP_NAMES: Final = ("anomaly_map", "anomaly_maps", "map", "heatmap", "score_map")

_FORM: Final = "write --outputs score=NAME,map=NAME, one of them or both, as `inspect` lists them"

#: An output that is a tensor, and its name.
Leaf = tuple[str, Tensor]

#: Of containers in containers; one that holds itself has no end.
_DEEPEST: Final = 16


@dataclass(frozen=True)
class OutputMap:
    """Names of the outputs that are score and map, as `leaves_of` gives them.

    Attributes:
        score: None where the score is the map's maximum, as anomalib takes it.
        map: None where there is none.
    """

    score: str | None
    map: str | None

    def __str__(self) -> str:
        parts = (f"{part}={name}" for part, name in self._named())
        return ",".join(parts)

    @classmethod
    def parse(cls, text: str) -> "OutputMap":
        """Read `score=NAME,map=NAME`; what is not named is not used.

        Raises:
            InputError: it is written otherwise.
        """
        found: dict[str, str] = {}
        for part in text.split(","):
            key, equals, name = (each.strip() for each in part.partition("="))
            if key not in ("score", "map") or not equals or not name or key in found:
                raise InputError(f"--outputs {text!r} names no outputs: {_FORM}")
            found[key] = name
        return cls(found.get("score"), found.get("map"))

    def check(self, leaves: Sequence[Leaf], images: int) -> None:
        """Hold it against what a model gave for so many images.

        Raises:
            InputError: a name that is none, or one of another kind or shape.
        """
        values = dict(leaves)
        for part, name in self._named():
            if name not in values:
                raise InputError(f"no output is {name!r}; there are {listed(leaves)}: {_FORM}")
            if _kind(values[name], images) != part:
                wanted = "[N] or [N, 1]" if part == "score" else "[N, h, w] or [N, 1, h, w]"
                raise InputError(
                    f"output {name!r} is no {part}: for {images} images it is "
                    f"{_shape(values[name])}, wanted is a float {wanted}: {_FORM}"
                )

    def scores(self, found: Any, images: int) -> Scores:
        """Raw scores float32 [N] and map float32 [N, 1, h, w] of what a model returned.

        Raises:
            InputError: an output is missing this time.
        """
        values = dict(leaves_of(found))
        missing = [name for _, name in self._named() if name not in values]
        if missing:
            raise InputError(f"the model gives output {missing[0]!r} for some images, not for all")
        anomaly_map = None if self.map is None else values[self.map].to(torch.float32)
        if anomaly_map is not None and anomaly_map.ndim == 3:
            anomaly_map = anomaly_map.unsqueeze(1)
        if self.score is not None:
            return Scores(values[self.score].to(torch.float32).reshape(images), anomaly_map)
        if anomaly_map is None:
            raise AssertionError("neither score nor map")
        return Scores(anomaly_map.amax(dim=(1, 2, 3)), anomaly_map)

    def _named(self) -> Iterator[tuple[str, str]]:
        for part, name in (("score", self.score), ("map", self.map)):
            if name is not None:
                yield part, name


def leaves_of(found: Any) -> list[Leaf]:
    """The tensors in what a model returned, by names such as `0`, `anomaly_map`, `1.anomaly_map`.

    Tuples, lists, dicts, named tuples and dataclasses may hold each other; what is no tensor is
    left out. A tensor alone is `0`.
    """
    if isinstance(found, Tensor):
        return [("0", _dense(found))]
    return list(_leaves(found, ""))


def _dense(value: Tensor) -> Tensor:
    return value if value.layout == torch.strided else value.to_dense()


def _leaves(found: Any, prefix: str) -> Iterator[Leaf]:
    if prefix.count(".") > _DEEPEST:
        raise InputError("the model's outputs are nested without end: return a tuple or a dict")
    for name, value in _parts(found):
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", _dense(value)
        else:
            yield from _leaves(value, f"{prefix}{name}.")


def _parts(found: Any) -> list[tuple[str, Any]]:
    if isinstance(found, Mapping):
        return [(str(key), value) for key, value in found.items()]
    if isinstance(found, tuple) and hasattr(found, "_fields"):
        return list(zip(found._fields, found, strict=True))
    if isinstance(found, tuple | list):
        return [(str(number), value) for number, value in enumerate(found)]
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return [(each.name, getattr(found, each.name)) for each in dataclasses.fields(found)]
    return []


def listed(leaves: Sequence[Leaf], images: int | None = None) -> str:
    """The outputs and their shapes, for readers; a first axis of `images` is called N."""
    return ", ".join(f"{name} {_shape(value, images)}" for name, value in leaves) or "none"


def _shape(value: Tensor, images: int | None = None) -> str:
    dtype = str(value.dtype).removeprefix("torch.")
    sizes = [str(size) for size in value.shape]
    if sizes and value.shape[0] == images:
        sizes[0] = "N"
    return f"{dtype} [{', '.join(sizes)}]"


def find_outputs(leaves: Sequence[Leaf], images: int) -> OutputMap:
    """Tell score and map by shape, and by name where several outputs have the shape.

    Args:
        leaves: of a call.
        images: of that call, N: float `[N]` or `[N, 1]` is a score, `[N, h, w]` or `[N, 1, h, w]`
            with h and w above 1 a map.

    Raises:
        InputError: there is neither, or several that may be.
    """
    found = OutputMap(
        _only("score", leaves, images, SCORE_NAMES), _only("map", leaves, images, MAP_NAMES)
    )
    if found.score is None and found.map is None:
        unbatched = any(not value.ndim or value.shape[0] != images for _, value in leaves)
        why = (
            "nothing of it has one entry an image" if unbatched else "no score and no map is in it"
        )
        raise InputError(
            f"for {images} images the model gives {listed(leaves)}: {why}; wanted are a float "
            "score [N] or [N, 1], a map [N, h, w] or [N, 1, h, w], or both"
        )
    return found


def _only(part: str, leaves: Sequence[Leaf], images: int, names: Sequence[str]) -> str | None:
    candidates = [name for name, value in leaves if _kind(value, images) == part]
    named = [name for name in candidates if name.rsplit(".", 1)[-1].lower() in names]
    chosen = named or candidates
    if len(chosen) > 1:
        raise InputError(
            f"{' and '.join(chosen)} may each be the {part}; the model gives {listed(leaves)}: "
            f"{_FORM}"
        )
    return chosen[0] if chosen else None


def _kind(value: Tensor, images: int) -> str | None:
    """`score`, `map` or neither, of a call with so many images."""
    shape = tuple(value.shape)
    if not value.is_floating_point() or not 1 <= len(shape) <= 4 or shape[0] != images:
        return None
    if value.numel() == images:
        return "score"
    is_map = len(shape) >= 3 and min(shape[-2:]) > 1 and (len(shape) == 3 or shape[1] == 1)
    return "map" if is_map else None
