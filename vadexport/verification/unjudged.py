"""Limits that nothing was held against, and why."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from vadexport.verification.further_checks import PLANTED
from vadexport.verification.limits import Check, Limits, images_that_rank
from vadexport.verification.parity import ParityFigures

#: Fields of `Limits`, and names of the checks that judge them.
CHECKS: Final = {
    "max_drift": "drift",
    "max_flips": "flips",
    "min_spearman": "spearman",
    "max_map_drift": "map",
    "min_auroc_delta": "auroc",
    "min_speedup": "speedup",
    "max_latency_ms": "latency",
    "max_size_mb": "size",
    "max_memory_mb": "memory",
}
#: Those that need no score.
_WITHOUT_SCORES: Final = ("min_speedup", "max_latency_ms", "max_size_mb", "max_memory_mb")
_UNTIMED: Final = "latency was not measured"
_REASONS: Final = {
    "max_drift": "drift was not measured",
    "max_flips": "the detector makes no decisions",
    "max_map_drift": "the detector gives no map",
    "min_auroc_delta": "there are no images of both labels",
    "min_speedup": _UNTIMED,
    "max_latency_ms": _UNTIMED,
    "max_size_mb": "it has no files",
    "max_memory_mb": _UNTIMED,
}


def unjudged(
    limits: Limits, checks: Iterable[Check], found: ParityFigures, *, timed: bool
) -> dict[str, str]:
    """Why limits that are set have no check, by their field.

    Args:
        limits: of a verification.
        checks: that were made.
        found: figures of parity.
        timed: whether latency was measured.
    """
    made = {check.name for check in checks}
    return {
        field: _reason(field, limits, found, timed=timed)
        for field, name in CHECKS.items()
        if getattr(limits, field) is not None and name not in made
    }


def given_checks(
    why: Mapping[str, str], limits: Limits, given: Collection[str], checks: Iterable[Check]
) -> list[Check]:
    """Checks that fall short, of limits that somebody set and that nothing was held against.

    Args:
        why: as `unjudged` gives it.
        limits: of the verification.
        given: fields of the limits that were set.
        checks: that were made; that on planted defects judges AUROC as well.
    """
    planted = {"min_auroc_delta"} if any(check.name == PLANTED for check in checks) else set()
    return [
        Check(
            CHECKS[field],
            held=False,
            line=f"{flag_of(field)} {getattr(limits, field):g} cannot be judged: {why[field]}",
            judged=False,
        )
        for field in CHECKS
        if field in why and field in given and field not in planted
    ]


def flag_of(field: str) -> str:
    """How the command line spells a limit."""
    return f"--{field.replace('_', '-')}"


def _reason(field: str, limits: Limits, found: ParityFigures, *, timed: bool) -> str:
    compared = found.images - found.not_finite
    if field == "max_memory_mb" and timed:
        return "this system does not tell how much memory a process takes"
    if not compared and field not in _WITHOUT_SCORES:
        return "no image has a finite score under both reference and artifact"
    if field == "min_auroc_delta" and found.auroc is not None:
        return f"of {compared} images two pairs that change places by chance cost more than it"
    return _REASONS[field] if field != "min_spearman" else _unranked(compared, limits, found)


def _unranked(compared: int, limits: Limits, found: ParityFigures) -> str:
    """Why the limit on rank correlation was not judged."""
    if compared == 1:
        return "one image alone has no rank"
    if found.spearman is None:
        return "the reference gives all images the same score"
    return (
        f"{compared} images tell too little, for neighbours change places by chance: "
        f"{images_that_rank(limits)} would do"
    )
