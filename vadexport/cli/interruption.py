"""Ctrl-C, and a request to end, raise KeyboardInterrupt where it does no harm."""

import signal
from types import FrameType
from typing import Final

from vadexport.cli.console import Console

#: Signals that ask a command to end.
_ENDING: Final = (signal.SIGINT, signal.SIGTERM)

#: Seconds until it is tried again while a package is being imported.
_RETRY_S: Final = 0.05


def heed_interruptions(console: Console) -> None:
    """Turn the first request to end into a KeyboardInterrupt: what is half written is removed.

    A package that is just being imported may catch it and go on, raise an error of its own, as
    PyTorch's exporter does, or end the process, where C++ is on the stack: so it waits for the
    import's end, unless the user asks again. What else catches it finds the next in
    `Console.step`.
    """
    waiting = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        again = console.interrupted and number in _ENDING
        if number not in _ENDING and not waiting:
            return  # the alarm of a wait that the user did not want to sit out
        console.interrupted = True
        waiting = hasattr(signal, "setitimer") and _imports(frame) and not again
        if not waiting:
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, ask)
        signal.setitimer(signal.ITIMER_REAL, _RETRY_S)

    for number in _ENDING:
        signal.signal(number, ask)


def let_interruptions_end(console: Console) -> None:
    """Nothing is left to be removed: a request to end does so at once."""
    if console.interrupted and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
