"""The graph passes of a build: applied together, and taken apart where they move scores."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from vadexport.errors import InputError
from vadexport.passes import DEFAULT_PASSES, GraphPass, apply_passes
from vadexport.passes.quantised_search import QuantisedSearch
from vadexport.verification.applied import AppliedPass
from vadexport.verification.ladder import Rung

#: Every pass that a build may leave out.
PASS_NAMES = (*(each.name for each in DEFAULT_PASSES), QuantisedSearch.name)

#: Saves a graph under a name, and checks it: its file and its rung.
Check = Callable[[str, onnx.ModelProto], tuple[Path, Rung]]


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
        rung: that it fell short at.
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
    """

    model: onnx.ModelProto
    rung: Rung | None
    applied: tuple[AppliedPass, ...]
    undone: tuple[Undone, ...] = ()


def rewrite(
    model: onnx.ModelProto, path: Path, passes: Sequence[GraphPass], check: Check
) -> Rewriting:
    """Apply passes; where the scores move by more than they may, all but those that move them.

    Args:
        model: the graph.
        path: its file.
        passes: in order.
        check: holds a graph against the reference.
    """
    whole, places = apply_passes(model, passes)
    applied = tuple(AppliedPass(name, count) for name, count in places.items() if count)
    if not applied:
        return Rewriting(model, None, ())
    _, rung = check("rewritten", whole)
    if rung.held:
        return Rewriting(whole, rung, applied)
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
        file, rung = check(f"rewritten-{each.name}", made)
        if rung.held:
            kept = AppliedPass(each.name, count)
            found = replace(found, model=made, rung=rung, applied=(*found.applied, kept))
            path = file
        else:
            reason = "; ".join(one.line for one in rung.checks if not one.held)
            dropped = AppliedPass(each.name, count, undone=reason)
            found = replace(
                found,
                applied=(*found.applied, dropped),
                undone=(*found.undone, Undone(each.name, rung, path, file)),
            )
    return found
