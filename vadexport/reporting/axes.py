"""Axes of plots: which values they span, where their ticks are, and what those say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

#: Larger values are left out of plots. Scores are float32, and so are far below.
LARGEST: Final = 1e100
#: Not far from what float32 can tell apart: a narrower axis would show little but rounding.
_FINEST: Final = 1e-5
#: Values beyond this many widths of the middle 90% would squeeze all others together.
_REACH: Final = 10
_LETTER: Final = 6.5

Tick = tuple[float, str]


@dataclass(frozen=True)
class Axis:
    """Maps values to coordinates.

    Attributes:
        low: the value that it begins at.
        high: the value that it ends at.
        start: coordinate of `low`.
        end: coordinate of `high`; less than `start` where the axis points up or left.
        ticks: value and text of each.
        log: whether equal steps are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[Tick, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Coordinate of a value; one outside of the axis is put on its end."""
        low, high, inside = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, inside = math.log(low), math.log(high), math.log(inside)
        share = (inside - low) / (high - low)
        return self.start * (1 - share) + self.end * share  # exact at both ends

    def holds(self, value: float) -> bool:
        """Whether a value lies on the axis; false for NaN."""
        return self.low <= value <= self.high

    @classmethod
    def linear(
        cls,
        values: NDArray[np.float64],
        ends: tuple[float, float],
        *,
        origin: float | None = None,
        lines: Sequence[float] = (),
    ) -> Self:
        """An axis with some room at both ends; a few far-off values may lie beyond it.

        Args:
            values: at least one, of magnitude up to `LARGEST`.
            ends: coordinates of its start and its end.
            origin: a value that it must hold.
            lines: values that it holds, too, if all are near enough not to squeeze the others.
        """
        start, end = ends
        low, high = _middle_ends(values)
        if origin is not None:
            low, high = min(low, origin), max(high, origin)
        # Alone, a point has no width to be squeezed.
        reach = 1.5 * (high - low) if high > low else LARGEST
        if all(low - reach <= line <= high + reach for line in lines):
            low, high = min([low, *lines]), max([high, *lines])
        low, high = _apart(low, high)
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
        return cls(low, high, start, end, _fitting_ticks(low, high, abs(end - start)))

    @classmethod
    def logarithmic(cls, values: NDArray[np.float64], ends: tuple[float, float]) -> Self:
        """An axis for positive values, with some room at both ends."""
        start, end = ends
        low, high = float(values.min()) / 1.1, float(values.max()) * 1.1
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        decades = range(first, last + 1, max(1, (last - first) // 6))
        steps = (1, 2, 5) if high / low < 1e3 else (1,)
        round_values = [step * 10.0**decade for decade in decades for step in steps]
        ticks = tuple((value, f"{value:g}") for value in round_values if low <= value <= high)
        if len(ticks) < 3:
            ticks = _fitting_ticks(low, high, abs(end - start))
        return cls(low, high, start, end, ticks, log=True)


def nice_ticks(low: float, high: float, most: int) -> tuple[Tick, ...]:
    """Ticks at multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: first value that a tick may have.
        high: last value that a tick may have, larger than `low`.
        most: steps that the axis is cut into at most; of 3 and more, one tick is there always.
    """
    smallest = (high - low) / most
    exponent = math.floor(math.log10(smallest))
    step = 10.0**exponent
    # 1e-9: of an axis from 0.97 to 1.02, a fifth is 0.01 but for rounding.
    step *= next((nice for nice in (1, 2, 5) if nice * step >= smallest * (1 - 1e-9)), 10)
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return _labelled([number * step for number in numbers], step)


def _fitting_ticks(low: float, high: float, length: float) -> tuple[Tick, ...]:
    """As many ticks, up to six steps, as have room beside one another."""
    for most in (6, 5, 4):
        ticks = nice_ticks(low, high, most)
        if sum(len(label) + 2 for _, label in ticks) * _LETTER <= length:
            return ticks
    return nice_ticks(low, high, 3)


def _labelled(values: Sequence[float], step: float) -> tuple[Tick, ...]:
    """Each value with just as many digits as tell it from the next."""
    largest = max((abs(value) for value in values), default=0.0)
    # 1e-9: of a step 2e-4 and not 1.9999e-4, the digits of 2e-4.
    place = math.floor(math.log10(step) + 1e-9)
    if largest == 0:
        return tuple((0.0, "0") for _ in values)
    if 1e-3 <= largest < 1e5:
        labels = [f"{value:.{max(0, -place)}f}" for value in values]
    else:
        digits = max(0, math.floor(math.log10(largest)) - place)
        labels = [_exponential(value, digits) for value in values]
    return tuple(
        (value, "0" if value == 0 else label.replace("-", "−"))
        for value, label in zip(values, labels, strict=True)
    )


def _exponential(value: float, digits: int) -> str:
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _middle_ends(values: NDArray[np.float64]) -> tuple[float, float]:
    """Smallest and largest of the values that are not far off."""
    low, high = (float(value) for value in np.quantile(values, [0.05, 0.95]))
    reach = _REACH * (high - low)
    if reach > 0:
        near = values[(values >= low - reach) & (values <= high + reach)]
        # Interpolated quantiles of huge values may lie a rounding error beside all of them.
        values = near if len(near) else values
    return float(values.min()), float(values.max())


def _apart(low: float, high: float) -> tuple[float, float]:
    """Ends that are not the same, nor as good as."""
    magnitude = max(abs(low), abs(high))
    if high - low >= max(magnitude * _FINEST, 1 / LARGEST):
        return low, high
    middle, half = (low + high) / 2, magnitude / 20 if magnitude > 1 / LARGEST else 0.5
    return middle - half, middle + half
