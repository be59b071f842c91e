"""PaDiM (Defard et al., ICPR 2020): a Gaussian of normal patches at every position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from vadexport.contract import ImageArray, ImageInput
from vadexport.detectors.base import Progress, choice, normal_thresholds
from vadexport.detectors.folds import fold_of
from vadexport.detectors.maps import full_size_map
from vadexport.detectors.patch_based import PatchDetector
from vadexport.detectors.preprocessing import PreprocessingConfig
from vadexport.detectors.ranges import check_blur, check_seed
from vadexport.errors import InputError

#: Added to the diagonal of every covariance, as in the paper.
_REGULARISATION = 0.01
#: Positions whose covariances are held in float64 at once.
_POSITIONS_AT_ONCE = 256
#: An ONNX file holds 2 GB, and not only the Gaussians.
_MOST_BYTES = 1_900_000_000


@dataclass(frozen=True)
class PaDiMConfig:
    """Choices of the method.

    Attributes:
        backbone: see `create_backbone`.
        levels: feature levels that make up a patch, the first sets the number of positions.
        channels: chosen at random from all levels' channels, 100 for a resnet18 in the paper.
        blur_sigma: of the map's Gaussian, in pixels of the network's input.
        seed: of the choice of channels.
    """

    backbone: str = choice("efficientnet_lite0", "efficientnet_lite0 … lite2, or any timm model.")
    levels: tuple[int, ...] = choice(
        (2, 3), "Feature levels that make up a patch; level l has stride 2^(l+1)."
    )
    channels: int = choice(100, "Channels of a patch, chosen at random from all levels.")
    blur_sigma: float = choice(4.0, "Of the map's Gaussian blur, in pixels of the network's input.")
    seed: int = choice(0, "Of the choice of channels.")

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise InputError(f"a patch has at least one channel, not {self.channels}")
        check_blur(self.blur_sigma)
        check_seed(self.seed)


class PaDiM(PatchDetector):
    """Mahalanobis distance of each patch to the Gaussian of normal patches at its position.

    With `Σ = L·Lᵀ`, the distance `√((x − μ)ᵀ Σ⁻¹ (x − μ))` is the length of `L⁻¹ (x − μ)`: never
    the root of a negative number, whatever is rounded. `whitening` holds `L⁻¹` transposed.
    """

    family: ClassVar[str] = "padim"
    config_class: ClassVar[type[Any]] = PaDiMConfig
    label: ClassVar[str] = "PaDiM"
    method: PaDiMConfig
    chosen: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(
        self,
        config: PaDiMConfig,
        image_input: ImageInput,
        preprocessing: PreprocessingConfig | None = None,
        *,
        size: tuple[int, int] | None = None,
        pretrained: bool = False,
    ) -> None:
        """Make an unfitted detector; arguments as the base class's."""
        super().__init__(config, image_input, preprocessing, size=size, pretrained=pretrained)
        every = sum(self.backbone.channels)
        if config.channels > every:
            raise InputError(f"the backbone's levels have {every} channels, not {config.channels}")
        generator = torch.Generator().manual_seed(config.seed)
        chosen = torch.randperm(every, generator=generator)[: config.channels].sort().values
        self.register_buffer("chosen", chosen)
        self.register_buffer("mean", torch.zeros(0, config.channels))
        self.register_buffer("whitening", torch.zeros(0, config.channels, config.channels))

    def size_buffers(self, state: Mapping[str, Tensor]) -> None:
        """See the base class."""
        # Both shapes are looked at before any memory is taken: one without elements costs a file
        # nothing, whatever number of positions it claims.
        whitening, width = state.get("whitening", torch.zeros(0)), self.method.channels
        if whitening.ndim != 3 or len(whitening) == 0 or whitening.shape[1:] != (width, width):
            shape = tuple(whitening.shape)
            raise InputError(
                f"the Gaussians' whitening has the shape {shape}: damaged, or unfitted"
            )
        positions = len(whitening)
        chosen = state.get("chosen", torch.zeros(0))
        if chosen.shape != self.chosen.shape or not bool(
            ((chosen >= 0) & (chosen < sum(self.backbone.channels))).all()
        ):
            raise InputError("the PaDiM detector's channels do not fit its backbone: damaged")
        self.mean = torch.zeros(positions, width)
        self.whitening = torch.zeros(positions, width, width)

    def describe(self) -> dict[str, str | int | float]:
        """See the base class."""
        positions, width = self.mean.shape
        levels = " and ".join(map(str, self.method.levels))
        return {
            "backbone": f"{self.method.backbone}, levels {levels}",
            "gaussians": f"{positions} positions × {width} channels",
        }

    def embed(self, features: Sequence[Tensor]) -> Tensor:
        """Patches `[N, D, h, w]`: chosen channels, upsampled to the first level's size."""
        size = features[0].shape[-2:]
        upsampled = [functional.interpolate(level, size, mode="nearest") for level in features[1:]]
        return torch.cat([features[0], *upsampled], dim=1).index_select(1, self.chosen)

    def score(self, x: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the base class."""
        del x
        return self._score_against(self.embed(features), self.mean, self.whitening)

    def _score_against(
        self, patches: Tensor, mean: Tensor, whitening: Tensor
    ) -> tuple[Tensor, Tensor]:
        count, _, rows, columns = patches.shape
        centred = patches.flatten(2).permute(2, 0, 1) - mean[:, None]
        distances = (centred @ whitening).square().sum(dim=2).sqrt()
        anomaly_map = full_size_map(
            distances.T.reshape(count, 1, rows, columns),
            self.preprocessing.config.size,
            self.blur_kernel,
        )
        return anomaly_map.amax(dim=(1, 2, 3)), anomaly_map


def _check_memory(detector: PaDiM, image: ImageArray) -> None:
    """Refuse, before the work, Gaussians that no ONNX file can hold."""
    channels = detector.method.channels
    with torch.inference_mode():
        positions = detector.embed_image(image)[0, 0].numel()
    size = 4 * positions * channels**2
    if size > _MOST_BYTES:
        raise InputError(
            f"{positions} Gaussians of {channels} channels take {size / 1e9:.1f} GB, more than an "
            "ONNX file can hold: give a smaller --size or fewer --channels"
        )


def gaussians(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and whitening matrix of the patches at each position, computed in float64.

    Args:
        patches: float32 [n, D, P], n at least 2.

    Returns:
        Means float32 [P, D], and float32 [P, D, D] that map centred patches to unit covariance.
    """
    means, whitenings = [], []
    count, width, _ = patches.shape
    ridge = _REGULARISATION * torch.eye(width, dtype=torch.float64)
    for part in torch.split(patches, _POSITIONS_AT_ONCE, dim=2):
        rows = part.permute(2, 0, 1).double()
        mean = rows.mean(dim=1)
        centred = rows - mean[:, None]
        covariance = centred.transpose(1, 2) @ centred / (count - 1) + ridge
        factor = torch.linalg.cholesky(covariance)
        unit = torch.eye(width, dtype=torch.float64).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, unit, upper=False)
        means.append(mean.float())
        whitenings.append(inverse.transpose(1, 2).float())
    return torch.cat(means), torch.cat(whitenings).contiguous()


@torch.inference_mode()
def fit(
    images: Sequence[ImageArray],
    config: PaDiMConfig,
    image_input: ImageInput,
    *,
    size: tuple[int, int] | None = None,
    quantile: float = 0.95,
    progress: Progress = lambda _step, _done, _all: None,
) -> PaDiM:
    """Fit PaDiM on normal images.

    The Gaussians are those of all images. Thresholds come from five fits, each scoring the fifth
    of the images that it left out; with fewer images, from one fit an image.

    Args:
        images: normal images, each `[H, W, C]`.
        config: choices of the method.
        image_input: size and channels of the images.
        size: the network's input, default the camera's size.
        quantile: fraction of the normal images that stays below the thresholds.
        progress: told about each image and each fit.

    Raises:
        InputError: fewer than three images, a level that the image is too small for, or features
            that are not finite.
    """
    if len(images) < 3:
        raise InputError(
            f"PaDiM needs at least three normal images for its covariances, not {len(images)}"
        )
    detector = PaDiM(config, image_input, size=size, pretrained=True)
    _check_memory(detector, images[0])
    patches = torch.cat(list(detector.embed_all(images, progress)))
    flat = patches.flatten(2)
    held_out_in = fold_of(len(images))
    folds = int(held_out_in.max()) + 1
    scores, maxima = torch.zeros(len(images)), torch.zeros(len(images))
    for fold in range(folds):
        left_out = held_out_in == fold
        mean, whitening = gaussians(flat[~left_out])
        raw, maps = detector._score_against(patches[left_out], mean, whitening)  # noqa: SLF001
        scores[left_out], maxima[left_out] = raw, maps.amax(dim=(1, 2, 3))
        progress("gaussians", fold + 1, folds + 1)
    detector.mean, detector.whitening = gaussians(flat)
    progress("gaussians", folds + 1, folds + 1)
    detector.normal_scores = scores
    detector.thresholds = normal_thresholds(scores, maxima, quantile)
    return detector
