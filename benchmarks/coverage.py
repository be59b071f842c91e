"""How often the 95% intervals of what an artifact loses hold the true loss.

Samples are drawn from populations whose loss is known, or computed from very many: raw scores of
normal distributions, to which the artifact adds noise (AUROC, F1), and maps of smooth noise that
are brighter where a defect is (AUPRO). Intervals are only given where enough images changed their
place; how often that is stands beside. Of few trials coverage itself is uncertain: 95% of 1,000 by
1.4 points, of 200 by 3.

    python benchmarks/coverage.py [--trials 1000] [--document docs/latency.md]
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from documents import replace_table
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from vadexport.verification.curves import BestF1
from vadexport.verification.losses import Loss, compare_auroc, compare_f1_max
from vadexport.verification.overlap import MapSpool

#: Share of samples from which on an interval counts as usual.
USUAL: Final = 0.9
SIZES: Final = ((30, 30), (50, 50), (100, 100), (200, 200), (100, 40))
#: AUROC of the reference, and deviation of the noise that the artifact adds.
KINDS: Final = ((0.75, 0.3), (0.75, 1.0), (0.9, 0.3), (0.9, 1.0), (0.97, 0.3), (0.97, 1.0))
#: Height of a defect above the noise, and deviation of the noise that the artifact adds.
MAP_KINDS: Final = ((1.0, 0.3), (1.0, 1.0), (3.0, 1.0))
MAP_SIZE: Final = (24, 32)
MANY: Final = 200_000
MANY_MAPS: Final = 6000

Scores = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


def main() -> None:
    """Print a table, a row for each figure and sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="a fifth of them for AUPRO")
    parser.add_argument("--document", type=Path)
    options = parser.parse_args()
    lines = [
        "| figure | normal + defective | given | covered | of all samples | overstated |",
        "|---|---|---|---|---|---|",
    ]
    for figure, of_images in (("AUROC", auroc_cases), ("F1", f1_cases), ("AUPRO", aupro_cases)):
        trials = options.trials // 5 if figure == "AUPRO" else options.trials
        for images in SIZES:
            cases = list(of_images(images, trials))
            cells = [
                span([case.given for case in cases]),
                span([case.covered for case in cases if case.given >= USUAL]),
                span([case.covered_of_all for case in cases]),
                f"{max(case.too_large for case in cases):.1%}",
            ]
            lines.append(f"| {figure} | {images[0]} + {images[1]} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if options.document:
        replace_table(options.document, "\n".join(lines) + "\n", "coverage")


def span(shares: list[float]) -> str:
    """Smallest and largest."""
    return f"{min(shares):.1%}–{max(shares):.1%}" if shares else "–"


@dataclass(frozen=True)
class Case:
    """What became of the intervals of many samples of one population, as shares of them.

    Attributes:
        given: samples with an interval.
        covered: of those, samples whose interval holds the true loss.
        covered_of_all: likewise of all samples, as if the interval were always given.
        too_large: samples of which `Loss.least` is more than the true loss.
    """

    given: float
    covered: float
    covered_of_all: float
    too_large: float


def coverage(losses: Iterator[Loss], truth: float) -> Case:
    """Count samples; an interval reaches as far up as it does down, to `Loss.least`."""
    found = list(losses)
    given = np.array([one.low is not None for one in found])
    value, least = (np.array([getattr(one, name) for one in found]) for name in ("value", "least"))
    held = np.abs(value - truth) <= value - least
    covered = float(held[given].mean()) if given.any() else 0.0
    return Case(float(given.mean()), covered, float(held.mean()), float((least > truth).mean()))


def drawn(rng: np.random.Generator, images: tuple[int, int], kind: tuple[float, float]) -> Scores:
    """Raw scores of the reference and of the artifact, and labels."""
    separation, noise = kind
    truth = np.repeat([False, True], images)
    reference = rng.normal(size=len(truth)) + 2**0.5 * norm.ppf(separation) * truth
    return reference, reference + noise * rng.normal(size=len(truth)), truth


def auroc_cases(images: tuple[int, int], trials: int) -> Iterator[Case]:
    """Of each kind; the true loss has a closed form."""
    for separation, noise in KINDS:
        shift = 2**0.5 * norm.ppf(separation)
        truth = separation - norm.cdf(shift / (2 * (1 + noise**2)) ** 0.5)
        yield _score_case(compare_auroc, images, (separation, noise), trials, truth)


def f1_cases(images: tuple[int, int], trials: int) -> Iterator[Case]:
    """Of each kind; the true loss is that of very many images in the same proportion."""
    for kind in KINDS:
        many = (MANY, MANY * images[1] // images[0])
        reference, found, labels = drawn(np.random.default_rng(0), many, kind)
        truth = BestF1.of(reference, labels).value - BestF1.of(found, labels).value
        yield _score_case(compare_f1_max, images, kind, trials, truth)


def _score_case(
    compare: Callable[..., object],
    images: tuple[int, int],
    kind: tuple[float, float],
    trials: int,
    truth: float,
) -> Case:
    rng = np.random.default_rng(1)
    return coverage((compare(*drawn(rng, images, kind)).loss for _ in range(trials)), truth)


def aupro_cases(images: tuple[int, int], trials: int) -> Iterator[Case]:
    """Of each kind; the true loss is that of very many images."""
    for kind in MAP_KINDS:
        rng = np.random.default_rng(2)
        many = (MANY_MAPS // 2, MANY_MAPS // 2 * images[1] // images[0])
        truth = _aupro_loss(rng, many, kind).value
        yield coverage((_aupro_loss(rng, images, kind) for _ in range(trials)), truth)


def _aupro_loss(
    rng: np.random.Generator, images: tuple[int, int], kind: tuple[float, float]
) -> Loss:
    height, noise = kind
    with MapSpool("reference", "artifact") as spool:
        for anomalous in np.repeat([False, True], images):
            mask = np.zeros(MAP_SIZE, np.bool_)
            if anomalous:
                y, x = (int(rng.integers(size - 8)) for size in MAP_SIZE)
                mask[y : y + rng.integers(3, 9), x : x + rng.integers(3, 9)] = True
            clean, more = (2 * gaussian_filter(rng.normal(size=MAP_SIZE), 1) for _ in range(2))
            reference = clean + height * gaussian_filter(mask.astype(np.float64), 1)
            maps = {"reference": reference, "artifact": reference + noise * more}
            spool.add(maps, mask if anomalous else None, MAP_SIZE)
        return spool.compared("reference")["artifact"].loss


if __name__ == "__main__":
    main()
