"""Run native code in a child process: its crash or hang fails one target, never the build.

The child is a fresh interpreter. Messages are pickles over its standard input and output, a
channel between two processes of the same user and program; nothing from outside is unpickled.
What the child prints goes to a log file, which is kept when it fails.
"""

import contextlib
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Self, TypeVar

from vadexport import errors
from vadexport.errors import BackendError, InputError, VadexportError
from vadexport.telemetry import forbid_telemetry

_T = TypeVar("_T")
_LENGTH = struct.Struct("<Q")


class Child:
    """A child process that holds one object and applies functions to it.

    Args:
        what: names the child in errors, such as `openvino:int8`.
        timeout_s: limit of each call.
        longer: how a user gives it more time, for the error that says it took too long.

    Raises:
        InputError: its log cannot be written.
    """

    def __init__(self, what: str, *, timeout_s: float = 600.0, longer: str = "") -> None:
        self._what = what
        self._timeout_s = timeout_s
        self._longer = longer
        try:
            handle, name = tempfile.mkstemp(prefix="vadexport-", suffix=".log")
        except OSError as error:
            folder = tempfile.gettempdir()
            raise InputError(f"cannot write a log in {folder}: {error.strerror}") from None
        self._log = Path(name)
        # A crash loses nothing that was printed, and notes where in Python it happened.
        python = [sys.executable, "-P", "-u", "-X", "faulthandler", "-c"]
        with os.fdopen(handle, "wb") as log:
            self._process = subprocess.Popen(
                [*python, "from vadexport.backends.child import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the parent, which ends its children
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._messages = _messages_of(self._process.stdout)

    def open(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call `function` in the child; what it returns stays there, for `apply`."""
        self._call("open", function, arguments)

    def apply(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call `function(held object, *arguments)` in the child and return its result."""
        result: _T = self._call("apply", function, arguments)
        return result

    def run(
        self,
        function: Callable[..., _T],
        *arguments: Any,
        progress: Callable[..., None] | None = None,
    ) -> _T:
        """Call `function(*arguments)` in the child and return its result.

        With `progress`, the function is also given `progress=…`, whose calls are passed on.
        """
        kind = "run" if progress is None else "run with progress"
        result: _T = self._call(kind, function, arguments, progress)
        return result

    def close(self) -> None:
        """End the child; its log goes, unless it failed."""
        self._kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        if not getattr(self, "_keep_log", False):
            self._log.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(
        self,
        kind: str,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        progress: Callable[..., None] | None = None,
    ) -> Any:
        try:
            _send(self._process.stdin, (kind, function, arguments))
        except OSError:
            self._fail("ended unexpectedly")
        while True:
            try:
                message = self._messages.get(timeout=self._timeout_s)
            except queue.Empty:
                self._kill()
                more = f"; {self._longer} gives it longer" if self._longer else ""
                self._fail(f"did not answer within {self._timeout_s:g} s{more}")
            if message is None:
                self._process.wait()
                self._fail(_how_it_ended(self._process.returncode))
            answer, value = pickle.loads(message)  # noqa: S301 - from our own child
            if answer == "progress" and progress is not None:
                progress(*value)
            elif answer == "result":
                return value
            elif answer == "user error":
                raise _user_error(*value)
            elif answer == "error":
                self._fail(f"failed: {value}")

    def _kill(self) -> None:
        """End the child and whatever it started."""
        if sys.platform != "win32" and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()

    def _fail(self, reason: str) -> NoReturn:
        self._keep_log = True
        raise BackendError(f"{self._what} {reason} (log: {self._log})")


def serve() -> None:
    """Be a child: answer calls from standard input until it ends."""
    forbid_telemetry()
    calls = _messages_of(_claimed(0, os.O_RDONLY, "rb"), on_end=lambda: os._exit(1))
    replies = _claimed(1, os.O_WRONLY, "wb")
    os.dup2(2, 1)  # what libraries print goes to the log
    held: Any = None
    while True:
        message = calls.get()
        if message is None:
            return
        try:
            kind, function, arguments = pickle.loads(message)  # noqa: S301 - from our own parent
            if kind == "open":
                held, result = function(*arguments), None
            elif kind == "apply":
                result = function(held, *arguments)
            elif kind == "run":
                result = function(*arguments)
            else:
                result = function(
                    *arguments, progress=lambda *told: _send(replies, ("progress", told))
                )
            _send(replies, ("result", result))
        except VadexportError as error:
            traceback.print_exc()
            _send(replies, ("user error", ([c.__name__ for c in type(error).mro()], str(error))))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            _send(replies, ("error", f"{type(error).__name__}: {lines[0]}"))


def _claimed(descriptor: int, flags: int, mode: str) -> IO[bytes]:
    """Take a standard stream for our own; libraries, and what they fork, find the null device."""
    own = os.dup(descriptor)  # not inheritable
    null = os.open(os.devnull, flags)
    os.dup2(null, descriptor)
    os.close(null)
    return os.fdopen(own, mode)


def _send(pipe: IO[bytes] | None, message: Any) -> None:
    if pipe is None:
        raise OSError("no pipe")
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _messages_of(
    pipe: IO[bytes] | None, on_end: Callable[[], None] = lambda: None
) -> "queue.SimpleQueue[bytes | None]":
    """Read messages in a thread; None ends them. Unpickling is left to whoever gets them."""
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read() -> None:
        for message in _read(pipe):
            messages.put(message)
        on_end()
        messages.put(None)

    threading.Thread(target=read, daemon=True).start()
    return messages


def _read(pipe: IO[bytes] | None) -> Iterator[bytes]:
    while pipe is not None:
        try:
            start = pipe.read(_LENGTH.size)
            (length,) = _LENGTH.unpack(start)
            data = pipe.read(length)
        except (OSError, ValueError, struct.error):  # closed, or ended within a message
            return
        if len(data) < length:
            return
        yield data


def _user_error(names: list[str], text: str) -> VadexportError:
    """The error that the child raised, as the nearest of its classes that all processes know."""
    kind = next(getattr(errors, name) for name in names if hasattr(errors, name))
    error: VadexportError = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


def _how_it_ended(status: int) -> str:
    if status < 0:
        names = {each.value: each.name for each in signal.Signals}  # real-time signals have none
        return f"crashed ({names.get(-status, f'signal {-status}')})"
    return f"ended unexpectedly (exit status {status})"
