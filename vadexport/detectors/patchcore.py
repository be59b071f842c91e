"""PatchCore (Roth et al., CVPR 2022): nearest neighbours among patches of normal images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vadexport.contract import ImageArray, ImageInput
from vadexport.detectors.base import Progress, choice, normal_thresholds
from vadexport.detectors.coreset import coreset_indices, projected
from vadexport.detectors.folds import fold_of
from vadexport.detectors.maps import full_size_map
from vadexport.detectors.patch_based import PatchDetector
from vadexport.detectors.preprocessing import PreprocessingConfig
from vadexport.detectors.ranges import check_blur, check_seed
from vadexport.errors import InputError

#: More patches than this are thinned out, evenly over the images, before the coreset is chosen.
MAX_PATCHES = 2_000_000


@dataclass(frozen=True)
class PatchCoreConfig:
    """Choices of the method; the defaults are the paper's, but for re-weighting, which is off.

    Attributes:
        backbone: see `create_backbone`.
        levels: feature levels that make up a patch; two in the paper.
        coreset_ratio: fraction of the normal patches that the memory bank keeps.
        neighbours: neighbours of the paper's re-weighting (eq. 7), two or more; 0 turns it off.
        blur_sigma: of the map's Gaussian, in pixels of the network's input.
        seed: of the random projection and of thinning.
    """

    backbone: str = choice("efficientnet_lite0", "efficientnet_lite0 … lite2, or any timm model.")
    levels: tuple[int, ...] = choice(
        (2, 3), "Feature levels that make up a patch; level l has stride 2^(l+1)."
    )
    coreset_ratio: float = choice(
        0.01, "Fraction of the normal patches that the memory bank keeps.", "--coreset"
    )
    neighbours: int = choice(
        0, "Neighbours of the paper's re-weighting of the score, such as 9; 0 turns it off."
    )
    blur_sigma: float = choice(4.0, "Of the map's Gaussian blur, in pixels of the network's input.")
    seed: int = choice(0, "Of the random projection.")

    def __post_init__(self) -> None:
        if not 0 < self.coreset_ratio <= 1:
            raise InputError(f"the coreset ratio is in (0, 1], not {self.coreset_ratio}")
        if not (self.neighbours == 0 or 2 <= self.neighbours <= 100):  # one gives all weight 0
            raise InputError(f"re-weighting takes 0 or 2 … 100 neighbours, not {self.neighbours}")
        check_blur(self.blur_sigma)
        check_seed(self.seed)


class _Patches(NamedTuple):
    """Patches of normal images, thinned out.

    Attributes:
        of_images: float32 [n, K, D], K of each image.
        each: patches that an image had before they were thinned out.
    """

    of_images: Tensor
    each: int

    @property
    def rows(self) -> Tensor:
        """All of them, [n·K, D]."""
        return self.of_images.flatten(0, 1)


class PatchCore(PatchDetector):
    """Distance of each patch to the nearest one in a memory bank of normal patches."""

    family: ClassVar[str] = "patchcore"
    config_class: ClassVar[type[Any]] = PatchCoreConfig
    label: ClassVar[str] = "PatchCore"
    method: PatchCoreConfig
    memory_bank: Tensor
    neighbour_table: Tensor

    def __init__(
        self,
        config: PatchCoreConfig,
        image_input: ImageInput,
        preprocessing: PreprocessingConfig | None = None,
        *,
        size: tuple[int, int] | None = None,
        pretrained: bool = False,
    ) -> None:
        """Make an unfitted detector; arguments as the base class's."""
        super().__init__(config, image_input, preprocessing, size=size, pretrained=pretrained)
        self.register_buffer("memory_bank", torch.zeros(0, sum(self.backbone.channels)))
        self.register_buffer("neighbour_table", torch.zeros(0, dtype=torch.int64))

    def size_buffers(self, state: Mapping[str, Tensor]) -> None:
        """See the base class."""
        bank, table = (
            state.get(name, torch.zeros(0)) for name in ("memory_bank", "neighbour_table")
        )
        if bank.ndim != 2 or len(bank) == 0 or bank.shape[1] != self.memory_bank.shape[1]:
            shape = tuple(bank.shape)
            raise InputError(f"memory_bank has the shape {shape}: damaged, or not fitted")
        neighbours = self.method.neighbours
        wanted = (len(bank), neighbours) if neighbours else (0,)
        in_bank = bool(((table >= 0) & (table < len(bank))).all())
        if table.shape != wanted or not in_bank:
            raise InputError("neighbour_table does not fit the memory bank: damaged")
        self.memory_bank = torch.zeros(bank.shape)
        self.neighbour_table = torch.zeros(wanted, dtype=torch.int64)

    def describe(self) -> dict[str, str | int | float]:
        """See the base class."""
        rows, width = self.memory_bank.shape
        return {
            "backbone": f"{self.method.backbone}, levels {_join(self.method.levels)}",
            "memory bank": f"{rows} rows × {width} dimensions",
            "re-weighting": f"{self.method.neighbours} neighbours"
            if self.method.neighbours
            else "off",
        }

    def embed(self, features: Sequence[Tensor]) -> Tensor:
        """Patches `[N, D, h, w]`: 3×3 averages of each level, upsampled to the first's size."""
        pooled = [functional.avg_pool2d(level, 3, stride=1, padding=1) for level in features]
        size = pooled[0].shape[-2:]
        upsampled = [
            functional.interpolate(level, size, mode="bilinear", align_corners=False)
            for level in pooled[1:]
        ]
        return torch.cat([pooled[0], *upsampled], dim=1)

    def score(self, x: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the base class."""
        del x
        return self._score_against(self.embed(features), self.memory_bank)

    def _score_against(self, patches: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
        count, width, rows, columns = patches.shape
        queries = patches.permute(0, 2, 3, 1).reshape(count, rows * columns, width)
        distances, nearest = nearest_neighbour(queries, bank)
        raw_score = self._reweighted(queries, distances, nearest, bank)
        anomaly_map = full_size_map(
            distances.reshape(count, 1, rows, columns),
            self.preprocessing.config.size,
            self.blur_kernel,
        )
        return raw_score, anomaly_map

    def _reweighted(
        self, queries: Tensor, distances: Tensor, nearest: Tensor, bank: Tensor
    ) -> Tensor:
        """Largest distance, weighted by how crowded the bank is there (paper, eq. 7)."""
        if self.method.neighbours == 0:
            return distances.amax(dim=1)
        worst = distances.argmax(dim=1, keepdim=True)
        score = distances.gather(1, worst).squeeze(1)
        row = nearest.gather(1, worst).squeeze(1)
        patch = queries.gather(1, worst[:, :, None].expand(-1, 1, queries.shape[2]))
        if bank is self.memory_bank:
            support = bank[self.neighbour_table[row]]
        else:
            support = bank[neighbours_of(bank[row], bank, self.method.neighbours)]
        to_support = (patch - support).square().sum(dim=2).sqrt()
        return (1 - functional.softmax(to_support, dim=1)[:, 0]) * score


def nearest_neighbour(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance to, and index of, the nearest of `bank`'s rows.

    Args:
        queries: float32 [N, P, D].
        bank: float32 [M, D].

    Returns:
        Distances [N, P] and int64 indices [N, P].
    """
    partial = (bank * bank).sum(dim=1) - queries @ (2 * bank).T
    smallest, index = partial.min(dim=2)
    squared = smallest + (queries * queries).sum(dim=2)
    return squared.clamp_min(0).sqrt(), index


def neighbours_of(rows: Tensor, bank: Tensor, count: int) -> Tensor:
    """Indices [R, count] of the bank's rows nearest to each of `rows` [R, D], nearest first."""
    distances = (bank * bank).sum(dim=1) - 2 * (rows @ bank.T)
    return distances.topk(min(count, len(bank)), dim=1, largest=False).indices


@torch.inference_mode()
def fit(
    images: Sequence[ImageArray],
    config: PatchCoreConfig,
    image_input: ImageInput,
    *,
    size: tuple[int, int] | None = None,
    quantile: float = 0.95,
    progress: Progress = lambda _step, _done, _all: None,
) -> PatchCore:
    """Fit PatchCore on normal images.

    The memory bank is of all images. Thresholds come from banks of their own: each image is scored
    against one chosen, in the same ratio, from the patches of the other folds (`fold_of`). To take
    an image's rows out of the one bank would not do: the coreset drops patches near a row that it
    keeps, whichever image that row is of, so holes would be left that no new image meets.

    Args:
        images: normal images, each `[H, W, C]`; one alone is scored against its own bank.
        config: choices of the method.
        image_input: size and channels of the images.
        size: the network's input, default the camera's size.
        quantile: fraction of the normal images that stays below the thresholds.
        progress: told about each image and each part of the coresets.

    Raises:
        InputError: no image, a level that the image is too small for, features that are not
            finite, or fewer rows in the bank than neighbours.
    """
    if not images:
        raise InputError("PatchCore needs at least one normal image")
    detector = PatchCore(config, image_input, size=size, pretrained=True)
    patches = _thinned_patches(detector, images, progress)
    folds = fold_of(len(images))
    whole, *held_out = _choose_banks(patches, folds, config, progress)
    detector.memory_bank = patches.rows[whole].contiguous()
    if config.neighbours:
        detector.neighbour_table = _neighbour_table(detector.memory_bank, config.neighbours)
    # With one image there is nothing to hold out.
    banks = [patches.rows[chosen] for chosen in held_out] or [detector.memory_bank]
    scores, maxima = _score_held_out(detector, images, folds, banks, progress)
    detector.normal_scores = scores
    found = normal_thresholds(scores, maxima, quantile)
    if len(images) == 1:
        found = replace(
            found, rule=f"{quantile:g} quantile of 1 normal image, which trained it too"
        )
    detector.thresholds = found
    return detector


def _thinned_patches(
    detector: PatchCore, images: Sequence[ImageArray], progress: Progress
) -> _Patches:
    """Patches of all images, thinned out at random while they are made: never all in memory."""
    generator = torch.Generator().manual_seed(detector.method.seed)
    rows, each = torch.zeros(0), 0
    for number, patches in enumerate(detector.embed_all(images, progress)):
        found = patches[0].flatten(1).T
        if number == 0:
            each, width = found.shape
            keep = min(each, max(1, MAX_PATCHES // len(images)))
            rows = torch.empty(len(images), keep, width)
        if rows.shape[1] < each:
            drawn = torch.randperm(each, generator=generator)[: rows.shape[1]]
            found = found[drawn.sort().values]
        rows[number] = found
    return _Patches(rows, each)


def _choose_banks(
    patches: _Patches, folds: Tensor, config: PatchCoreConfig, progress: Progress
) -> list[Tensor]:
    """Indices of the rows of the bank of all images, then of one without each fold.

    Of the latter there are none where one fold has all images.
    """
    points = projected(patches.rows, seed=config.seed)
    numbers = torch.arange(len(points)).view(len(folds), -1)
    # A bank that judges held-out images has neighbours enough for re-weighting.
    least = max(1, config.neighbours)
    pools, wanted = [numbers.flatten()], [_bank_size(patches, len(folds), config)]
    for fold in range(int(folds.max()) + 1) if len(folds) > 1 else ():
        others = numbers[folds != fold]
        pools.append(others.flatten())
        of_ratio = _bank_size(patches, len(others), config)
        wanted.append(min(max(least, of_ratio), others.numel()))
    banks: list[Tensor] = []
    finished = 0
    for pool, rows in zip(pools, wanted, strict=True):

        def told(done: int, total: int, before: int = finished) -> None:
            if done < total:
                progress("coreset", before + done, sum(wanted))

        banks.append(pool[coreset_indices(points[pool], rows, progress=told)])
        finished += rows
        progress("coreset", finished, sum(wanted))
    return banks


def _bank_size(patches: _Patches, images: int, config: PatchCoreConfig) -> int:
    """Rows that a bank of so many images has: the ratio is of their patches before thinning."""
    of_ratio = math.floor(images * patches.each * config.coreset_ratio)
    return min(max(1, of_ratio), images * patches.of_images.shape[1])


def _neighbour_table(bank: Tensor, count: int) -> Tensor:
    """Indices int64 [M, count] of the nearest rows of each of the bank's rows."""
    if len(bank) < count:
        raise InputError(
            f"re-weighting by {count} neighbours needs as many rows in the memory bank, which has "
            f"{len(bank)}: raise the coreset ratio or give more images"
        )
    return torch.cat([neighbours_of(part, bank, count) for part in torch.split(bank, 1024)])


def _score_held_out(
    detector: PatchCore,
    images: Sequence[ImageArray],
    folds: Tensor,
    banks: Sequence[Tensor],
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """Raw score and largest map value of each image, [n], against the bank without its fold."""
    scores, maxima = [], []
    for number, (image, fold) in enumerate(zip(images, folds.tolist(), strict=True), 1):
        # Features once more: to keep those of all images would take gigabytes.
        score, anomaly_map = detector._score_against(  # noqa: SLF001
            detector.embed_image(image), banks[fold]
        )
        scores.append(score)
        maxima.append(anomaly_map.amax().view(1))
        progress("threshold", number, len(images))
    return torch.cat(scores), torch.cat(maxima)


def _join(levels: Sequence[int]) -> str:
    return " and ".join(map(str, levels))
