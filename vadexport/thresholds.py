"""Where normal ends: the decision and the normalised score as functions of the raw score."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vadexport.errors import InputError

_LARGEST: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Thresholds:
    """Where normal ends, and the range that `pred_score` is normalised by.

    Attributes:
        image: raw score above which an image is anomalous.
        pixel: map value above which a pixel is anomalous.
        minimum: smallest raw score of the normal images.
        maximum: largest raw score of the normal images (or of all, where labels were given).
        rule: how `image` was set, for reports.
    """

    image: float
    pixel: float
    minimum: float
    maximum: float
    rule: str

    @property
    def spread(self) -> float:
        """What a raw score's distance from the threshold is divided by."""
        return self.maximum - self.minimum if self.maximum > self.minimum else 1.0

    def normalised(self, raw_score: NDArray[Any]) -> NDArray[np.float64]:
        """`pred_score` by anomalib's min-max rule: in [0, 1], the threshold at 0.5."""
        centred = (np.asarray(raw_score, np.float64) - self.image) / self.spread
        return np.clip(centred + 0.5, 0.0, 1.0)

    def to_json(self) -> dict[str, Any]:
        """The form that checkpoints and manifests hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` wrote; raises InputError where it is something else."""
        try:
            numbers = {name: value[name] for name in ("image", "pixel", "minimum", "maximum")}
            rule = value["rule"]
            if any(type(number) not in (int, float) for number in numbers.values()):
                raise TypeError("one is no number")
            if type(rule) is not str:
                raise TypeError("their rule is no text")
            found = cls(**{name: float(number) for name, number in numbers.items()}, rule=rule)
            if not all(map(_is_float32, (*numbers.values(), found.spread))):
                raise ValueError("one is not finite as float32, which graphs compute in")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the thresholds are damaged: {error}") from None
        return found


def _is_float32(number: float) -> bool:
    return abs(number) <= _LARGEST  # false for NaN
