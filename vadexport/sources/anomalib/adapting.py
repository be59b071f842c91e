"""anomalib's models in forms that trace well; the reference is never touched.

Each adapter takes a copy of a model and changes how it computes, never what. Where a model is not
named here, its own code traces.
"""

import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

#: Rows of a memory bank whose distances to all others are held at once.
_ROWS_AT_ONCE = 1024


def adapted(module: Any) -> nn.Module:
    """A copy of an `AnomalibModule`'s torch model that computes the same, and traces."""
    model: nn.Module = copy.deepcopy(module.model).eval()
    for name in (each.__name__ for each in type(module).__mro__):
        if name in _ADAPTERS:
            _ADAPTERS[name](model)
            break
    return model


def _patchcore(model: Any) -> None:
    """One search without chunks, and neighbours of bank rows as a table.

    `nearest_neighbors` looks at the number of patches to cut them up, which freezes a graph's
    batch. The neighbours of a row of the bank are the same for every image.
    """
    bank: Tensor = model.memory_bank
    count = min(model.num_neighbors, len(bank))
    table = _neighbour_table(model, count) if model.num_neighbors > 1 else None

    def nearest_neighbors(self: Any, embedding: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor]:
        del n_neighbors  # only the nearest is asked for here
        own = (self.memory_bank * self.memory_bank).sum(dim=1)
        partial = own - embedding @ (2 * self.memory_bank).T
        smallest, index = partial.min(dim=1)
        squared = smallest + (embedding * embedding).sum(dim=1)
        return squared.clamp_min(0).sqrt(), index

    def compute_anomaly_score(
        self: Any, patch_scores: Tensor, locations: Tensor, embedding: Tensor
    ) -> Tensor:
        if table is None:
            return patch_scores.amax(1)
        width = embedding.shape[-1]
        patches = embedding.reshape(patch_scores.shape[0], patch_scores.shape[1], width)
        worst = patch_scores.argmax(dim=1, keepdim=True)
        score = patch_scores.gather(1, worst)
        row = locations.gather(1, worst).squeeze(1)
        patch = patches.gather(1, worst[:, :, None].expand(-1, 1, width))
        support = self.memory_bank[self.neighbour_table[row]]
        distances = (patch - support).square().sum(dim=2).sqrt()
        return ((1 - distances.softmax(dim=1)[:, :1]) * score).squeeze(1)

    if table is not None:
        model.register_buffer("neighbour_table", table)
    model.nearest_neighbors = types.MethodType(nearest_neighbors, model)
    model.compute_anomaly_score = types.MethodType(compute_anomaly_score, model)


def _neighbour_table(model: Any, count: int) -> Tensor:
    """For each row of the bank, its nearest rows, itself first: int64 [M, count]."""
    with torch.inference_mode():
        parts = [
            model.euclidean_dist(rows, model.memory_bank).topk(count, largest=False, dim=1).indices
            for rows in model.memory_bank.split(_ROWS_AT_ONCE)
        ]
    return torch.cat(parts).clone()


def _stay(model: Any) -> None:
    """Parts that are moved to the image's device while it is scored: here they are where it is."""
    for part in model.modules():
        part.to = types.MethodType(_itself, part)


def _itself(part: nn.Module, *_device: Any, **_options: Any) -> nn.Module:
    return part


_ADAPTERS: dict[str, Callable[[Any], None]] = {
    "Patchcore": _patchcore,
    "Cflow": _stay,
}
