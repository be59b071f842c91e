"""Solar cells of the package elpv-dataset, in a random order that stays."""

import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

INTACT, DEFECTIVE = 0.0, 1.0


def shuffled_cells(kind: str, probability: float, rng: np.random.Generator) -> list[Path]:
    """Cells of a kind, `mono` or `poly`, that are defective with this probability."""
    spec = find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        sys.exit("the benchmark needs the package elpv-dataset: pip install 'vadexport[demo]'")
    data = Path(spec.origin).parent / "data"
    rows = [line.split() for line in (data / "labels.csv").read_text().splitlines()]
    names = [row[0] for row in rows if row[2] == kind and float(row[1]) == probability]
    return [data / name for name in rng.permutation(names)]


def copy_cells(folder: Path, kind: str, parts: Mapping[str, int]) -> None:
    """Copy as many cells as `parts` says into each of these folders, none into two.

    A part's last name says which cells it takes: `good` or `defective`.
    """
    rng = np.random.default_rng(0)
    left = {
        name: iter(shuffled_cells(kind, probability, rng))
        for name, probability in (("good", INTACT), ("defective", DEFECTIVE))
    }
    for part, count in parts.items():
        (folder / part).mkdir(parents=True)
        for _ in range(count):
            shutil.copy(next(left[Path(part).name]), folder / part)
