"""Figures and verdicts in words: one way for the page, its plots and the terminal."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vadexport.verification.latency import LatencyFigures
from vadexport.verification.losses import Loss
from vadexport.verification.parts import Parts
from vadexport.verification.result import Verification
from vadexport.verification.statistics import Interval, values_needed
from vadexport.verification.throughput import Throughput
from vadexport.verification.unjudged import CHECKS, unjudged

MISSING: Final = "–"
NOT_FINITE: Final = "not finite"

#: Figures of parity as manifests and `parity.json` hold them: key, title, form.
FIGURES: Final = (
    ("images", "images", "d"),
    ("drift_max", "largest drift", ".3g"),
    ("drift_mean", "mean drift", ".3g"),
    ("spearman", "Spearman", ".5f"),
    ("flips", "flips", "d"),
    ("map_max", "largest map difference", ".3g"),
    ("preprocessing", "preprocessing difference", ".3g"),
    ("not_finite", "not finite", "d"),
)


def figure(value: float | None, form: str = ".3g") -> str:
    """A figure for readers; None is a dash."""
    if value is None:
        return MISSING
    return format(value, form) if math.isfinite(value) else NOT_FINITE


def shown(value: Any, form: str) -> str:
    """A figure read from a file; another version may have written it, so anything is shown."""
    if isinstance(value, float):
        return figure(value, form.replace("d", "g"))
    return MISSING if value is None else str(value)


def measured(value: float, digits: int = 3, sign: str = "") -> str:
    """A measurement with trailing zeros, and without an exponent unless it is very small or large.

    Args:
        value: any number.
        digits: significant ones.
        sign: "+" shows the sign of positive values as well.
    """
    if not 1e-3 <= abs(value) < 1e9:
        return figure(value, f"{sign}.{digits}g")
    return f"{value:{sign}.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage of three digits, however small."""
    if fraction is None or not math.isfinite(fraction):
        return figure(fraction)
    return f"{100 * fraction:.3g}%"


def ratio(found: Interval) -> str:
    """A speed-up and its interval."""
    return f"{measured(found.value)} [{measured(found.low)}–{measured(found.high)}]"


def loss(found: Loss) -> str:
    """What a metric loses, with its interval, or why there is none."""
    words = f"loss {figure(found.value)}"
    if found.low is not None and found.high is not None:
        return f"{words}, 95% interval {figure(found.low)} to {figure(found.high)}"
    if found.enough is None:
        return f"{words}, no interval: of one label, no image changes its place"
    certain = f"; at least {figure(found.least)} is lost" if found.least > 0 else ""
    return (
        f"{words}, no interval: too few images change their place, about {found.enough} of each "
        f"label would do{certain}"
    )


def quantile(found: LatencyFigures, of: float) -> str:
    """The 0.9 or the 0.99 quantile of a contestant's calls, or why there is none."""
    value = {0.9: found.p90_ms, 0.99: found.p99_ms}[of]
    if value is not None:
        return f"{measured(value)} ms"
    calls = len(found.samples_ms)
    return f"{MISSING} ({values_needed(of)} calls tell, {calls} were timed)"


def floor(found: LatencyFigures) -> str:
    """What ratio the measurement shows where there is no difference."""
    if found.floor is None or found.again is None:
        return MISSING
    low, high = (f"{end:.3f}" for end in (found.again.low, found.again.high))
    return f"{found.floor:.3f} [{low}–{high}]"


def throughput(found: Throughput) -> str:
    """Images a second, and in how many streams."""
    streams = "1 stream" if found.streams == 1 else f"{found.streams} streams"
    return f"{measured(found.images_per_s)} in {streams}"


def parts(found: Parts) -> list[tuple[str, str]]:
    """Where the time of a call goes: a name and milliseconds each, all together last."""
    preprocessing, inference = _ms(found.preprocessing_ms), _ms(found.inference_ms)
    if found.preprocessing_ms is None:
        preprocessing = "cannot be run alone"
    elif found.inference_ms is None:
        inference = f"{MISSING} (preprocessing alone took as long as the whole call)"
    return [
        ("reading and decoding the images of a call", _ms(found.decoding_ms)),
        ("preprocessing", preprocessing),
        ("inference", inference),
        ("together", _ms(found.together_ms)),
    ]


def _ms(value: float | None) -> str:
    return MISSING if value is None else f"{measured(value)} ms"


def warm_up(found: LatencyFigures) -> str:
    """How many calls went before the timed ones."""
    if found.warm_up is None:
        return "unknown"
    steady = "" if found.warm_up.steady else ", and still getting faster or no time to see it"
    return f"{found.warm_up.calls} calls{steady}"


def kind(anomalous: bool | None) -> str:  # noqa: FBT001 (a label or a decision, no flag)
    """What an image is, or what a detector says that it is."""
    return {None: "unknown", False: "normal", True: "anomalous"}[anomalous]


def flips(count: int | None, images: int) -> str:
    """Flipped decisions among `images`; None where there are no decisions."""
    return MISSING if count is None else f"{count}/{images}"


def verdict(held: bool) -> str:  # noqa: FBT001 (the verdict itself, no flag)
    """What became of a check or of all."""
    return "held" if held else "fell short"


@dataclass(frozen=True)
class LimitRow:
    """A limit and what became of it.

    Attributes:
        name: of its check, whether that was made or not.
        words: what it limits.
        limit: its value with unit; a dash where there is none.
        verdict: held, fell short, not checked, or no limit.
        line: what was measured, or why it was not checked.
    """

    name: str
    words: str
    limit: str
    verdict: str
    line: str


def _share(limit: float) -> str:
    return f"≤ {percent(limit)} of the images"


#: Field of `Limits`, what it limits, how it is written.
_LIMITS: Final[tuple[tuple[str, str, Callable[[float], str]], ...]] = (
    ("max_drift", "largest drift", "≤ {:g} drift units".format),
    ("max_flips", "flips", _share),
    ("min_spearman", "Spearman's rank correlation of raw scores", "≥ {:g}".format),
    (
        "max_map_drift",
        "largest difference of a map, of the maps' mean range",
        lambda limit: f"≤ {percent(limit)}",
    ),
    ("min_auroc_delta", "image AUROC minus the reference's", "≥ {:+g}".format),
    ("min_speedup", "speed-up, lower end of its 95% interval", "≥ {:g}×".format),
    ("max_latency_ms", "median latency", "≤ {:g} ms".format),
    ("max_size_mb", "size of the artifact", "≤ {:g} MB".format),
    ("max_memory_mb", "peak memory", "≤ {:g} MB".format),
)

#: Checks that need no image, and of which no step of a build can be the cause.
WITHOUT_SCORES: Final = ("speedup", "latency", "size", "memory")


def limit_rows(verification: Verification) -> list[LimitRow]:
    """Every limit there can be, with what became of it."""
    v = verification
    checks = {check.name: check for check in v.checks}
    why = unjudged(v.limits, v.checks, v.figures, timed=v.latency is not None)
    rows = []
    for field, words, written in _LIMITS:
        limit = getattr(v.limits, field)
        if limit is None:
            rows.append(LimitRow(CHECKS[field], words, MISSING, "no limit", ""))
        elif field in why:
            rows.append(LimitRow(CHECKS[field], words, written(limit), "not checked", why[field]))
        else:
            check = checks[CHECKS[field]]
            rows.append(
                LimitRow(check.name, words, written(limit), verdict(check.held), check.line)
            )
    return rows


def limits_in_words(limits: Mapping[str, Any]) -> dict[str, str]:
    """What each limit of `parity.json` is of, and its value; a dash where there is none."""
    known = {name: value for name, value in limits.items() if type(value) in (int, float)}
    return {
        words: written(known[field]) if field in known else MISSING
        for field, words, written in _LIMITS
    }


def unchecked(verification: Verification) -> list[str]:
    """Limits that are set and that nothing was held against: a verdict must not hide them."""
    rows = limit_rows(verification)
    return [f"{row.words}: {row.line}" for row in rows if row.verdict == "not checked"]
