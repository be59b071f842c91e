"""What the command line shows while it works: progress on a terminal, warnings always."""

import sys
import time
from typing import Any

import click

from vadexport.listening import Listener

_REDRAW_S = 0.1
_BAR_WIDTH = 30


class Console(Listener):
    """Progress and warnings on standard error; results go to standard output.

    Attributes:
        quiet: no progress, no notes.
        verbose: tracebacks with errors.
    """

    def __init__(self) -> None:
        self.quiet = False
        self.verbose = False
        self._terminal = sys.stderr.isatty()
        self._open_step: str | None = None
        self._started = self._drawn = 0.0

    def step(self, name: str, done: int, total: int) -> None:
        """Draw a bar on a terminal; in a log, one line when the step is finished."""
        if self.quiet:
            return
        now = time.monotonic()
        if name != self._open_step:
            self.finish()
            self._open_step, self._started, self._drawn = name, now, 0.0
        if done >= total:
            self._close(f"{name}: {total} in {now - self._started:.1f} s" if total > 1 else name)
        elif self._terminal and now - self._drawn >= _REDRAW_S:
            self._drawn = now
            filled = int(_BAR_WIDTH * done / total)
            left = (now - self._started) / done * (total - done) if done else None
            remaining = f"{left:4.0f} s left" if left is not None else ""
            bar = "█" * filled + "·" * (_BAR_WIDTH - filled)
            click.echo(f"\r\x1b[K{name:<24} {bar} {done}/{total} {remaining}", nl=False, err=True)

    def warn(self, text: str) -> None:
        """Show a warning, also when quiet."""
        self._erase()
        click.echo(f"warning: {' '.join(text.split())}", err=True)

    def note(self, text: str) -> None:
        """Show a note."""
        if not self.quiet:
            self._erase()
            click.echo(text, err=True)

    def finish(self) -> None:
        """Leave the terminal on a fresh line."""
        self._erase()
        self._open_step = None

    def result(self, text: str) -> None:
        """Print a result."""
        self._erase()
        click.echo(text)

    def _close(self, line: str) -> None:
        self._erase()
        click.echo(f"  {line}", err=True)
        self._open_step = None

    def _erase(self) -> None:
        if self._terminal and self._open_step is not None:
            click.echo("\r\x1b[K", nl=False, err=True)


def columns(rows: list[tuple[Any, ...]]) -> str:
    """Rows as text, each column as wide as its widest cell."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
