"""Which normal images set INT8 ranges: a diverse subset against a random one, on solar cells.

Ranges are the largest magnitudes that the inputs of EfficientNet-Lite0's convolutions reach on the
chosen images (what INT8 is calibrated to). Chosen from 400 of 580 intact cells of elpv-dataset,
judged on the other 180 and on 200 defective ones a kind, means over several draws of the 400:

- clipped: values beyond the range, a million, mean over layers and images;
- images: share of images with a value beyond the range, mean over layers;
- excess: how far beyond the range an image's largest value lies, in its worst layer; mean;
- range: against that of all 400, geometric mean over layers (a wider one has coarser steps).

    python benchmarks/calibration_sets.py [--intact 580] [--pool 400] [--defective 200] [--draws 10]
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cells import DEFECTIVE, INTACT, shuffled_cells
from torch import Tensor, nn

from vadexport.backends.base import available_threads
from vadexport.calibration.diversity import description, spread_out
from vadexport.contract import ImageArray, ImageInput
from vadexport.detectors.backbones import create_backbone
from vadexport.detectors.preprocessing import Preprocessing, PreprocessingConfig
from vadexport.images import decode
from vadexport.machine import processor_name

INPUT = ImageInput(300, 300, 1)
#: Bins are the upper bits of a float32's magnitude: 32 a power of two, from 2^-12 to 2^12.
_SHIFT, _LOWEST, _BINS = 18, (127 - 12) * 32, 24 * 32
_EDGES = (np.arange(_LOWEST, _LOWEST + _BINS, dtype=np.int32) << _SHIFT).view(np.float32)

Choice = Callable[["Cells", np.ndarray, int, int], np.ndarray]


@dataclass(frozen=True)
class Cells:
    """Images and what the backbone's layers are given on them.

    Attributes:
        largest: magnitude at each layer, `[images, layers]`.
        counts: of magnitudes at each layer, `[images, layers, bins]`.
        pooled: mean of each channel of the compared features, `[images, channels]`.
        described: by vadexport's own, cheap description, `[images, D]`.
        seconds: that describing an image took.
    """

    largest: np.ndarray
    counts: np.ndarray
    pooled: np.ndarray
    described: np.ndarray
    seconds: float

    @classmethod
    def measured(cls, paths: Sequence[Path]) -> "Cells":
        """Decode the images and run the backbone on each."""
        backbone = create_backbone("efficientnet_lite0", (2, 3), pretrained=True).eval()
        prepared = Preprocessing(PreprocessingConfig.of_network(backbone, INPUT, (300, 300)))
        seen: list[Tensor] = []
        for layer in backbone.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
        found, took = [], 0.0
        with torch.inference_mode():
            for path in paths:
                image: ImageArray = decode(path, 1)
                before = time.perf_counter()
                described = description(image)
                took += time.perf_counter() - before
                seen.clear()
                features = backbone(prepared(torch.from_numpy(image)[None]))
                pooled = torch.cat([level.mean(dim=(0, 2, 3)) for level in features])
                found.append(
                    (
                        [float(given.abs().max()) for given in seen],
                        [_histogram(given) for given in seen],
                        pooled.numpy(),
                        described,
                    )
                )
        largest, counts, pooled, described = (np.array(part) for part in zip(*found, strict=True))
        return cls(largest, counts, pooled, described, took / len(paths))

    def __len__(self) -> int:
        return len(self.largest)

    def __getitem__(self, which: slice) -> "Cells":
        return Cells(*(part[which] for part in self.parts), self.seconds)

    def with_more(self, other: "Cells") -> "Cells":
        """These images and those of `other`."""
        pairs = zip(self.parts, other.parts, strict=True)
        return Cells(*(np.concatenate(pair) for pair in pairs), self.seconds)

    @property
    def parts(self) -> tuple[np.ndarray, ...]:
        """All that is known of each image."""
        return self.largest, self.counts, self.pooled, self.described


def _histogram(values: Tensor) -> np.ndarray:
    bins = (values.abs().view(torch.int32) >> _SHIFT).flatten() - _LOWEST
    return torch.bincount(bins.clamp_(0, _BINS - 1), minlength=_BINS).numpy().astype(np.int32)


def main() -> None:
    """Print a table for each kind of cells and number of calibration images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--intact", default=580, type=int, help="cells of a kind")
    parser.add_argument("--pool", default=400, type=int, help="of them, to choose from")
    parser.add_argument("--defective", default=200, type=int, help="cells of a kind")
    parser.add_argument("--draws", default=10, type=int, help="of the pool")
    options = parser.parse_args()
    print(f"{processor_name()}, {available_threads()} threads, {platform.system()}")
    kinds = ("mono", "poly")
    intact = {kind: Cells.measured(cells(kind, INTACT)[: options.intact]) for kind in kinds}
    defective = {
        kind: Cells.measured(cells(kind, DEFECTIVE)[: options.defective]) for kind in kinds
    }
    others = options.intact * 7 // 100
    mixed = intact["mono"][: options.intact - others].with_more(intact["poly"][:others])
    sets = {
        "monocrystalline": (intact["mono"], defective["mono"]),
        "polycrystalline": (intact["poly"], defective["poly"]),
        "7% polycrystalline": (mixed, defective["mono"].with_more(defective["poly"])),
    }
    for name, (normal, anomalous) in sets.items():
        print(f"\n{name}: {len(normal)} intact, {len(anomalous)} defective cells;", end=" ")
        print(f"description {1e3 * normal.seconds:.1f} ms an image")
        compare(normal, anomalous, options.pool, options.draws)


def cells(kind: str, probability: float) -> list[Path]:
    """Cells of a kind in a random order that stays."""
    return shuffled_cells(kind, probability, np.random.default_rng(0))


def compare(normal: Cells, anomalous: Cells, size: int, draws: int) -> None:
    """Print the rows of a set of cells."""
    print("images  choice             range   held-out intact            defective")
    print("                                   clipped  images  excess    clipped  images  excess")
    for count in (16, 50, 100):
        for name, choice in CHOICES.items():
            rows = []
            for draw in range(draws):
                order = np.random.default_rng(draw).permutation(len(normal))
                pool, held_out = order[:size], order[size:]
                chosen = choice(normal, pool, count, draw)
                reach = normal.largest[chosen].max(axis=0)
                wide = np.exp(np.log(reach / normal.largest[pool].max(axis=0)).mean())
                judged = judge(reach, normal, held_out) + judge(reach, anomalous, slice(None))
                rows.append((wide, *judged))
            mean = np.mean(rows, axis=0)
            print(
                f"{count:<7} {name:<18} {mean[0]:.3f}   "
                f"{mean[1]:7.2f}  {mean[2]:6.3f}  {mean[3]:6.3f}    "
                f"{mean[4]:7.2f}  {mean[5]:6.3f}  {mean[6]:6.3f}"
            )


def judge(reach: np.ndarray, cells: Cells, which: np.ndarray | slice) -> tuple[float, float, float]:
    """Clipped values a million, share of images, and mean excess."""
    largest, counts = cells.largest[which], cells.counts[which]
    beyond = counts * (reach[:, None] < _EDGES)
    clipped = 1e6 * (beyond.sum(axis=2) / counts.sum(axis=2)).mean()
    excess = np.maximum(largest / reach - 1, 0).max(axis=1).mean()
    return clipped, (largest > reach).mean(), excess


def at_random(_cells: Cells, pool: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The seed's."""
    return np.random.default_rng(seed).choice(pool, count, replace=False)


def spread(points: Callable[[Cells], np.ndarray]) -> Choice:
    """Greedy k-centre."""

    def choice(cells: Cells, pool: np.ndarray, count: int, _seed: int) -> np.ndarray:
        return pool[spread_out(points(cells)[pool], count)]

    return choice


CHOICES: dict[str, Choice] = {
    "random": at_random,
    "diverse (pixels)": spread(lambda cells: cells.described),
    "diverse (features)": spread(lambda cells: cells.pooled),
}


if __name__ == "__main__":
    main()
