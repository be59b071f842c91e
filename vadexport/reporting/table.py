"""The result of a verification as a table for the terminal."""

import textwrap
from collections.abc import Sequence
from typing import Final

from vadexport.reporting.timing import MEDIAN, SPEEDUP, latency_rows
from vadexport.reporting.wording import (
    MISSING,
    figure,
    flips,
    measured,
    ratio,
    unchecked,
    verdict,
)
from vadexport.terminal import printable
from vadexport.verification.result import Verification

_WIDTH: Final = 100
_LONGEST_NAME: Final = 28

Row = tuple[str, ...]

_PARITY: Final[Row] = (
    "AUROC\n(ref → artifact)",
    "drift\nmax",
    "map\ndrift",
    "\nSpearman",
    "\nflips",
)
_LATENCY: Final[Row] = ("median\nms", "speed-up\n[95% interval]")


def summary_table(verifications: Sequence[Verification]) -> str:
    """One row an artifact, below what they were held against; at most 100 columns wide.

    Too wide figures move latency into a table of its own. Below stand the checks that fell short,
    limits that were set but not checked, and what a latency must be read with.
    """
    lines = [line for reference in _references(verifications) for line in reference]
    names = [_shortened(v.target) for v in verifications]
    parity = [("target\n", *_PARITY)]
    parity += [(name, *_parity(v)) for name, v in zip(names, verifications, strict=True)]
    latency = [_LATENCY, *(_latency(v) for v in verifications)]
    verdicts = [("\nverdict",), *((verdict(v.held),) for v in verifications)]
    whole = [a + b + c for a, b, c in zip(parity, latency, verdicts, strict=True)]
    for gap in (2, 1):
        table = _aligned(whole, gap)
        if max(map(len, table)) <= _WIDTH:
            break
    else:
        table = _aligned([a + c for a, c in zip(parity, verdicts, strict=True)], 1)
        table += ["", *_aligned([(a[0], *b) for a, b in zip(parity, latency, strict=True)], 2)]
    below = [line for v in verifications for line in _below(v)]
    return "\n".join([*lines, "", *table, *([""] if below else []), *below])


def _references(verifications: Sequence[Verification]) -> list[list[str]]:
    """What each reference does by itself, and the unit of drift."""
    first = {v.source_name: v for v in reversed(verifications)}
    return [_reference(first[name]) for name in dict.fromkeys(v.source_name for v in verifications)]


def _reference(v: Verification) -> list[str]:
    facts = [f"AUROC {figure(v.figures.auroc_reference, '.4f')}"]
    if v.latency is not None:
        found = v.latency.reference
        facts.append(f"{measured(found.median_ms)} ms median, {found.execution.precision}")
    facts.append(f"{v.figures.images} images")
    name = _shortened(v.source_name)
    unit = (
        f"drift unit {figure(v.drift_unit, '.4g')}: interquartile range of its raw scores on "
        f"{v.drift_unit_from}"
    )
    return [*_wrapped(f"reference {name}: {', '.join(facts)}"), *_wrapped(unit)]


def _parity(v: Verification) -> Row:
    found = v.figures
    auroc = f"{figure(found.auroc_reference, '.4f')} → {figure(found.auroc, '.4f')}"
    return (
        MISSING if found.auroc is None and found.auroc_reference is None else auroc,
        figure(found.drift_max, ".2g"),
        figure(found.map_max, ".2g"),
        figure(found.spearman, ".5f"),
        flips(found.flips, found.images),
    )


def _latency(v: Verification) -> Row:
    if v.latency is None:
        return (MISSING, MISSING)
    return (measured(v.latency.artifact.median_ms), ratio(v.latency.speedup.ratio))


def _below(v: Verification) -> list[str]:
    # How many flips there may be elsewhere is part of the verdict, so it is told where it held too.
    lines = [check.line for check in v.checks if not check.held or check.name == "flips"]
    if v.proven_on == "graph":
        lines.insert(0, "its ONNX graph, run on the processor; the artifact itself did not run")
    if v.diagnosis is not None:
        lines += v.diagnosis.lines
    lines += [f"not checked: {line}" for line in unchecked(v)]
    lines += _timing(v)
    name = _shortened(v.target)
    return [part for line in lines for part in _wrapped(f"{name}: {line}")]


def _timing(v: Verification) -> list[str]:
    """What a latency figure must be read with."""
    if v.latency is None or v.latency.artifact.floor is None:
        return []
    return [
        f"{name}: {artifact}" + ("" if reference == MISSING else f", reference {reference}")
        for name, reference, artifact in latency_rows(v.latency)
        if name not in (MEDIAN, SPEEDUP)
    ]


def _aligned(rows: Sequence[Row], gap: int) -> list[str]:
    """Columns as wide as their widest cell, names to the left and figures to the right.

    The first row holds titles of two lines each.
    """
    titles, *others = rows
    split = [title.partition("\n") for title in titles]
    lines = [tuple(upper for upper, _, _ in split), tuple(lower for _, _, lower in split), *others]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    words = (0, len(widths) - 1 if titles[-1] == "\nverdict" else 0)
    lines.insert(2, tuple("─" * width for width in widths))
    return [
        (" " * gap)
        .join(
            cell.ljust(width) if number in words else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        .rstrip()
        for line in lines
    ]


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(printable(line), _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
