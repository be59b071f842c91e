"""`vadexport diff`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vadexport.cli.console import Console, columns
from vadexport.cli.options import PATH, console_options, json_option
from vadexport.terminal import printable

if TYPE_CHECKING:
    from vadexport.diffing import Change, Diff, FolderDiff


@click.command("diff")
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@json_option
@console_options
@click.pass_context
def command(
    ctx: click.Context, console: Console, *, before: Path, after: Path, as_json: bool
) -> None:
    """Say what changed from BEFORE to AFTER: artifacts, reports of `verify`, or folders of several.

    Of artifacts: target, source, precision, versions, files; and where both were verified, their
    reference, images, limits, environment and figures, and every image whose decision changed. Of
    folders with several, those of the same name. Changed limits and figures fail nothing by
    themselves.
    Exit status 1 where a decision changed, an artifact is gone, a check falls short that did not
    before or is no longer made, or no image was verified by both; 2 where one was not verified.

    \b
    Example:
      vadexport diff released/artifact artifact
    """
    from vadexport.diffing import Diff, diff_folders

    found = diff_folders(before, after)
    if isinstance(found, Diff):
        shown = json.dumps(_as_json(found), indent=2) if as_json else _as_text(found)
    else:
        shown = json.dumps(_several_as_json(found), indent=2) if as_json else _several(found)
    console.result(shown)
    console.verdict(found.reasons)
    ctx.exit(found.exit_status)


def _as_json(found: "Diff") -> dict[str, object]:
    return {"held": found.held, **asdict(found)}


def _several_as_json(found: "FolderDiff") -> dict[str, object]:
    return {
        "held": found.held,
        "artifacts": {name: _as_json(one) for name, one in found.pairs.items()},
        "removed": found.removed,
        "added": found.added,
        "short": found.short,
        "unverified": found.unverified,
    }


def _several(found: "FolderDiff") -> str:
    parts = [f"== {printable(name)} ==\n\n{_as_text(one)}" for name, one in found.pairs.items()]
    parts += [printable(f"no longer there: {name}") for name in found.removed]
    parts += [printable(f"new: {name}") for name in found.added]
    parts += [printable(f"falls short: {line}") for line in found.short]
    parts += [printable(f"not verified: {name}") for name in found.unverified]
    return "\n\n".join(parts)


def _as_text(found: "Diff") -> str:
    parts = [_table("built", found.build), _table("verified", found.verified + found.figures)]
    parts += [printable(f"note: {line}") for line in found.notes]
    if found.images:
        rows = [("image", "before", "after", "drift", "decision")]
        rows += [
            (
                printable(one.name),
                f"{one.before:.6g}",
                f"{one.after:.6g}",
                f"{one.drift:+.2g}",
                "changed" if one.decision else "",
            )
            for one in found.images
        ]
        parts.append(columns(rows))
    parts += [printable(f"worse than before: {line}") for line in found.worse]
    if found.shared:
        parts.append(f"{found.decisions} of {found.shared} decisions changed")
    elif not found.unverified:
        parts.append("no image was verified by both: their decisions cannot be compared")
    if not found.unverified and (found.only_before or found.only_after):
        parts.append(
            f"images that only one of the two verified: {found.only_before} before, "
            f"{found.only_after} after"
        )
    parts += [printable(f"not verified: {path}") for path in found.unverified]
    return "\n\n".join(part for part in parts if part)


def _table(title: str, changes: "tuple[Change, ...]") -> str:
    if not changes:
        return ""
    rows = [(title, "before", "after")]
    rows += [(printable(one.name), printable(one.before), printable(one.after)) for one in changes]
    return columns(rows)
