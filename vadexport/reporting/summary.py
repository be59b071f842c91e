"""`summary.md`: a verification in Markdown, for the summary of a pipeline's job."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from vadexport.reporting.notable import notable_images
from vadexport.reporting.timing import latency_rows
from vadexport.reporting.wording import (
    MISSING,
    figure,
    flips,
    loss,
    measured,
    percent,
    unchecked,
    verdict,
)
from vadexport.terminal import printable
from vadexport.verification.result import Verification

#: Rows of the table of images.
_NOTABLE: Final = 10
_MARKS: Final = {True: "✓", False: "✗"}


def summary_markdown(v: Verification) -> str:
    """Verdict first, then checks, figures, warnings and the ladder.

    The ladder is the build's; of an artifact that fell short, that of the verified images.
    """
    checks = sorted(v.checks, key=lambda check: check.held)
    fallen = [check for check in checks if not check.held]
    head = (
        f"all {len(v.checks)} checks held"
        if v.held
        else f"{len(fallen)} of {len(v.checks)} checks fell short"
    )
    lines = [
        f"## {_MARKS[v.held]} `{_code(v.target)}` against {_text(v.source_name)}: {head}",
        "",
        *(f"- {_MARKS[check.held]} {_text(check.line)}" for check in checks),
        *(f"- – not checked: {_text(line)}" for line in unchecked(v)),
        "",
        "| figure | reference | artifact |",
        "|---|---|---|",
        *(f"| {name} | {first} | {second} |" for name, first, second in _figures(v)),
    ]
    if v.search is not None:
        lines += ["", f"Search of the build: {_text(v.search.words)}."]
    rows = list(_images(v))
    if rows:
        lines += ["", "**Images that changed most**", ""]
        lines += ["| image | reference | artifact | drift | listed for |", "|---|---|---|---|---|"]
        lines += rows
    if v.diagnosis is not None:
        lines += ["", "**Where it begins**", ""]
        lines += [f"- {_text(line)}" for line in v.diagnosis.lines]
    if v.warnings:
        lines += ["", "**Warnings**", "", *(f"- {_text(warning)}" for warning in v.warnings)]
    rungs = v.diagnosis.ladder if v.diagnosis and v.diagnosis.ladder else v.ladder
    if rungs:
        lines += ["", "| rung | largest drift | verdict |", "|---|---|---|", *_ladder(rungs)]
    return "\n".join(lines) + "\n"


def _figures(v: Verification) -> Iterator[tuple[str, str, str]]:
    found = v.figures
    yield "images", str(found.images), str(found.images)
    auroc = v.evidence.auroc if v.evidence else None
    if auroc is None:
        yield "image AUROC", figure(found.auroc_reference, ".4f"), figure(found.auroc, ".4f")
    if v.evidence is not None:
        compared = {"image AUROC": auroc, "F1-max": v.evidence.f1_max, "AUPRO": v.evidence.aupro}
        for name, one in compared.items():
            if one is not None:
                words = f"{figure(one.artifact, '.4f')} ({loss(one.loss)})"
                yield name, figure(one.reference, ".4f"), words
    unit = f"{figure(found.drift_max)} at most, {figure(found.drift_mean)} mean"
    yield "drift, in drift units", MISSING, unit
    yield "Spearman of raw scores", MISSING, figure(found.spearman, ".5f")
    bound = ""
    if v.evidence and v.evidence.flips:
        bound = f" (95%: {percent(v.evidence.flips.low)} to {percent(v.evidence.flips.high)})"
    yield "flipped decisions", MISSING, flips(found.flips, found.images) + bound
    yield "largest map difference", MISSING, percent(found.map_max)
    yield "size on disk", MISSING, f"{measured(v.identity.megabytes)} MB"
    if v.latency is not None:
        yield from latency_rows(v.latency)


def _images(v: Verification) -> Iterator[str]:
    for one in notable_images(v, _NOTABLE):
        record = one.record
        scores = " | ".join(measured(score, 5) for score in (record.reference_raw, record.raw))
        yield f"| {_text(record.name)} | {scores} | {measured(one.drift, 3, '+')} | {one.why} |"


def _ladder(rungs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for rung in rungs:
        drift = rung.get("drift_max")
        shown = figure(drift) if isinstance(drift, int | float) else MISSING
        yield f"| {_text(str(rung.get('rung')))} | {shown} | {verdict(bool(rung.get('held')))} |"


def _text(text: str) -> str:
    """Names come from outside: nothing in them may be Markdown, HTML, or end a line."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]<>#|!~" else sign for sign in printable(text))


def _code(text: str) -> str:
    return printable(text).replace("`", "'")
