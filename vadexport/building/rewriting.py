"""The graph passes of a build: applied together, and taken apart where they move scores."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import onnx

from vadexport.backends.child import Child
from vadexport.building.compiling import BACKEND_PASSES
from vadexport.contract import Call
from vadexport.errors import InputError
from vadexport.passes import DEFAULT_PASSES, GraphPass, apply_passes
from vadexport.passes.quantised_search import PrincipalSearch, QuantisedSearch
from vadexport.targets import Target
from vadexport.verification.applied import AppliedPass, timed
from vadexport.verification.ladder import Rung
from vadexport.verification.stepping import time_graphs

_TIMING_TIMEOUT_S: Final = 120
#: Every pass that a build may leave out.
PASS_NAMES = (
    *(each.name for each in DEFAULT_PASSES),
    PrincipalSearch.name,
    QuantisedSearch.name,
    *BACKEND_PASSES,
)


@dataclass(frozen=True)
class Checked:
    """A graph that was checked.

    Attributes:
        file: its ONNX file.
        rung: of it, against the reference.
        verdict: rung that says whether its passes stay: the same, but where the graph before all
            passes falls short, against that graph.
    """

    file: Path
    rung: Rung
    verdict: Rung


#: Saves a graph under a name.
Save = Callable[[str, onnx.ModelProto], Path]
#: Saves a graph under a name, and checks it.
Check = Callable[[str, onnx.ModelProto], Checked]


def check_names(names: Collection[str]) -> None:
    """Raises InputError where one of the names is no pass's."""
    for name in names:
        if name not in PASS_NAMES:
            raise InputError(f"unknown pass {name!r}; known: {', '.join(PASS_NAMES)}")


@dataclass(frozen=True)
class Undone:
    """A pass that moved scores.

    Attributes:
        name: of the pass.
        rung: the verdict that it fell short at.
        before: ONNX file of the graph before it.
        after: ONNX file of what it made.
    """

    name: str
    rung: Rung
    before: Path
    after: Path


@dataclass(frozen=True)
class Rewriting:
    """What passes made of a graph.

    Attributes:
        model: the graph.
        rung: its rung; None where no pass is in it.
        applied: the passes that found a place.
        undone: those of them that moved scores.
        files: ONNX files of the graphs behind those that stay, as far as they were saved.
    """

    model: onnx.ModelProto
    rung: Rung | None
    applied: tuple[AppliedPass, ...]
    undone: tuple[Undone, ...] = ()
    files: tuple[Path, ...] = ()


def rewrite(
    model: onnx.ModelProto,
    path: Path,
    passes: Sequence[GraphPass],
    check: Check,
    save: Save | None = None,
) -> Rewriting:
    """Apply passes; where the scores move by more than they may, all but those that move them.

    Passes answer for what they add: that the graph was off before does not undo them.

    Args:
        model: the graph.
        path: its file.
        passes: in order.
        check: holds a graph against the reference, or where `model` itself is off, against that.
        save: saves the graph behind each pass; None where those between are not wanted.
    """
    whole = model
    applied: list[AppliedPass] = []
    files: list[Path] = []
    for each in passes:
        made, places = apply_passes(whole, (each,))
        if not places[each.name]:
            continue
        if applied and save is not None:
            files.append(save(f"behind-{applied[-1].name}", whole))
        whole = made
        applied.append(AppliedPass(each.name, places[each.name]))
    if not applied:
        return Rewriting(model, None, ())
    checked = check("rewritten", whole)
    if checked.verdict.held:
        return Rewriting(whole, checked.rung, tuple(applied), files=(*files, checked.file))
    return _one_by_one(model, path, passes, check)


def _one_by_one(
    model: onnx.ModelProto, path: Path, passes: Sequence[GraphPass], check: Check
) -> Rewriting:
    """Apply each pass alone to what those before it made, and leave it out where scores move."""
    found: Rewriting = Rewriting(model, None, ())
    for each in passes:
        made, places = apply_passes(found.model, (each,))
        count = places[each.name]
        if not count:
            continue
        checked = check(f"rewritten-{each.name}", made)
        if checked.verdict.held:
            kept = AppliedPass(each.name, count)
            found = replace(
                found,
                model=made,
                rung=checked.rung,
                applied=(*found.applied, kept),
                files=(*found.files, checked.file),
            )
            path = checked.file
        else:
            reason = "; ".join(one.line for one in checked.verdict.checks if not one.held)
            dropped = AppliedPass(each.name, count, undone=reason)
            found = replace(
                found,
                applied=(*found.applied, dropped),
                undone=(*found.undone, Undone(each.name, checked.verdict, path, checked.file)),
            )
    return found


def time_passes(
    made: Rewriting, simplified: Path, on: tuple[Target, int], call: Call
) -> tuple[AppliedPass, ...]:
    """Passes with what each that stays brings, timed in a child process.

    Args:
        made: what they made of a graph, all files saved.
        simplified: ONNX file of the graph before them.
        on: target that they are timed on, and threads that a call may use.
        call: of the graph.

    Raises:
        BackendError: the backend cannot run one of the graphs, or takes too long.
    """
    graphs = [simplified, *made.files]
    with Child(f"timing of passes on {on[0]}", timeout_s=_TIMING_TIMEOUT_S) as child:
        again, pairs = child.run(time_graphs, graphs, simplified.parent, *on, call)
    return timed(made.applied, again, pairs)
