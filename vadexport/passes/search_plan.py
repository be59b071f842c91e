"""How a bank is searched in INT8 or few directions, and what that does to distances of queries."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vadexport.passes.nearest_neighbours import CentredBank

Float32 = NDArray[np.float32]

#: Rows of a tile, whose distances are computed at once and stay in the cache.
TILE: Final = 512
#: Rows of a block, each of which names one candidate: powers of two, so that codes divide exactly.
_BLOCKS: Final[tuple[int, ...]] = (512, 128, 32)
#: Whole numbers below it are exact in float32.
_EXACT: Final = 2.0**24
#: How much longer than any seen a query may be before its candidates are named less exactly.
_HEADROOM: Final = 4.0
#: Steps of a row to either side of 0, and of a query.
STEPS: Final = 127
_SHORTLISTS: Final = (1, 2, 4, 8, 16)
_MOST_QUERIES: Final = 4096
#: Of the bank's width, directions that INT8 looks in, fewest first, in whole vectors of int8.
_SHARES: Final = (1 / 12, 1 / 6, 1 / 4, 3 / 8, 1 / 2)
_VECTOR: Final = 32
#: A pair must take fewer products at least by this factor than in all directions; and to look for
#: the smallest of many small blocks would cost what that saves.
_LEAST_GAIN: Final = 1.5
_LEAST_BLOCK: Final = 128
_AT_ONCE: Final = 512


class QuantisedBank(NamedTuple):
    """A centred bank in int8, symmetric, one step a row, in all directions or in `r` of them.

    Attributes:
        rows: int8 [M, D], or [M, r]; float32 where it is not rounded.
        steps: float32 [M].
        norms: squared lengths of the rounded rows, and of what lies in no direction, float32 [M].
    """

    rows: NDArray[np.int8] | Float32
    steps: Float32
    norms: Float32

    @classmethod
    def unrounded(cls, bank: CentredBank, directions: Float32) -> "QuantisedBank":
        """What a bank's rows are in some directions, orthonormal [D, r], in steps of one."""
        return cls(bank.rows @ directions, np.ones(len(bank.rows), np.float32), bank.norms)

    @classmethod
    def of(
        cls, bank: CentredBank, directions: Float32 | None = None, steps: int = STEPS
    ) -> "QuantisedBank":
        """Round a bank's rows, or what they are in some directions, orthonormal [D, r].

        Args:
            bank: the rows.
            directions: orthonormal [D, r]; None for the rows as they are.
            steps: that a row's largest value is rounded to.
        """
        exact = bank.rows if directions is None else bank.rows @ directions
        largest = np.abs(exact).max(axis=1)
        sizes = (np.where(largest > 0, largest, 1) / steps).astype(np.float32)
        rows = np.rint(exact / sizes[:, None]).clip(-steps, steps).astype(np.int8)
        norms = np.square(rows.astype(np.float64) * sizes[:, None]).sum(axis=1)
        if directions is not None:
            inside = np.square(exact.astype(np.float64)).sum(axis=1)
            norms += np.maximum(bank.norms - inside, 0.0)
        return cls(rows, sizes, norms.astype(np.float32))


@dataclass(frozen=True)
class SearchPlan:
    """How one search is done in INT8, or in float32 in few directions.

    Attributes:
        step: of the centred queries in int8; None where nothing is rounded.
        block: rows of which one is named.
        levels: whole steps that a unit of squared distance is counted in.
        shortlist: candidates that are measured in float32.
        queries: that the figures below were measured on.
        recall: share of the queries whose nearest row was on the shortlist.
        error: largest that a distance grew by.
        directions: in which candidates are looked for, orthonormal float32 [D, r]; None: in all.
        row_steps: that a row's largest value is rounded to; None where nothing is rounded.
    """

    step: float | None
    block: int
    levels: float
    shortlist: int
    queries: int
    recall: float
    error: float
    directions: Float32 | None = field(default=None, compare=False)
    row_steps: int | None = STEPS


def plan_search(
    bank: CentredBank, queries: Float32, limit: float, row_steps: int | None = STEPS
) -> SearchPlan | None:
    """Find the fewest directions and the shortest shortlist that keep distances.

    Of one number of directions, the shortest shortlist goes first, then the largest blocks.

    Args:
        bank: what is searched.
        queries: [n, D] of images that ranges may be taken from, not centred. Of more than 4,096
            as many, evenly spaced, are looked up; ranges are those of all.
        limit: that no distance (not squared) may grow beyond.
        row_steps: that a row's largest value is rounded to in INT8; None to look for candidates in
            float32, in few directions alone.

    Returns:
        None where not even the longest shortlist of the smallest blocks keeps to the limit.
    """
    centred = queries - bank.mean
    chosen = np.linspace(0, len(queries) - 1, min(len(queries), _MOST_QUERIES)).astype(int)
    true = _nearest(bank, centred[chosen])
    for directions in (*_directions(bank), *([None] if row_steps else [])):
        looked_in = looked_in_bank(bank, directions, row_steps)
        plan = _plan(bank, looked_in, centred, chosen, true, directions, limit)
        if plan is not None:
            return replace(plan, row_steps=row_steps)
    return None


def looked_in_bank(
    bank: CentredBank, directions: Float32 | None, row_steps: int | None
) -> QuantisedBank:
    """What candidates are looked for in; raises ValueError for all directions in float32."""
    if row_steps is not None:
        return QuantisedBank.of(bank, directions, row_steps)
    if directions is None:
        raise ValueError("a search in float32 is one in few directions")
    return QuantisedBank.unrounded(bank, directions)


def _directions(bank: CentredBank) -> Iterator[Float32]:
    """Those that the bank varies most in (PCA), few first, where looking in them gains.

    Each set is turned at random within its span: so all of its directions reach as far, and share
    the steps of int8 fairly.
    """
    rows, width = bank.rows.shape
    counts = sorted({round(share * width / _VECTOR) * _VECTOR for share in _SHARES})
    counts = [n for n in counts if n and _LEAST_GAIN * n * (rows + width) <= rows * width]
    if not counts:
        return
    exact = bank.rows.astype(np.float64)
    _, found = np.linalg.eigh(exact.T @ exact)
    random = np.random.Generator(np.random.PCG64(0))
    for count in counts:
        turned, _ = np.linalg.qr(random.normal(size=(count, count)))
        yield (found[:, ::-1][:, :count] @ turned).astype(np.float32)


def _plan(  # noqa: PLR0913, PLR0917
    bank: CentredBank,
    looked_in: QuantisedBank,
    centred: Float32,
    chosen: NDArray[np.int64],
    true: NDArray[np.float64],
    directions: Float32 | None,
    limit: float,
) -> SearchPlan | None:
    """The plan in some directions, or all; `true` are distances of the chosen queries."""
    seen, blocks = centred, _BLOCKS
    if directions is not None:
        seen = centred @ directions
        blocks = tuple(block for block in _BLOCKS if block >= _LEAST_BLOCK)
    step, rounded = None, seen
    if looked_in.rows.dtype == np.int8:
        step = float(np.abs(seen).max(initial=0.0)) / STEPS or 1.0
        rounded = _rounded(seen, step)
    longest = float(np.square(rounded.astype(np.float64)).sum(axis=1).max(initial=0.0)) or 1.0
    levels = {block: _EXACT / block / _HEADROOM / longest for block in blocks}
    worst = np.zeros((len(blocks), len(_SHORTLISTS)))
    missed = np.zeros_like(worst)
    done = 0
    for found in _found(bank, looked_in, centred[chosen], rounded[chosen], levels):
        grown = found - true[done : done + len(found), None, None]
        done += len(found)
        worst = np.maximum(worst, grown.max(axis=0))
        missed += (grown > 0).sum(axis=0)
        if worst.min() > limit:
            return None
    for place, shortlist in enumerate(_SHORTLISTS):
        for number, block in enumerate(blocks):
            if worst[number, place] <= limit:
                recall = 1 - float(missed[number, place]) / max(done, 1)
                figures = (len(chosen), recall, float(worst[number, place]))
                return SearchPlan(step, block, levels[block], shortlist, *figures, directions)
    return None


def _nearest(bank: CentredBank, centred: Float32) -> NDArray[np.float64]:
    """Distance of each query to its nearest row."""
    found = [np.zeros(0)]
    for start in range(0, len(centred), _AT_ONCE):
        part = centred[start : start + _AT_ONCE]
        rows = (bank.norms - part @ (2 * bank.rows.T)).argmin(axis=1)
        found.append(_distances(bank, part, rows[:, None])[:, 0])
    return np.concatenate(found)


def _found(
    bank: CentredBank,
    looked_in: QuantisedBank,
    centred: Float32,
    rounded: Float32,
    levels: dict[int, float],
) -> Iterator[NDArray[np.float64]]:
    """Distances to the nearest candidate: [queries, blocks, shortlists]."""
    weights = looked_in.rows.astype(np.float32).T * (2 * looked_in.steps)
    for start in range(0, len(centred), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        seeming = looked_in.norms - rounded[part] @ weights
        found = []
        for block, level in levels.items():
            candidates = named_rows(seeming, block, level)[:, : max(_SHORTLISTS)]
            # Of candidates in the order in which they are taken, the nearest so far.
            best = np.minimum.accumulate(_distances(bank, centred[part], candidates), axis=1)
            last = [min(count, best.shape[1]) - 1 for count in _SHORTLISTS]
            found.append(best[:, last])
        yield np.stack(found, axis=1)


def named_rows(seeming: Float32, block: int, levels: float) -> NDArray[np.int64]:
    """Each block's candidate by distances [n, M], the best block's first: rows [n, blocks]."""
    queries, rows = seeming.shape
    blocks = -(-rows // block)
    codes = np.full((queries, blocks * block), np.inf, np.float32)  # as the graph has them
    places = (np.arange(rows) % block).astype(np.float32)
    codes[:, :rows] = np.floor(seeming * np.float32(levels)) * np.float32(block) + places
    codes = codes.reshape(queries, blocks, block)
    named = codes.argmin(axis=2) + np.arange(blocks) * block
    order = codes.min(axis=2).argsort(axis=1, kind="stable")
    return np.take_along_axis(named, order, axis=1)


def _distances(bank: CentredBank, centred: Float32, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    difference = centred[:, None].astype(np.float64) - bank.rows[rows]
    found: NDArray[np.float64] = np.sqrt(np.square(difference).sum(axis=2))
    return found


def _rounded(centred: Float32, step: float) -> Float32:
    """What int8 makes of centred queries."""
    scale = np.float32(step)
    found: Float32 = np.rint(centred / scale).clip(-STEPS - 1, STEPS) * scale
    return found
