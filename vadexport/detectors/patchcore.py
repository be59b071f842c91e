"""PatchCore (Roth et al., CVPR 2022): nearest neighbours among patches of normal images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from vadexport.contract import ImageInput, UInt8Array
from vadexport.detectors.backbones import create_backbone
from vadexport.detectors.base import Detector, Progress, choice, normal_thresholds
from vadexport.detectors.coreset import coreset_indices
from vadexport.detectors.maps import full_size_map, gaussian_kernel
from vadexport.detectors.preprocessing import PreprocessingConfig
from vadexport.errors import InputError

#: More patches than this are thinned out, evenly over the images, before the coreset is chosen.
MAX_PATCHES = 2_000_000


@dataclass(frozen=True)
class PatchCoreConfig:
    """Choices of the method; the defaults are the paper's where it names them.

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
        0, "Neighbours of the paper's re-weighting of the score (9 there); 0 turns it off."
    )
    blur_sigma: float = choice(4.0, "Of the map's Gaussian blur, in pixels of the network's input.")
    seed: int = choice(0, "Of the random projection.")

    def __post_init__(self) -> None:
        if not 0 < self.coreset_ratio <= 1:
            raise InputError(f"the coreset ratio is in (0, 1], not {self.coreset_ratio}")
        if not (self.neighbours == 0 or 2 <= self.neighbours <= 100):  # one gives all weight 0
            raise InputError(f"re-weighting takes 0 or 2 … 100 neighbours, not {self.neighbours}")
        if not 0 < self.blur_sigma <= 64:
            raise InputError(f"the blur's sigma is in (0, 64], not {self.blur_sigma}")


class _Bank(NamedTuple):
    """Rows of the memory bank while it is fitted, and the index of the image each came from."""

    rows: Tensor
    owners: Tensor


class PatchCore(Detector):
    """Distance of each patch to the nearest one in a memory bank of normal patches."""

    family: ClassVar[str] = "patchcore"
    memory_bank: Tensor
    neighbour_table: Tensor
    blur_kernel: Tensor

    def __init__(
        self,
        config: PatchCoreConfig,
        image_input: ImageInput,
        preprocessing: PreprocessingConfig | None = None,
        *,
        size: tuple[int, int] | None = None,
        pretrained: bool = False,
    ) -> None:
        """Make an unfitted detector.

        Args:
            config: choices of the method.
            image_input: camera images.
            preprocessing: to the network's input; made from the backbone's mean and std and
                `size` where it is None.
            size: the network's input, default the camera's size.
            pretrained: load the backbone's ImageNet weights.
        """
        backbone = create_backbone(config.backbone, config.levels, pretrained=pretrained)
        if preprocessing is None:
            size = size or (image_input.height, image_input.width)
            preprocessing = PreprocessingConfig(size, backbone.mean, backbone.std)
        super().__init__(image_input, preprocessing)
        self.backbone = backbone
        self.method = config
        width = sum(backbone.channels)
        self.register_buffer("memory_bank", torch.zeros(0, width))
        self.register_buffer("neighbour_table", torch.zeros(0, dtype=torch.int64))
        kernel = gaussian_kernel(config.blur_sigma)
        if kernel.numel() // 2 >= min(preprocessing.size):
            raise InputError(f"{preprocessing.size} is too small for a blur of {config.blur_sigma}")
        self.register_buffer("blur_kernel", kernel, persistent=False)

    def config(self) -> dict[str, Any]:
        """See the base class."""
        return asdict(self.method)

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        image_input: ImageInput,
        preprocessing: PreprocessingConfig,
        state: Mapping[str, Tensor],
    ) -> Self:
        """See the base class."""
        try:
            method = PatchCoreConfig(**{**config, "levels": tuple(config["levels"])})
            whole = (*method.levels, method.neighbours, method.seed)
            if type(config["backbone"]) is not str or any(type(n) is not int for n in whole):
                raise TypeError("a field is of another type")
        except (KeyError, TypeError) as error:
            raise InputError(f"the PatchCore configuration is damaged: {error}") from None
        detector = cls(method, image_input, preprocessing)
        bank, table = (
            state.get(name, torch.zeros(0)) for name in ("memory_bank", "neighbour_table")
        )
        if bank.ndim != 2 or len(bank) == 0 or bank.shape[1] != detector.memory_bank.shape[1]:
            shape = tuple(bank.shape)
            raise InputError(f"memory_bank has the shape {shape}: damaged, or not fitted")
        wanted = (len(bank), method.neighbours) if method.neighbours else (0,)
        in_bank = bool(((table >= 0) & (table < len(bank))).all())
        if table.shape != wanted or not in_bank:
            raise InputError("neighbour_table does not fit the memory bank: damaged")
        detector.memory_bank = torch.zeros(bank.shape)
        detector.neighbour_table = torch.zeros(wanted, dtype=torch.int64)
        return detector

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

    def network(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the backbone's levels."""
        features: tuple[Tensor, ...] = self.backbone(x)
        return features

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
    images: Sequence[UInt8Array],
    config: PatchCoreConfig,
    image_input: ImageInput,
    *,
    size: tuple[int, int] | None = None,
    quantile: float = 0.95,
    progress: Progress = lambda _step, _done, _all: None,
) -> PatchCore:
    """Fit PatchCore on normal images.

    Every image also sets the thresholds, scored against the rows of the bank that other images
    gave, so that none is held out and none is judged by its own patches.

    Args:
        images: normal images, each `uint8 [H, W, C]`.
        config: choices of the method.
        image_input: size and channels of the images.
        size: the network's input, default the camera's size.
        quantile: fraction of the normal images that stays below the thresholds.
        progress: told about each image and each part of the coreset.

    Raises:
        InputError: no image, a level that the image is too small for, or features that are not
            finite.
    """
    if not images:
        raise InputError("PatchCore needs at least one normal image")
    detector = PatchCore(config, image_input, size=size, pretrained=True)
    embeddings = list(_embeddings(detector, images, progress))
    bank = _choose_bank(embeddings, config, progress)
    detector.memory_bank = bank.rows
    if config.neighbours:
        if len(bank.rows) < config.neighbours:
            raise InputError(
                f"re-weighting by {config.neighbours} neighbours needs as many rows in the memory "
                f"bank, which has {len(bank.rows)}: raise the coreset ratio or give more images"
            )
        detector.neighbour_table = torch.cat(
            [
                neighbours_of(part, bank.rows, config.neighbours)
                for part in torch.split(bank.rows, 1024)
            ]
        )
    scores, maxima = _leave_one_out(detector, embeddings, bank, progress)
    detector.normal_scores = scores
    detector.thresholds = normal_thresholds(scores, maxima, quantile)
    return detector


def _embeddings(
    detector: PatchCore, images: Sequence[UInt8Array], progress: Progress
) -> Iterator[Tensor]:
    for number, image in enumerate(images, 1):
        x = detector.preprocessing(torch.from_numpy(image)[None])
        patches = detector.embed(detector.network(x))
        if not patches.isfinite().all():
            raise InputError(f"the backbone's features of image {number} are not finite")
        yield patches
        progress("features", number, len(images))


def _choose_bank(embeddings: list[Tensor], config: PatchCoreConfig, progress: Progress) -> _Bank:
    width = embeddings[0].shape[1]
    patches_each = embeddings[0][0, 0].numel()
    keep = min(patches_each, max(1, MAX_PATCHES // len(embeddings)))
    generator = torch.Generator().manual_seed(config.seed)
    parts = []
    for patches in embeddings:
        rows = patches[0].reshape(width, patches_each).T
        if keep < patches_each:
            rows = rows[torch.randperm(patches_each, generator=generator)[:keep].sort().values]
        parts.append(rows)
    rows = torch.cat(parts)
    owners = torch.arange(len(embeddings)).repeat_interleave(keep)
    wanted = max(1, math.floor(len(embeddings) * patches_each * config.coreset_ratio))
    chosen = coreset_indices(
        rows,
        min(wanted, len(rows)),
        seed=config.seed,
        progress=lambda done, total: progress("coreset", done, total),
    )
    return _Bank(rows[chosen].contiguous(), owners[chosen])


def _leave_one_out(
    detector: PatchCore, embeddings: list[Tensor], bank: _Bank, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Raw score and largest map value of each image against the other images' rows."""
    scores, maxima = [], []
    for number, patches in enumerate(embeddings):
        others = bank.rows[bank.owners != number]
        if len(others) <= detector.method.neighbours:
            others = bank.rows
        score, anomaly_map = detector._score_against(patches, others)  # noqa: SLF001
        scores.append(score)
        maxima.append(anomaly_map.amax().view(1))
        progress("threshold", number + 1, len(embeddings))
    return torch.cat(scores), torch.cat(maxima)


def _join(levels: Sequence[int]) -> str:
    return " and ".join(map(str, levels))
