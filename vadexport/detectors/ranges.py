"""Ranges that several families' configurations share; NaN is in none of them."""

from typing import Final

from vadexport.errors import InputError

#: The largest seed that PyTorch's and NumPy's generators both take as it is.
LARGEST_SEED: Final = 2**63 - 1
_LARGEST_BLUR: Final = 64


def check_seed(seed: int) -> None:
    """Raises InputError where a seed is no seed of every generator."""
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"the seed is in 0 … 2⁶³ − 1, not {seed}")


def check_training(*steps: int, batch_size: int, learning_rate: float) -> None:
    """Raises InputError where a stage has no step, a step no image, or Adam no sensible rate."""
    if min(*steps, batch_size) < 1:
        raise InputError("training needs at least one step and one image a step")
    if not 0 < learning_rate <= 1:
        raise InputError(f"the learning rate is in (0, 1], not {learning_rate}")


def check_blur(sigma: float, *, optional: bool = False) -> None:
    """Raises InputError where a map cannot be blurred so; 0, for not at all, is `optional`."""
    if not (0 < sigma <= _LARGEST_BLUR or (optional and sigma == 0)):
        start = "[" if optional else "("
        raise InputError(f"the blur's sigma is in {start}0, {_LARGEST_BLUR}], not {sigma}")
