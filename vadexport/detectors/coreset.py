"""Greedy k-centre coreset, exact, in batched matrix products.

The greedy rule (Sener & Savarese, ICLR 2018, as PatchCore uses it) takes, again and again, the
point that is farthest from all taken so far. A point's distance to the taken ones can only fall,
which makes batches exact: among the farthest `B` points, picks are final as long as the next one
is at least as far as the farthest point outside the batch was when the batch began. All other
points are then updated by one matrix product a batch instead of one vector product a pick.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_PROJECTED_WIDTH = 128
_BATCH = 1024


def coreset_indices(
    points: Tensor,
    count: int,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Tensor:
    """Choose `count` of the points by the greedy k-centre rule.

    Distances are taken after a Gaussian random projection (Johnson–Lindenstrauss) to 128
    dimensions where the points have more. The first point is the one farthest from their mean.

    Args:
        points: float32 [n, D].
        count: in 1 … n.
        seed: of the projection.
        progress: told how many are chosen.

    Returns:
        int64 [count], in the order chosen.
    """
    points = projected(points, seed=seed)
    centred = points - points.mean(dim=0)
    norms = centred.square().sum(dim=1)
    chosen = [int(norms.argmax())]
    far = _squared(centred, norms, torch.tensor(chosen)).squeeze(1)
    far[chosen] = -1
    while len(chosen) < count:
        picks = _pick_batch(centred, norms, far, count - len(chosen))
        for part in torch.split(picks, 256):
            torch.minimum(far, _squared(centred, norms, part).amin(dim=1), out=far)
        far[picks] = -1
        chosen.extend(picks.tolist())
        progress(len(chosen), count)
    return torch.tensor(chosen)


def projected(points: Tensor, *, seed: int) -> Tensor:
    """Points in at most 128 dimensions, their distances kept but for a few per cent.

    Args:
        points: float32 [n, D].
        seed: of the random projection.

    Returns:
        Float32 [n, min(D, 128)].
    """
    width = points.shape[1]
    if width <= _PROJECTED_WIDTH:
        return points
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(width, _PROJECTED_WIDTH, generator=generator) / _PROJECTED_WIDTH**0.5
    # Centred first, so that a large common offset costs no digits; in parts, to copy little.
    mean = points.mean(dim=0)
    return torch.cat([(part - mean) @ projection for part in torch.split(points, 65536)])


def _pick_batch(points: Tensor, norms: Tensor, far: Tensor, wanted: int) -> Tensor:
    """Greedy picks that are certain without looking at points outside the farthest batch."""
    size = min(_BATCH, len(far) - 1)
    values, candidates = far.topk(size + 1)
    bound = float(values[size])
    candidates, values = candidates[:size], values[:size].clone()
    between = _squared(points[candidates], norms[candidates], torch.arange(size))
    picks: list[int] = []
    while len(picks) < min(wanted, size):
        pick = int(values.argmax())
        if picks and float(values[pick]) < bound:
            break
        picks.append(pick)
        torch.minimum(values, between[:, pick], out=values)
        values[pick] = -1
    return candidates[picks]


def _squared(points: Tensor, norms: Tensor, of: Tensor) -> Tensor:
    """Squared distances [n, len(of)] of all points to some of them, never below zero."""
    products = torch.addmm(norms[:, None], points, points[of].T, alpha=-2)
    return products.add_(norms[of]).clamp_min_(0)
