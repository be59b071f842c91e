"""What the command line shows while it works: progress on a terminal, warnings always."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from vadexport.listening import Listener
from vadexport.terminal import printable, printable_lines

_REDRAW_S = 0.1
_BAR_WIDTH = 30


class Console(Listener):
    """Progress and warnings on standard error; results go to standard output.

    Attributes:
        quiet: no progress, no notes.
        verbose: tracebacks with errors.
        interrupted: the user asked to end. A package that is just being imported may catch the
            KeyboardInterrupt; the next step then raises another.
        when_interrupted: says what an interrupted command leaves behind.
    """

    def __init__(self) -> None:
        self.quiet = False
        self.verbose = False
        self.interrupted = False
        self.when_interrupted: Callable[[], str] = lambda: "nothing was written"
        self._terminal = sys.stderr.isatty()
        self._open_step: str | None = None
        self._started = self._drawn = 0.0
        self._done_before = 0

    def step(self, name: str, done: int, total: int, detail: str = "") -> None:
        """Draw a bar on a terminal; in a log, one line when the step is finished."""
        if self.interrupted:
            raise KeyboardInterrupt
        if self.quiet:
            return
        name, detail = printable(name), printable(detail)
        now = time.monotonic()
        if name != self._open_step:
            self.finish()
            self._open_step, self._started, self._drawn = name, now, 0.0
            self._done_before = done  # a resumed step starts in the middle
        suffix = f", {detail}" if detail else ""
        if done >= total:
            took = f": {total} in {now - self._started:.1f} s" if total > 1 else ""
            self._close(f"{name}{took}{suffix}")
        elif self._terminal and now - self._drawn >= _REDRAW_S:
            self._drawn = now
            width = max(_BAR_WIDTH - len(suffix), 0)  # the line must not wrap
            filled = int(width * done / total)
            seen = done - self._done_before
            left = (now - self._started) / seen * (total - done) if seen else None
            remaining = f"{left:4.0f} s left" if left is not None else ""
            bar = "█" * filled + "·" * (width - filled)
            line = f"\r\x1b[K{name:<24} {bar} {done}/{total} {remaining}{suffix}"
            click.echo(line, nl=False, err=True)

    def warn(self, text: str) -> None:
        """Show a warning, also when quiet."""
        self._erase()
        click.echo(f"warning: {printable(' '.join(text.split()))}", err=True)

    def note(self, text: str) -> None:
        """Show a note."""
        if not self.quiet:
            self._erase()
            click.echo(printable(text), err=True)

    def finish(self) -> None:
        """Leave the terminal on a fresh line."""
        self._erase()
        self._open_step = None

    def result(self, text: str) -> None:
        """Print a result, text or JSON; what it names must be `printable`, or hold no newline."""
        self._erase()
        click.echo(printable_lines(text))  # JSON is printable as it is

    def verdict(self, reasons: Sequence[str]) -> None:
        """Say in one line, the last of standard error, why something fell short; nothing if not."""
        if reasons:
            self.finish()
            line = " ".join("; ".join(reasons).split())
            click.echo(printable(f"vadexport: fell short: {line}"), err=True)

    def _close(self, line: str) -> None:
        self._erase()
        click.echo(f"  {line}", err=True)
        self._open_step = None

    def _erase(self) -> None:
        if self._terminal and self._open_step is not None:
            click.echo("\r\x1b[K", nl=False, err=True)


def columns(rows: list[tuple[Any, ...]]) -> str:
    """Rows as text, each column as wide as its widest cell."""
    texts = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    )
