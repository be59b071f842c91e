"""Which approximations of a graph scores allow, found on normal images and planted defects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport.calibration.observing import run_graph
from vadexport.calibration.synthetic_defects import planted
from vadexport.contract import ANOMALY_MAP, RAW_SCORE, Call, ImageArray, ImageInput
from vadexport.images import ImageFile, load_images
from vadexport.passes import APPROXIMATIONS, Approximation, apply_passes

#: Images that choose, as they are and with a planted defect each.
_MOST_IMAGES: Final = 16
_SEED: Final = 0


@dataclass(frozen=True)
class Moved:
    """How far outputs are from those of the graph that is not approximated.

    Attributes:
        scores: largest difference of a raw score.
        maps: largest difference of a map, as a fraction of their mean range; 0 where there is none.
    """

    scores: float
    maps: float


@dataclass(frozen=True)
class Approximated:
    """An approximation that was chosen, and what came of it and of those before it.

    Attributes:
        rewrite: itself.
        words: what it did, for a reader.
        chosen_on: on normal images and planted defects.
        checked_on: on check images.
    """

    rewrite: Approximation
    words: str
    chosen_on: Moved
    checked_on: Moved


@dataclass(frozen=True)
class Choice:
    """What can be approximated.

    Attributes:
        made: one after the other.
        refused: names of those that no setting of held.
        images: that chose, planted defects included.
    """

    made: tuple[Approximated, ...]
    refused: tuple[str, ...]
    images: int


def choose_approximations(
    model: Path,
    images: tuple[Sequence[ImageFile], ImageArray],
    image_input: ImageInput,
    bounds: Moved,
    progress: Callable[[int, int], None],
) -> Choice:
    """Of each approximation take the setting that saves most within bounds. In a child process.

    They are chosen one after the other. Each may move outputs, together with those before it, by
    its part of the bounds, so that the first leaves something to the others. Settings are found by
    bisection, for what saves less moves less.

    Args:
        model: ONNX file, behind `BEFORE_APPROXIMATIONS`.
        images: normal ones that choose, of which some are taken, evenly spaced, and check images
            `[n, H, W, C]`.
        image_input: the graph's input.
        bounds: of raw scores, in their own units, and of maps.
        progress: told how many settings were tried, of at most how many.

    Raises:
        InputError: an image cannot be read or has the wrong size.
    """
    graph = onnx.load(model)
    files, checks = images
    few = files[:: -(-len(files) // _MOST_IMAGES)]
    normal = [image for _, image in load_images(few, image_input)]
    shown = np.stack([*normal, *planted(normal, _SEED)])
    choosing = _Judge(graph, shown, image_input)
    checking = _Judge(graph, checks, image_input)
    families = [family for family in APPROXIMATIONS if family.candidates(graph)]
    made: list[Approximated] = []
    refused = []
    for number, family in enumerate(families, 1):
        part = number / len(families)
        allowed = Moved(part * bounds.scores, part * bounds.maps)
        found = _largest(family.candidates(graph), graph, choosing, allowed)
        progress(number, len(families))
        if found is None:
            refused.append(family.name)
            continue
        rewrite, approximated, moved = found
        words = rewrite.words(graph, approximated)
        made.append(Approximated(rewrite, words, moved, checking.moved(approximated)))
        graph = approximated
    return Choice(tuple(made), tuple(refused), len(shown))


def _largest(
    candidates: Sequence[Approximation],
    graph: onnx.ModelProto,
    judge: "_Judge",
    allowed: Moved,
) -> tuple[Approximation, onnx.ModelProto, Moved] | None:
    """The first candidate that keeps to what is allowed, the graph it makes, and how it moves."""
    found = None
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        rewrite = candidates[middle]
        made, places = apply_passes(graph, (rewrite,))
        if not places[rewrite.name]:  # nor will those do anything that save less
            high = middle
            continue
        moved = judge.moved(made)
        if moved.scores <= allowed.scores and moved.maps <= allowed.maps:
            high, found = middle, (rewrite, made, moved)
        else:
            low = middle + 1
    return found


class _Judge:
    """Compares graphs with one on the same images."""

    def __init__(self, graph: onnx.ModelProto, images: ImageArray, image_input: ImageInput) -> None:
        outputs = {output.name for output in graph.graph.output}
        self._names = [name for name in (RAW_SCORE, ANOMALY_MAP) if name in outputs]
        # Where the graph takes any number, one at a time needs the least memory.
        alone = replace(image_input, batch=image_input.batch or 1)
        self._calls: list[tuple[Call, int]] = list(alone.batches(images))
        self._expected = self._outputs(graph)

    def moved(self, graph: onnx.ModelProto) -> Moved:
        """How far a graph's outputs are off; infinite where they are not finite."""
        found = self._outputs(graph)
        differences = [np.abs(a - b) for a, b in zip(found, self._expected, strict=True)]
        if not all(np.isfinite(each).all() for each in differences):
            return Moved(np.inf, np.inf)
        maps = 0.0
        if len(differences) > 1:
            expected = self._expected[1].reshape(len(self._expected[1]), -1)
            ranges = expected.max(axis=1) - expected.min(axis=1)
            maps = float(differences[1].max() / (ranges.mean() or 1.0))
        return Moved(float(differences[0].max()), maps)

    def _outputs(self, graph: onnx.ModelProto) -> list[NDArray[np.float32]]:
        """Raw scores, and maps where there are any, of all images."""
        found = run_graph(graph, [call for call, _ in self._calls], self._names)
        cut = [
            [value[:count] for value in values]
            for values, (_, count) in zip(found, self._calls, strict=True)
        ]
        return [np.concatenate(each) for each in zip(*cut, strict=True)]
