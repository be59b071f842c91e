"""What a form of a graph does to scores and maps, held against the float graph."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport.backends.base import RunnerOpener, outputs_of
from vadexport.calibration.observing import run_graph
from vadexport.contract import ANOMALY_MAP, RAW_SCORE, Call

#: Of drifts to images, and how many images they are dealt to.
_DEALS: Final = 20
_MANY: Final = 2000
#: From the first quartile of a normal distribution to its third, in standard deviations.
_NORMAL_QUARTILES: Final = 1.349

#: Raw scores and maps, float64, by name.
Scored = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Bounds:
    """What of the images judged must hold for the search to stop.

    Attributes:
        drift: largest drift of a normal image, in raw score units.
        maps: largest difference of a map, as a fraction of the maps' mean range.
        spearman: least rank correlation to expect with the float graph's raw scores.
        threshold: decisions that lie on its other side are flips, of which none may be; None where
            the detector makes none.
    """

    drift: float
    maps: float
    spearman: float
    threshold: float | None


@dataclass(frozen=True)
class Judged:
    """Scores of a form against those of the float graph.

    Attributes:
        drift: largest, of normal images, in raw score units.
        rms: of all images, likewise.
        spearman: rank correlation of raw scores to expect, see `expected_rank_correlation`.
        flips: decisions that changed.
        maps: largest difference of a map, as a fraction of the maps' mean range.
    """

    drift: float
    rms: float
    spearman: float
    flips: int
    maps: float

    def holds(self, bounds: Bounds) -> bool:
        """Whether nothing is beyond its bound; NaN never holds."""
        return not self.beyond(bounds)

    def beyond(self, bounds: Bounds) -> tuple[str, ...]:
        """What is beyond its bound, in words."""
        within = {
            "drift of normal images": self.drift <= bounds.drift,
            f"rank correlation {self.spearman:.5f}, limit {bounds.spearman:g}": (
                self.spearman >= bounds.spearman
            ),
            f"maps by {self.maps:.2g} of their range, limit {bounds.maps:g}": (
                self.maps <= bounds.maps
            ),
            f"{self.flips} decisions flipped": not self.flips,
        }
        return tuple(words for words, held in within.items() if not held)


def judge_compiled(
    open_runner: RunnerOpener,
    graph: Path,
    calls: tuple[Sequence[Call], int],
    threshold: float | None,
) -> Judged:
    """Hold what a backend compiled against a float graph. To be run in a child process.

    Args:
        open_runner: opens what was compiled.
        graph: ONNX file of the float graph, which ONNX Runtime runs.
        calls: that judge, and how many of them are of normal images, which come first.
        threshold: of decisions; None where the detector makes none.
    """
    model = onnx.load(graph)
    names = judged_names(model)
    runner = open_runner()
    outputs = (outputs_of(runner, call) for call in calls[0])
    found = joined(([each[name] for name in names] for each in outputs), names)
    expected = joined(run_graph(model, calls[0], names), names)
    normal = sum(len(call) for call in calls[0][: calls[1]])
    return compared(expected, found, normal, threshold)


def judged_names(model: onnx.ModelProto) -> list[str]:
    """Outputs that a graph is judged by: the raw score, and the map where it has one."""
    there = {output.name for output in model.graph.output}
    return [name for name in (RAW_SCORE, ANOMALY_MAP) if name in there]


def joined(outputs: Iterable[Sequence[NDArray[Any]]], names: Sequence[str]) -> Scored:
    """Outputs of one call after the other, in the order of `names`, as one array of each."""
    found = zip(*outputs, strict=True)
    return {
        name: np.concatenate(values).astype(np.float64)
        for name, values in zip(names, found, strict=True)
    }


def compared(expected: Scored, found: Scored, normal: int, threshold: float | None) -> Judged:
    """Scores and maps against those of the float graph, of normal images first."""
    before, after = expected[RAW_SCORE], found[RAW_SCORE]
    maps = 0.0
    if ANOMALY_MAP in found:
        usual = np.ptp(expected[ANOMALY_MAP], axis=(1, 2, 3)).mean() or 1.0
        maps = float(np.abs(found[ANOMALY_MAP] - expected[ANOMALY_MAP]).max() / usual)
    flips = 0
    if threshold is not None:
        flips = int(np.count_nonzero((after > threshold) != (before > threshold)))
    return Judged(
        drift=float(np.abs(after - before)[:normal].max()),
        rms=float(np.sqrt(np.square(after - before).mean())),
        spearman=expected_rank_correlation(before, after - before, normal),
        flips=flips,
        maps=maps,
    )


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's, 1 where either has no order."""
    from scipy.stats import rankdata

    ranks = [rankdata(each) for each in (one, other)]
    spread = [each - each.mean() for each in ranks]
    size = float(np.sqrt((spread[0] ** 2).sum() * (spread[1] ** 2).sum()))
    return float((spread[0] * spread[1]).sum()) / size if size else 1.0


def expected_rank_correlation(
    expected: NDArray[np.float64], drifts: NDArray[np.float64], normal: int
) -> float:
    """Spearman's to expect of many images whose scores are spread, and drift, as these.

    Of few images it hangs on which neighbours happen to change places, and one such change costs
    more the fewer there are. So many are drawn from a smooth distribution of these, of normal
    images and of the others apart (a smoothed bootstrap, its width by Silverman 1986, eq. 3.31),
    and drifts of their kind are dealt to them.

    Args:
        expected: raw scores [n], of normal images first.
        drifts: of the same images, [n].
        normal: how many are normal.
    """
    random = np.random.Generator(np.random.PCG64(0))
    kinds = [
        (expected[kind], drifts[kind], _MANY * len(expected[kind]) // len(expected))
        for kind in (slice(normal), slice(normal, None))
    ]
    found = []
    for _ in range(_DEALS):
        scores = np.concatenate([_drawn(each, count, random) for each, _, count in kinds])
        dealt = [random.permutation(np.resize(each, count)) for _, each, count in kinds]
        found.append(rank_correlation(scores + np.concatenate(dealt), scores))
    return float(np.mean(found))


def _drawn(
    scores: NDArray[np.float64], count: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """So many scores from a smooth distribution of these."""
    width = 0.0
    if len(scores) > 1:
        deviation = scores.std(ddof=1)
        between = np.subtract(*np.quantile(scores, (0.75, 0.25))) / _NORMAL_QUARTILES
        width = 0.9 * min(deviation, between or deviation) * len(scores) ** -0.2
    return np.resize(scores, count) + width * random.normal(size=count)
