"""Where a step that fell short begins to differ, in words."""

from collections.abc import Callable
from typing import Any, Final

from vadexport.backends.child import Child
from vadexport.errors import BackendError
from vadexport.verification.locating import Divergence

_TIMEOUT_S: Final = 1800


def located(
    step: str,
    images: str,
    look: Callable[..., Divergence | None],
    *arguments: Any,
    otherwise: str | None = None,
) -> str | None:
    """Compare a step with the one before it, in a child process.

    Args:
        step: its name.
        images: which image it is looked into with, in words.
        look: `locate`, or `locate_compiled`.
        arguments: of that function.
        otherwise: what is to be said of the step where no part of it differs.

    Returns:
        A line for a reader; None where nothing is to be said, and where the comparison itself
        failed: it explains a failure, and must not be one.
    """
    try:
        with Child("comparison of two steps", timeout_s=_TIMEOUT_S) as child:
            found = child.run(look, *arguments)
    except BackendError:
        return None
    if found is not None:
        return f"{step} fell short; on {images} {found}"
    return None if otherwise is None else f"{step} fell short; {otherwise}"
