"""The errors that vadexport raises on purpose, each with the exit status it ends in.

Every class here is a *user* error: its message is one line that says what is wrong and what
to do. Anything else that escapes is a defect of vadexport and is reported as such.
"""

from typing import ClassVar


class VadexportError(Exception):
    """Base of all errors that a user can mend; never raised itself."""

    exit_status: ClassVar[int] = 2


class InputError(VadexportError):
    """Wrong usage or input: a path, an image, a checkpoint, an option (exit status 2)."""


class UnfitError(InputError):
    """A target that this detector cannot have, while it may have others (exit status 2)."""


class CheckError(VadexportError):
    """Something ran, but a check fell short of its limit (exit status 1)."""

    exit_status = 1


class MissingPackageError(VadexportError):
    """A package is not installed here (exit status 3).

    Args:
        package: as pip names it.
        extra: of vadexport, that brings it; None where vadexport always brings it.
    """

    exit_status = 3

    def __init__(self, package: str, extra: str | None = None) -> None:
        wanted = "vadexport" if extra is None else f"'vadexport[{extra}]'"
        super().__init__(f"{package} is not installed here: pip install {wanted}")
        self.package = package
        self.extra = extra


class MissingDeviceError(VadexportError):
    """What a target runs on, a GPU, its driver, or VNNI, is not here (exit status 3)."""

    exit_status = 3


class BackendError(VadexportError):
    """A backend crashed, timed out or refused the graph (exit status 4)."""

    exit_status = 4
