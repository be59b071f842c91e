"""Mahalanobis distances by few directions, `A = c·I ± V·Vᵀ`; with minus as Woodbury has it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import onnx
from onnx import numpy_helper

from vadexport.passes.base import attributes
from vadexport.passes.mahalanobis_forms import (
    AT_ONCE,
    Float32,
    Float64,
    MahalanobisForm,
    make_node,
)

#: Of the largest eigenvalue, what others that count as equal to it may be smaller by.
_ROUNDING: Final = 1e-5
#: Of a squared distance, what float32 may change it by: half of it of a distance.
_MOST_ERROR: Final = 5e-5
#: Positions that are tried first, and those whose vectors are drawn, so many at each.
_TRIED, _DRAWN, _VECTORS = 4, 64, 8
#: LAPACK leaves processors idle on matrices of this size.
_THREADS: Final = 2


@dataclass(frozen=True)
class LowRank:
    """`δᵀ A δ = c ‖δ‖² ± ‖Vᵀ δ‖²` at every position.

    Attributes:
        flat: `c`, float32 [P].
        vectors: `V`, float32 [P, D, r].
        adds: whether the sign is plus.
    """

    flat: Float32
    vectors: Float32
    adds: bool

    def distances(self, offsets: Float32) -> Float32:
        """Squared distances [P, N] of offsets [P, N, D], computed in float32."""
        norms = np.square(offsets).sum(axis=2) * self.flat[:, None]
        squares = np.square(offsets @ self.vectors).sum(axis=2)
        found: Float32 = norms + squares if self.adds else norms - squares
        return found


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and eigenvectors of a form's matrices.

    Attributes:
        values: ascending, float64 [P, D].
        vectors: float32 [P, D, D], columns in that order.
    """

    values: Float64
    vectors: Float32

    @classmethod
    def of(cls, form: MahalanobisForm) -> Self:
        """Computed in float64, some positions at a time."""
        positions, width, _ = form.matrices.shape
        values, vectors = np.empty((positions, width)), np.empty_like(form.matrices)

        def fill(start: int) -> None:
            part = slice(start, start + AT_ONCE)
            values[part], vectors[part] = np.linalg.eigh(form.inverses(part))

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(fill, range(0, positions, AT_ONCE)))
        return cls(values, vectors)

    def flattened(self, rank: int) -> LowRank:
        """The `rank` smallest eigenvalues as they are, for all others their mean."""
        flat = self.values[:, rank:].mean(axis=1)
        kept = slice(0, rank)
        vectors = self._scaled(kept, flat[:, None] - self.values[:, kept])
        return LowRank(flat.astype(np.float32), vectors, adds=False)

    def raised(self, rank: int) -> LowRank:
        """The `rank` largest eigenvalues as they are, for all others their geometric mean."""
        rest = self.values.shape[1] - rank
        flat = np.exp(np.log(self.values[:, :rest]).mean(axis=1))
        kept = slice(rest, None)
        vectors = self._scaled(kept, self.values[:, kept] - flat[:, None])
        return LowRank(flat.astype(np.float32), vectors, adds=True)

    def _scaled(self, kept: slice, squares: Float64) -> Float32:
        """Some eigenvectors, of these squared lengths."""
        lengths = np.sqrt(np.maximum(squares, 0)).astype(np.float32)
        found: Float32 = self.vectors[:, :, kept] * lengths[:, None, :]
        return found


def exact_low_rank(form: MahalanobisForm) -> LowRank | None:
    """The low rank that changes distances by no more than rounding; None where there is none.

    PaDiM adds `ε·I` to covariances. Of `n` images the covariance is of rank `n − 1`, so all other
    directions have the eigenvalue `1/ε` in the inverse, the largest of all: `A = I/ε − V·Vᵀ`.

    `‖δ‖²/ε − ‖Vᵀδ‖²` cancels where the offset lies in the span of the images, the more the larger
    their variance is against ε. So vectors are drawn from the Gaussians themselves, which lie there
    nearly, and their distances in float32 held against float64.
    """
    positions, width, _ = form.matrices.shape
    few = np.unique(np.linspace(0, positions - 1, _TRIED).astype(int))
    if _rank(np.linalg.eigvalsh(form.inverses(few)).astype(np.float64)) > width // 2:
        return None
    spectrum = Spectrum.of(form)
    rank = _rank(spectrum.values)
    if rank > width // 2:
        return None
    found = spectrum.flattened(rank)
    return found if _is_exact(found, form, spectrum) else None


def _rank(values: Float64) -> int:
    """How many eigenvalues are smaller than the largest, at the position where most are.

    All of them where a matrix is not positive definite.
    """
    if values.min() <= 0:
        return int(values.shape[1])
    below = values < values[:, -1:] * (1 - _ROUNDING)
    return int(below.sum(axis=1).max())


def _is_exact(found: LowRank, form: MahalanobisForm, spectrum: Spectrum) -> bool:
    positions, width = spectrum.values.shape
    few = np.unique(np.linspace(0, positions - 1, _DRAWN).astype(int))
    values, vectors = np.linalg.eigh(form.inverses(few))
    random = np.random.Generator(np.random.PCG64(0))
    drawn = random.normal(size=(len(few), _VECTORS, width)) / np.sqrt(values)[:, None]
    offsets = (drawn @ vectors.transpose(0, 2, 1)).astype(np.float32)
    coordinates = offsets.astype(np.float64) @ vectors
    exact = (np.square(coordinates) * values[:, None]).sum(axis=2)
    part = LowRank(found.flat[few], found.vectors[few], found.adds)
    computed = part.distances(offsets)
    return bool((np.abs(computed - exact) <= _MOST_ERROR * exact).all())


def write_low_rank(graph: onnx.GraphProto, form: MahalanobisForm, found: LowRank) -> None:
    """Replace a form's nodes; they stand at the end of the graph, to be sorted."""
    prefix, offsets = form.total.output[0], form.offsets
    options = attributes(form.total)
    kept = bool(options.get("keepdims", 1))
    constants = {
        "flat": found.flat.reshape(-1, 1, 1) if kept else found.flat.reshape(-1, 1),
        "vectors": np.ascontiguousarray(found.vectors),
        "axis": np.array([2]),
        **({} if found.adds else {"zero": np.float32(0)}),
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), f"{prefix}/{name}")
        for name, value in constants.items()
    )
    form.drop(graph)
    steps = [
        ("Mul", [offsets, offsets], "lengths"),
        ("ReduceSum", [f"{prefix}/lengths", f"{prefix}/axis"], "length"),
        ("Mul", [f"{prefix}/length", f"{prefix}/flat"], "flat_part"),
        ("MatMul", [offsets, f"{prefix}/vectors"], "product"),
        ("Mul", [f"{prefix}/product", f"{prefix}/product"], "squares"),
        ("ReduceSum", [f"{prefix}/squares", f"{prefix}/axis"], "sum"),
    ]
    for op, inputs, output in steps:
        more = options if op == "ReduceSum" else {}
        graph.node.append(make_node(op, inputs, f"{prefix}/{output}", **more))
    parts = [f"{prefix}/flat_part", f"{prefix}/sum"]
    if found.adds:
        graph.node.append(make_node("Add", parts, prefix))
        return
    difference = f"{prefix}/difference"
    graph.node.append(make_node("Sub", parts, difference))
    graph.node.append(make_node("Max", [difference, f"{prefix}/zero"], prefix))
