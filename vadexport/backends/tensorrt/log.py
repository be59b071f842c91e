"""What the libraries tell, kept for errors and reports."""

import re
import sys
from collections import deque
from typing import Any, Final

#: Built-in checks ask for a GPU and complain where there is none, which is no fault.
NO_GPU: Final = ("CUDA driver version is insufficient", "no CUDA-capable device")
_MOST: Final = 200
#: A warning of the builder's. The error that follows says that no kernel was found for a node.
_REFUSED: Final = re.compile(r"Requested amount of GPU memory \((\d+) bytes\) could not be")


def new_log(trt: Any) -> Any:
    """A logger of the library's own kind that keeps warnings and errors."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.kept: deque[tuple[bool, str]] = deque(maxlen=_MOST)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                print(f"{severity}: {message}", file=sys.stderr, flush=True)  # noqa: T201
                self.kept.append((severity < trt.ILogger.Severity.WARNING, message))

        def last(self) -> str:
            """The last error, else the last warning, in one line."""
            told = [text for is_error, text in self.kept if is_error] or self.warnings()
            told = [text for text in told if not any(each in text for each in NO_GPU)] or told
            return " ".join(told[-1].split()) if told else "no reason given"

        def memory_refused(self) -> int | None:
            """Most bytes of GPU memory that were asked for and not given; None where all were."""
            found = [_REFUSED.search(text) for _, text in self.kept]
            return max((int(match[1]) for match in found if match), default=None)

        def warnings(self) -> list[str]:
            """Each warning once."""
            return list(dict.fromkeys(text for is_error, text in self.kept if not is_error))

    return Log()
