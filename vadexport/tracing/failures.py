"""Word what PyTorch's exporter raises: one line that says what to do."""

import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from vadexport.errors import InputError

_DEPENDS_ON_DATA: Final = (
    *(GuardOnDataDependentSymNode, DataDependentOutputException),
    DynamicOutputShapeException,
)
#: What PyTorch says where a dynamic first axis turned out to be a number.
_FIXED_BATCH: Final = re.compile(
    r"inferred a static shape|specialized it to be a constant|Constraints violated"
)
_OPERATOR: Final = re.compile(r"target=(?:torch\.ops\.)?([\w.]+)")
#: Where code lies that is not the user's: vadexport's, Python's, and installed packages'.
_OTHERS: Final = (
    Path(__file__).parents[1],
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
)


@contextmanager
def worded(family: str) -> Iterator[None]:
    """Raise what PyTorch's exporter raises within as an InputError, its cause the original.

    Args:
        family: of the detector that is traced.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever its many steps raise
        raise InputError(f"PyTorch cannot trace {family}: {_words(error)}") from error


def _words(error: Exception) -> str:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, _DEPENDS_ON_DATA):
            return (
                f"a branch, a loop or a size depends on the values of the image{_place(cause)}, "
                "and a graph has one way for all images: compute both ways and choose with "
                "torch.where"
            )
        if _FIXED_BATCH.search(str(cause)):
            return (
                "the number of images becomes a constant in it, as where it loops over them or "
                "asks len(x): build with --batch 1, or compute all images at once"
            )
    lines = str(causes[-1]).strip().splitlines() or [repr(causes[-1])]
    reason = lines[0].partition(". Signature:")[0]
    found = next((match for each in causes if (match := _OPERATOR.search(str(each)))), None)
    operator = "" if found is None else f"its ONNX exporter cannot take {found[1]}, as called: "
    return f"{operator}{reason}{_place(causes[-1])}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from, the first one last."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _place(error: BaseException) -> str:
    """The line of the user's file that it was raised from, in parentheses; empty for none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(map(path.is_relative_to, _OTHERS)):
            return f" ({path.name}:{frame.lineno}, `{frame.line}`)"
    return ""
