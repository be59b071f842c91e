"""Where normal ends: the decision and the normalised score as functions of the raw score."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vadexport import contract
from vadexport.contract import Outputs
from vadexport.errors import InputError

#: Of `pred_score`, a few units in the last place of float32 at 1.
_ROUNDING: Final = 1e-6
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
        label_above: `pred_score` above which an image is anomalous, for detectors that decide by
            it; None where the raw score decides.
        normalises: whether `pred_score` is normalised; else it is the raw score.
    """

    image: float
    pixel: float
    minimum: float
    maximum: float
    rule: str
    label_above: float | None = None
    normalises: bool = True

    @property
    def spread(self) -> float:
        """What a raw score's distance from the threshold is divided by."""
        return self.maximum - self.minimum if self.maximum > self.minimum else 1.0

    @property
    def decides_above(self) -> float:
        """Raw score above which an image is anomalous, whatever it is decided by."""
        if self.label_above is None:
            return self.image
        return (
            self.image + (self.label_above - 0.5) * self.spread
            if self.normalises
            else self.label_above
        )

    def normalised(self, raw_score: NDArray[Any]) -> NDArray[np.float64]:
        """`pred_score` by anomalib's min-max rule: in [0, 1], the threshold at 0.5."""
        if not self.normalises:
            return np.asarray(raw_score, np.float64)
        if self.label_above is not None and self.minimum == self.maximum:
            # anomalib's rule where all images of the validation had the same score.
            return 0.5 + 0.5 * np.sign(np.asarray(raw_score, np.float64) - self.image)
        centred = (np.asarray(raw_score, np.float64) - self.image) / self.spread
        return np.clip(centred + 0.5, 0.0, 1.0)

    def contradicted_by(self, outputs: Outputs) -> bool:
        """Whether one image's `pred_score`, `pred_label` or `pred_mask` says something else.

        They must follow from raw score and map, as far as the graph has them. Comparisons are
        exact; the normalised score may differ by float32's rounding.
        """
        raw, score = outputs[contract.RAW_SCORE], outputs[contract.PRED_SCORE]
        rounding = _ROUNDING * max(1.0, abs(float(raw)) / (self.spread if self.normalises else 1))
        if not abs(float(score) - float(self.normalised(raw))) <= rounding:
            return True
        if contract.PRED_LABEL in outputs:
            by, above = (raw, self.image) if self.label_above is None else (score, self.label_above)
            if bool(outputs[contract.PRED_LABEL]) != bool(by > np.float32(above)):
                return True
        if contract.PRED_MASK in outputs:
            mask = outputs[contract.ANOMALY_MAP] > np.float32(self.pixel)
            return not np.array_equal(outputs[contract.PRED_MASK], mask)
        return False

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
            label_above, normalises = value.get("label_above"), value.get("normalises", True)
            if type(label_above) not in (int, float, type(None)) or type(normalises) is not bool:
                raise TypeError("how they decide is no number, or how they normalise no truth")
            found = cls(
                **{name: float(number) for name, number in numbers.items()},
                rule=rule,
                label_above=label_above,
                normalises=normalises,
            )
            if not all(map(_is_float32, (*numbers.values(), found.spread, label_above or 0))):
                raise ValueError("one is not finite as float32, which graphs compute in")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the thresholds are damaged: {error}") from None
        return found


def _is_float32(number: float) -> bool:
    return abs(number) <= _LARGEST  # false for NaN
