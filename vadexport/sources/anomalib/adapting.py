"""anomalib's models in forms that trace well; the reference is never touched.

Each adapter takes a copy of a model and changes how it computes, never what. Where a model is not
named here, its own code traces.
"""

import copy
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        weighted: Tensor = ((1 - distances.softmax(dim=1)[:, :1]) * score).squeeze(1)
        return weighted

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


def _uninet(model: Any) -> None:
    """The two halves of the student's batch by their places, for a split has a fixed size.

    What only training looks at, a second head, is left out.
    """

    def forward(self: Any, images: Tensor) -> dict[str, Tensor]:
        count = images.shape[0]
        taught, bottleneck = self.teachers(images)
        learnt = self.student(self.bottleneck(bottleneck))
        halves = [each[:count] for each in learnt[:3]] + [each[count:] for each in learnt[:3]]
        differences = [
            1 - functional.cosine_similarity(target, student)
            for target, student in zip(taught, halves, strict=True)
        ]
        return _decision(differences, (images.shape[-2], images.shape[-1]))

    model.forward = types.MethodType(forward, model)


def _decision(differences: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """UniNet's score and map (`weighted_decision_mechanism`), for any number of images."""
    from anomalib.models.components import GaussianBlur2d

    total: Tensor | None = None
    for each in differences:
        large = functional.interpolate(each.unsqueeze(1), size, mode="bilinear", align_corners=True)
        total = large if total is None else total + large
    if total is None:
        raise AssertionError("there is no map")
    blurred = GaussianBlur2d(sigma=4.0, kernel_size=(5, 5), channels=1)(total)
    return {"pred_score": blurred.flatten(1).amax(dim=1), "anomaly_map": total}


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) else len(value)


def _nearest(queries: Tensor, references: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """MHPatchcore's search, which cuts the queries up: squared distances and indices."""
    own = references.square().sum(dim=1)
    distances = own - 2 * queries @ references.T
    if num_neighbors == 1:
        smallest, index = distances.min(dim=1)
        return (smallest + queries.square().sum(dim=1)).clamp_min(0), index
    found = distances.topk(num_neighbors, largest=False, dim=1)
    return found.values + queries.square().sum(dim=1, keepdim=True), found.indices


def _mh_patchcore(model: Any) -> None:
    """Whitening in float32, 1e-7 from that in float64, which OpenVINO gets wrong by a third."""

    def forward(self: Any, features: Tensor) -> Tensor:
        whitened: Tensor = (features - self.mean.float()) @ self.whitening_matrix.float()
        return whitened

    model.covariance.forward = types.MethodType(forward, model.covariance)


def _averaged(features: Tensor, input_length: int, output_length: int = 1024) -> Tensor:
    """Adaptive average pooling of `[N, …]` to `[N, output_length]`, as a product.

    MHPatchcore and Glass gather overlapping windows by index where they are exported.
    """
    unit = torch.eye(input_length, dtype=features.dtype)[:, None]
    shares = functional.adaptive_avg_pool1d(unit, output_length)[:, 0]
    return features.reshape(features.shape[0], input_length) @ shares


#: Functions of anomalib's modules by their name, and what computes the same and traces well.
_REPLACED: dict[str, Callable[..., Any]] = {
    "_nearest_neighbors": _nearest,
    "_adaptive_avg_pool1d": _averaged,
}


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Within it, anomalib's code keeps the batch of what it computes open.

    `len` of a tensor is a plain number to Python, and freezes it; a loop over chunks of the
    patches does, too.
    """
    homes = {type(part).__module__ for part in model.modules()}
    with ExitStack() as stack:
        for home in (each for each in homes if each.startswith("anomalib.")):
            module = sys.modules[home]
            stack.enter_context(mock.patch.object(module, "len", _length, create=True))
            for name, replacement in _REPLACED.items():
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, replacement))
        yield


def _dfkde(model: Any) -> None:
    """Densities of all images at once instead of in a loop over them."""

    def forward(self: Any, features: Tensor) -> Tensor:
        features = features @ self.bw_transform
        squared = (self.dataset - features[:, None]).square().sum(dim=2)
        density: Tensor = ((-squared / 2).exp() * self.norm).mean(dim=1)
        return density

    kde = model.classifier.kde_model
    kde.forward = types.MethodType(forward, kde)


def _rad(model: Any) -> None:
    """All images at once instead of in a loop over them, and without writing into slices."""

    def compute(
        self: Any, patch_list: list[Tensor], topk_idx: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        total: Tensor | None = None
        for number, patches in enumerate(patch_list):
            query = functional.normalize(patches, dim=-1).to(self.patch_banks.dtype)
            bank = self.patch_banks[number][:, topk_idx].permute(1, 0, 3, 2)  # [B, L, C, k]
            found = (
                _match_nearby(query, bank, self._neighborhood_plan(grid), grid)
                if self.use_positional_bank
                else _match_anywhere(query, bank)
            )
            weighted = self._layer_weights[number] * found
            total = weighted if total is None else total + weighted
        if total is None:
            raise AssertionError("the model compares no layer")
        return total

    model._compute_patch_scores = types.MethodType(compute, model)  # noqa: SLF001 - a copy's


def _match_anywhere(query: Tensor, bank: Tensor) -> Tensor:
    """1 − the best cosine of each patch `[B, L, C]` with any of `[B, L', C, k]`: `[B, L]`."""
    rows = bank.permute(0, 2, 1, 3).flatten(2)
    return 1.0 - (query @ rows).amax(dim=-1)


def _match_nearby(
    query: Tensor, bank: Tensor, plan: list[tuple[int, ...]], grid: tuple[int, int]
) -> Tensor:
    """The same with the patches at most so far away as `plan` shifts them."""
    (rows, columns), channels = grid, query.shape[-1]
    at = query.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)
    best: Tensor | None = None
    for _, down, right, *_bounds in plan:
        shifted = _shifted(at, down, right, 0.0).flatten(2).permute(0, 2, 1)[:, :, None]
        similarity = (shifted @ bank).amax(dim=-1).reshape(-1, 1, rows, columns)
        back = _shifted(similarity, -down, -right, -1.0)
        best = back if best is None else torch.maximum(best, back)
    if best is None:
        raise AssertionError("the neighbourhood is empty")
    return 1.0 - best.clamp_min(-1.0).flatten(1)


def _shifted(image: Tensor, down: int, right: int, fill: float) -> Tensor:
    """`[B, C, h, w]` moved down and to the right; `fill` where nothing moves in."""
    return functional.pad(image, [right, -right, down, -down], value=fill)


def _glass(model: Any) -> None:
    """Features are pooled as PyTorch does it, by a matrix of shares.

    For ONNX anomalib pools otherwise, which gives another length where one is no multiple of the
    other.
    """
    for part in model.modules():
        if type(part).__name__ == "MeanMapper":
            part.forward = types.MethodType(_pooled, part)


def _pooled(part: Any, features: Tensor) -> Tensor:
    return _averaged(features, features[0].numel(), part.preprocessing_dim)


_ADAPTERS: dict[str, Callable[[Any], None]] = {
    "MHPatchcore": _mh_patchcore,
    "UniNet": _uninet,
    "Glass": _glass,
    "Rad": _rad,
    "Dfkde": _dfkde,
    "Patchcore": _patchcore,
    "Cflow": _stay,
}
