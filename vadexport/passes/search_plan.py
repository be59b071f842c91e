"""How a search of a bank is done in INT8, and what that does to distances, measured on queries."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vadexport.passes.nearest_neighbours import CentredBank

Float32 = NDArray[np.float32]

#: Rows of a tile, whose distances are computed at once and stay in the cache.
TILE: Final = 512
#: Rows of a block, each of which names one candidate: powers of two, so that codes divide exactly.
_BLOCKS: Final = (512, 128, 32)
#: Whole numbers below it are exact in float32.
_EXACT: Final = 2.0**24
#: How much longer than any seen a query may be before its candidates are named less exactly.
_HEADROOM: Final = 4.0
_LARGEST: Final = 127
_SHORTLISTS: Final = (1, 2, 4, 8, 16)
_MOST_QUERIES: Final = 4096
_AT_ONCE: Final = 512


class QuantisedBank(NamedTuple):
    """A centred bank in int8, symmetric, one step a row.

    Attributes:
        rows: int8 [M, D].
        steps: float32 [M].
        norms: squared lengths of the rounded rows, float32 [M].
    """

    rows: NDArray[np.int8]
    steps: Float32
    norms: Float32

    @classmethod
    def of(cls, bank: CentredBank) -> "QuantisedBank":
        """Round a bank's rows."""
        largest = np.abs(bank.rows).max(axis=1)
        steps = (np.where(largest > 0, largest, 1) / _LARGEST).astype(np.float32)
        rows = np.rint(bank.rows / steps[:, None]).clip(-_LARGEST, _LARGEST).astype(np.int8)
        rounded = rows.astype(np.float64) * steps[:, None]
        return cls(rows, steps, np.square(rounded).sum(axis=1).astype(np.float32))


@dataclass(frozen=True)
class SearchPlan:
    """How one search is done in INT8.

    Attributes:
        step: of the centred queries in int8.
        block: rows of which one is named.
        levels: whole steps that a unit of squared distance is counted in.
        shortlist: candidates that are measured in float32.
        queries: that the figures below were measured on.
        recall: share of the queries whose nearest row was on the shortlist.
        error: largest that a distance grew by.
    """

    step: float
    block: int
    levels: float
    shortlist: int
    queries: int
    recall: float
    error: float


def plan_search(bank: CentredBank, queries: Float32, limit: float) -> SearchPlan | None:
    """Find the shortest shortlist that keeps distances, and the largest blocks that do.

    Args:
        bank: what is searched.
        queries: [n, D] of images that ranges may be taken from, not centred. Of more than 4,096
            as many, evenly spaced, are looked up; ranges are those of all.
        limit: that no distance (not squared) may grow beyond.

    Returns:
        None where not even the longest shortlist of the smallest blocks keeps to the limit.
    """
    centred = queries - bank.mean
    step = float(np.abs(centred).max(initial=0.0)) / _LARGEST or 1.0
    rounded = _rounded(centred, step)
    longest = float(np.square(rounded.astype(np.float64)).sum(axis=1).max(initial=0.0)) or 1.0
    levels = {block: _EXACT / block / _HEADROOM / longest for block in _BLOCKS}
    chosen = np.linspace(0, len(queries) - 1, min(len(queries), _MOST_QUERIES)).astype(int)
    grown = np.concatenate(list(_grown(bank, centred[chosen], step, levels)))
    for place, shortlist in enumerate(_SHORTLISTS):
        for number, block in enumerate(_BLOCKS):
            found = grown[:, number, place]
            if found.max() <= limit:
                recall, error = float((found == 0).mean()), float(found.max())
                return SearchPlan(step, block, levels[block], shortlist, len(chosen), recall, error)
    return None


def _grown(
    bank: CentredBank, centred: Float32, step: float, levels: dict[int, float]
) -> Iterator[NDArray[np.float64]]:
    """By how much distances grow: [queries, blocks, shortlists]."""
    int8 = QuantisedBank.of(bank)
    weights = int8.rows.astype(np.float32).T * (2 * int8.steps)
    for start in range(0, len(centred), _AT_ONCE):
        part = centred[start : start + _AT_ONCE]
        seeming = int8.norms - _rounded(part, step) @ weights
        nearest = (bank.norms - part @ (2 * bank.rows.T)).argmin(axis=1)
        true = _distances(bank, part, nearest[:, None])
        found = []
        for block, level in levels.items():
            candidates = named_rows(seeming, block, level)[:, : max(_SHORTLISTS)]
            # Of candidates in the order in which they are taken, the nearest so far.
            best = np.minimum.accumulate(_distances(bank, part, candidates), axis=1)
            last = [min(count, best.shape[1]) - 1 for count in _SHORTLISTS]
            found.append((best - true)[:, last])
        yield np.stack(found, axis=1)


def named_rows(seeming: Float32, block: int, levels: float) -> NDArray[np.int64]:
    """Each block's candidate by distances [n, M], the best block's first: rows [n, blocks]."""
    queries, rows = seeming.shape
    blocks = -(-rows // block)
    codes = np.full((queries, blocks * block), np.inf)
    codes[:, :rows] = np.floor(seeming * levels) * block + np.arange(rows) % block
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
    found: Float32 = np.rint(centred / scale).clip(-_LARGEST - 1, _LARGEST) * scale
    return found
