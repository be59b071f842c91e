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
from vadexport.contract import ANOMALY_MAP, RAW_SCORE, Call, Outputs

#: Of drifts to images, and how many images they are dealt to.
_DEALS: Final = 20
_MANY: Final = 2000
#: From the first quartile of a normal distribution to its third, in standard deviations.
_NORMAL_QUARTILES: Final = 1.349

#: Raw scores, and maps where the graph gives any, float64, by name.
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


@dataclass(frozen=True)
class Judging:
    """What forms are judged on.

    Attributes:
        calls: of the graph, those of normal images first, then those of planted defects.
        normal: how many of them are of normal images.
        expected: what the float graph gives for them, see `scored`.
    """

    calls: Sequence[Call]
    normal: int
    expected: Scored

    @property
    def images(self) -> tuple[int, int]:
        """Normal ones, and ones with planted defects."""
        counts = [len(call) for call in self.calls]
        return sum(counts[: self.normal]), sum(counts[self.normal :])

    def compared(self, outputs: Iterable[Outputs], threshold: float | None) -> Judged:
        """A form's outputs for each of the calls against those of the float graph.

        Args:
            outputs: by name.
            threshold: of decisions; None where the detector makes none.
        """
        names = list(self.expected)
        found = _joined(([each[name] for name in names] for each in outputs), names)
        return compared(self.expected, found, self.images[0], threshold)


def judge_compiled(open_runner: RunnerOpener, judging: Judging, threshold: float | None) -> Judged:
    """Hold what a backend compiled against a float graph. To be run in a child process.

    Args:
        open_runner: opens what was compiled.
        judging: what it is judged on.
        threshold: of decisions; None where the detector makes none.
    """
    runner = open_runner()
    return judging.compared((outputs_of(runner, call) for call in judging.calls), threshold)


def scored(graph: Path | onnx.ModelProto, calls: Sequence[Call]) -> Scored:
    """What forms are held against, by ONNX Runtime. To be run in a child process.

    Args:
        graph: in float, or its ONNX file.
        calls: that judge.
    """
    model = onnx.load(graph) if isinstance(graph, Path) else graph
    there = {output.name for output in model.graph.output}
    names = [name for name in (RAW_SCORE, ANOMALY_MAP) if name in there]
    return _joined(run_graph(model, calls, names), names)


def _joined(outputs: Iterable[Sequence[NDArray[Any]]], names: Sequence[str]) -> Scored:
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
