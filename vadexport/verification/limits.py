"""Limits that an artifact must hold, and the checks of one against them."""

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np

from vadexport.verification.latency import LatencyFigures, Speedup
from vadexport.verification.parity import ParityFigures
from vadexport.verification.records import ROUNDING, ImageRecord
from vadexport.verification.statistics import median_interval, proportion_interval


@dataclass(frozen=True)
class Limits:
    """What counts as held; None is not checked.

    Attributes:
        max_drift: largest drift of any image, in drift units.
        max_flips: largest fraction of images whose decision may differ.
        min_spearman: smallest rank correlation of raw scores.
        max_map_drift: largest difference of the anomaly maps, as a fraction of their mean range.
        min_auroc_delta: smallest image AUROC minus the reference's.
        min_speedup: over the reference; the interval's lower end, less what the A/A floor leaves
            open, must reach it.
        max_latency_ms: of the median.
        max_size_mb: of the artifact's files, in 10^6 bytes.
        max_memory_mb: largest resident memory of a process that runs the artifact, Python and all.
        rounding: `ROUNDING`, the drift that counts as none where rank correlation, AUROC and flips
            are judged (else one broken tie of 20 images falls short, or an image whose score is the
            threshold), or None: all drift counts.
    """

    max_drift: float | None = None
    max_flips: float | None = None
    min_spearman: float | None = None
    max_map_drift: float | None = None
    min_auroc_delta: float | None = None
    min_speedup: float | None = None
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    max_memory_mb: float | None = None
    rounding: float | None = None

    @classmethod
    def of_precision(cls, precision: str) -> Self:
        """The defaults for a target's precision."""
        return cls(**_DEFAULTS[precision])

    @classmethod
    def of_rung(cls, precision: str) -> Self:
        """Of a step of a build, judged on a handful of normal images: too few for more."""
        few = ("max_drift", "max_map_drift")
        return cls(**{name: _DEFAULTS[precision][name] for name in few})

    def overridden(self, **given: float | None) -> Self:
        """These limits, with those that are not None in `given` in their place."""
        return replace(self, **{key: value for key, value in given.items() if value is not None})

    def looser_than(self, other: Self, name: str) -> bool:
        """Whether the limit of this name holds of more than in `other`; not where that has none."""
        mine, theirs = getattr(self, name), getattr(other, name)
        if mine is None or theirs is None:
            return False
        return bool(mine > theirs if name.startswith("max_") else mine < theirs)


#: float32 must reproduce the reference up to rounding; the distance of a patch to a row of the
#: memory bank that it is itself loses all but a thousandth of the map's range to cancellation, in
#: the reference as well. float16 must not move a score that anyone would notice, INT8 must keep
#: decisions and order.
_DEFAULTS: dict[str, dict[str, float]] = {
    "fp32": {
        "max_drift": ROUNDING,
        "max_flips": 0.0,
        "min_spearman": 0.9999,
        "max_map_drift": 1e-2,
        "min_auroc_delta": -5e-5,
        "rounding": ROUNDING,
    },
    "fp16": {
        "max_drift": 0.02,
        "max_flips": 0.0,
        "min_spearman": 0.99,
        "max_map_drift": 0.02,
        "min_auroc_delta": -5e-4,
    },
    "int8": {
        "max_drift": 1.0,
        "max_flips": 0.02,
        "min_spearman": 0.99,
        "max_map_drift": 0.5,
        "min_auroc_delta": -0.005,
    },
    "auto": {
        "max_drift": 0.5,
        "max_flips": 0.005,
        "min_spearman": 0.999,
        "max_map_drift": 0.25,
        "min_auroc_delta": -0.001,
    },
}


@dataclass(frozen=True)
class Check:
    """A limit and whether it held.

    Attributes:
        name: of the limit.
        held: the verdict.
        line: what was measured and what the limit is, for a reader.
        judged: False where a limit that was given falls short for want of anything to hold it
            against.
    """

    name: str
    held: bool
    line: str
    judged: bool = True


#: Pairs of neighbours that change places before a limit on rank correlation falls short, where
#: images are enough: an artifact that loses half of the limit then holds it in 95% of all samples.
_SWAPS: Final = 1000
#: Pairs of images of both labels that change places by chance.
_PAIRS: Final = 2
#: However few images there are, AUROC may not lose more: it is two pairs of 10 and 10 images.
_MOST_BY_CHANCE: Final = 0.02
#: Beyond them a difference of two AUROCs, which count pairs, is rounding.
_AUROC_DIGITS: Final = 12
#: Images that a line names.
_NAMED: Final = 5
#: Of a measurement that a limit is held against: the interval of fewer covers too rarely.
_FEWEST_ROUNDS: Final = 5


def images_that_rank(limits: Limits) -> int:
    """From how many images on rank correlation is judged by its limit alone.

    Two neighbours that change places among n images cost 12 / (n³ - n), 0.0015 of 20 images, and of
    few images some do by chance. Where drift within rounding counts as none, none do.

    Args:
        limits: with one on rank correlation.
    """
    loss = 1 - (limits.min_spearman or 0.0)
    if limits.rounding is not None or loss <= 0:
        return 2
    return next(n for n in itertools.count(2) if loss * (n**3 - n) >= 12 * _SWAPS)


def least_by_chance(limits: Limits, images: int) -> float:
    """Rank correlation that an artifact at the limit keeps in 97% of all samples of few images.

    Of enough images it is the limit. `tests/verification/test_limits.py` draws samples.

    Args:
        limits: with one on rank correlation.
        images: number of them; one or none has no rank, and explains anything.
    """
    limit, enough = limits.min_spearman or 0.0, images_that_rank(limits)
    if images >= enough:
        return limit
    if images < 2:
        return -1.0
    two_swaps = 24 / (images**3 - images)
    return 1 - max(2 * (1 - limit) * enough / images, two_swaps)


def loss_by_chance(limits: Limits, records: Iterable[ImageRecord]) -> float:
    """What AUROC loses by two pairs of images of both labels that change places; 0 of enough.

    They do by chance, and of few images each costs more than a default limit allows: 0.0025 of 20
    and 20. No more than 0.02 is explained so. Where drift within rounding counts as none, none do.

    Args:
        limits: with one on AUROC.
        records: of the images.
    """
    labels = [one.anomalous for one in records if one.finite]
    pairs = labels.count(True) * labels.count(False)
    if limits.rounding is not None or not pairs:
        return 0.0
    loss = min(round(_PAIRS / pairs, _AUROC_DIGITS), _MOST_BY_CHANCE)
    return loss if loss > -(limits.min_auroc_delta or 0.0) else 0.0


def parity_checks(
    found: ParityFigures,
    limits: Limits,
    records: Sequence[ImageRecord] = (),
    given: Collection[str] = (),
) -> list[Check]:
    """Judge figures; outputs that are not finite or contradict each other always fall short.

    Args:
        found: the figures.
        limits: to hold.
        records: whose names stand in the line on scores that are not finite.
        given: limits that somebody set: those on rank correlation and AUROC are then no others of
            few images.
    """
    named = [f"{one.name} ({one.not_finite_of})" for one in records if not one.finite]
    names = f": {', '.join(named[:_NAMED])}{', …' if len(named) > _NAMED else ''}" if named else ""
    checks = [
        Check(
            "finite",
            found.not_finite == 0,
            f"{found.not_finite} of {found.images} images have scores that are not finite{names}",
        ),
        Check(
            "outputs",
            found.inconsistent == 0,
            "pred_score, pred_label or pred_mask contradicts raw score and map on "
            f"{found.inconsistent} of {found.images} images",
        ),
    ]
    if limits.max_drift is not None:
        checks.append(at_most("drift", "largest drift", found.drift_max, limits.max_drift))
    if limits.max_flips is not None and found.flips is not None:
        checks.append(_flips_check(found, found.flips, limits.max_flips, limits.rounding))
    ranks, area = found.spearman, found.auroc
    if limits.rounding is not None:
        ranks = found.settled_spearman if found.settled_spearman is not None else ranks
        area = found.settled_auroc if found.settled_auroc is not None else area
    if limits.min_spearman is not None and ranks is not None:
        images = found.images - found.not_finite
        of_few = "min_spearman" not in given and images < images_that_rank(limits)
        certain = least_by_chance(limits, images) if of_few else limits.min_spearman
        held = ranks >= limits.min_spearman
        if held or ranks < certain:  # between the two, nobody knows
            told = f"; by chance {images} images give {certain:.4f} at least" if of_few else ""
            checks.append(
                Check(
                    "spearman",
                    held,
                    f"Spearman {_rounded_down(ranks)}{_settled(ranks, found.spearman)}, "
                    f"limit {limits.min_spearman:g}{'' if held else told}",
                )
            )
    if limits.max_map_drift is not None and found.map_max is not None:
        checks.append(
            at_most(
                "map",
                "largest difference of a map, as a fraction of the maps' range,",
                found.map_max,
                limits.max_map_drift,
            )
        )
    if (
        limits.min_auroc_delta is not None
        and area is not None
        and found.auroc_reference is not None
    ):
        delta = round(area - found.auroc_reference, _AUROC_DIGITS)
        chance = 0.0 if "min_auroc_delta" in given else loss_by_chance(limits, records)
        held = delta >= limits.min_auroc_delta
        if held or not chance or delta < -chance:  # between the two, nobody knows
            told = f"; of few images {-chance:+.4f} says nothing" if chance else ""
            checks.append(
                Check(
                    "auroc",
                    held,
                    f"AUROC {area:.4f}{_settled(area, found.auroc)}, reference "
                    f"{found.auroc_reference:.4f} ({delta:+.4f}), limit "
                    f"{limits.min_auroc_delta:+g}{'' if held else told}",
                )
            )
    return checks


def _flips_check(found: ParityFigures, flips: int, limit: float, rounding: float | None) -> Check:
    """Ties count neither as flips nor among the images: they say nothing of others."""
    settled = flips if rounding is None or found.settled_flips is None else found.settled_flips
    ties = flips - settled
    images = found.images - ties
    rate = proportion_interval(settled, images)
    told = ""
    if ties:
        those = "1 more is a tie" if ties == 1 else f"{ties} more are ties"
        told = f"; {those}, as near to the threshold as rounding ({ROUNDING:g} drift units)"
    return Check(
        "flips",
        rate.value <= limit,
        f"{settled} of {images} decisions flipped ({rate.value:.2%}, at most "
        f"{100 * rate.high:.3g}% of such images, 95%), limit {limit:.1%}{told}",
    )


def latency_checks(
    artifact: LatencyFigures, reference: LatencyFigures, speedup: Speedup, limits: Limits
) -> list[Check]:
    """Judge an artifact's latency and its speed-up; a disturbed measurement proves neither."""
    checks = []
    if limits.max_latency_ms is not None:
        highest = median_interval(np.array(artifact.samples_ms)).high
        words = f"median latency {artifact.median_ms:.3g} ms, upper end of its 95% interval in ms"
        found = at_most("latency", words, highest, limits.max_latency_ms)
        checks.append(_undisturbed(_of_enough(found, artifact), artifact))
    if limits.min_speedup is not None:
        floor = artifact.floor or 1.0
        proven = speedup.ratio.low / floor
        divided = f", divided by the A/A floor {floor:.3f}: {proven:.3f}" if artifact.floor else ""
        found = Check(
            "speedup",
            proven >= limits.min_speedup,
            f"speed-up {speedup.ratio.value:.3f}, 95% interval from {speedup.ratio.low:.3f}"
            f"{divided}, limit {limits.min_speedup:g}",
        )
        checks.append(_undisturbed(_of_enough(found, artifact), artifact, reference))
    return checks


def size_checks(megabytes: float, latency: LatencyFigures | None, limits: Limits) -> list[Check]:
    """Judge the artifact's size on disk, and the memory that it took while latency was measured."""
    checks = []
    if limits.max_size_mb is not None:
        words = "size of the artifact's files in MB"
        checks.append(at_most("size", words, megabytes, limits.max_size_mb))
    peak = latency.footprint.peak_mb if latency and latency.footprint else None
    if limits.max_memory_mb is not None and peak is not None:
        words = "peak memory of a process that runs it in MB"
        checks.append(at_most("memory", words, peak, limits.max_memory_mb))
    return checks


def disturbance(*measured: LatencyFigures) -> str | None:
    """What disturbed a measurement, for a reader; None where nothing did."""
    names = [f"{each.disturbed_calls:.0%} of {each.name}" for each in measured if each.disturbed]
    if not names:
        return None
    return (
        f"other programs took the processors while latency was measured (calls that waited: "
        f"{', '.join(names)}): measure again on a quiet machine, or with fewer --threads"
    )


def instability(*measured: LatencyFigures) -> str | None:
    """Whose calls differ from calls of its own, for a reader; None where none do.

    A speed-up is divided by the floor in any case: this alone makes no limit fall short.
    """
    names = [f"{one.name} by up to {one.floor or 1:.2f}" for one in measured if one.unlike_itself]
    if not names:
        return None
    return (
        f"the latency measurement was disturbed: timed against itself, {', '.join(names)} times: "
        "measure again on a quiet machine, or in more --rounds"
    )


def _of_enough(check: Check, artifact: LatencyFigures) -> Check:
    """Fewer rounds have no interval that means anything."""
    rounds = len(artifact.samples_ms)
    if rounds >= _FEWEST_ROUNDS:
        return check
    few = f"of {rounds} where {_FEWEST_ROUNDS} rounds are needed"
    return Check(check.name, held=False, line=f"{check.line}; {few}")


def _settled(value: float, plain: float | None) -> str:
    """What a figure would be without forgiving rounding, where that makes a difference."""
    if value == plain or plain is None:
        return ""
    return f" ({_rounded_down(plain)} with drift up to {ROUNDING:g}, which counts as none)"


def _rounded_down(value: float) -> str:
    """Five digits of a correlation; what falls short by less must not seem to hold."""
    return f"{math.floor(value * 1e5) / 1e5:.5f}"


def _undisturbed(check: Check, *measured: LatencyFigures) -> Check:
    reason = disturbance(*measured)
    return (
        check if reason is None else Check(check.name, held=False, line=f"{check.line}; {reason}")
    )


def at_most(name: str, what: str, value: float, limit: float) -> Check:
    """Judge a value that must not be above a limit; `what` says in the line what it is."""
    held = value <= limit
    shown = f"{value:.3g}"
    if not held and shown == f"{limit:.3g}":
        shown = f"{value:.9g}"  # rounded, it would seem to hold
    return Check(name, held, f"{what} {shown}, limit {limit:g}")
