"""The detectors of benchmarks/peers.py: how each is made, and what is wanted of it.

Backbones of anomalib's models are distilled (benchmarks/distilled.py), for ImageNet's weights come
from a hub; students and EfficientAD's autoencoder are trained for a short while, beside a teacher
that is distilled (STFPM) or random (EfficientAD). What is computed is what it would be of any other
weights, and scores tell intact cells from defective ones well enough for drift and order to mean
something.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from anomalib_states import channel_statistics, run_once
from anomalib_zoo import offline, raw_scores, write
from cells import copy_cells
from distilled import STEPS, distil
from torch import Tensor, nn

from vadexport.detectors.coreset import coreset_indices
from vadexport.images import decode, test_images, training_images
from vadexport.verification.statistics import best_f1_threshold

SIZE: Final = 256
#: Images of each part; no cell is in two of them.
PARTS: Final = {"train/good": 120, "calibration/good": 60, "test/good": 20, "test/defective": 20}
QUICK_PARTS: Final = {name: max(8, count // 6) for name, count in PARTS.items()}
#: Room on both sides of the scores that were seen: a normalised score that is clamped hides drift.
_MARGIN: Final = 0.5


@dataclass(frozen=True)
class Row:
    """A detector, and its goals.

    Attributes:
        title: for readers.
        over_eager: how many times faster than PyTorch eager vadexport's artifact is to be.
        over_anomalib: than anomalib's own OpenVINO export, as its inferencer runs it.
        model: class of anomalib; None of a detector of vadexport's own.
        make: writes the detector's file, given the images, the file and whether it is to be quick.
    """

    title: str
    over_eager: float
    over_anomalib: float | None
    model: str | None
    make: Callable[[Path, Path, bool], None]


def lay_out(folder: Path, parts: dict[str, int]) -> Path:
    """Solar cells at the size that the networks see; the folder is there whole or not at all."""
    from PIL import Image

    if not folder.exists():
        partial_folder = folder.with_suffix(".partial")
        copy_cells(partial_folder, "mono", parts)
        for path in partial_folder.rglob("*.png"):
            image = Image.open(path).convert("RGB")
            image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path)
        partial_folder.rename(folder)
    return folder


# ------------------------------------------------------------------------------ making
def anomalib_model(
    name: str, fit: Callable[[Any, Tensor, bool], None], backbone: str | None, **choices: Any
) -> Callable[[Path, Path, bool], None]:
    """A maker of a checkpoint of anomalib's class `name`, fitted by `fit`."""

    def make(images: Path, destination: Path, quick: bool) -> None:  # noqa: FBT001
        with offline():
            torch.manual_seed(0)
            if backbone:
                choices["backbone"] = backbone
            module = getattr(import_module("anomalib.models"), name)(**choices).eval()
            if backbone:
                weights = distilled_weights(backbone, images, destination.parent, quick=quick)
                load_backbone(module.model, weights)
            train = pixels([file.path for file in training_images(str(images / "train"))])
            fit(module, module.pre_processor.transform(train), quick)
            fill_post_processor(module.eval(), images)
            write(module, destination)

    return make


def distilled_weights(
    backbone: str, images: Path, folder: Path, *, quick: bool
) -> dict[str, Tensor]:
    """State of timm's backbone; it learns once, which takes minutes."""
    path = folder / f"{backbone}.pt"
    if not path.exists():
        steps = 4 if quick else STEPS[backbone]
        state = distil(backbone, images / "train", steps).state_dict()
        torch.save({key.removeprefix("model."): value for key, value in state.items()}, path)
    loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
    return loaded


def load_backbone(model: Any, weights: dict[str, Tensor]) -> None:
    """Weights into what extracts a model's features."""
    holder = getattr(model, "teacher_model", None) or model.feature_extractor
    own = holder.feature_extractor.state_dict()
    holder.feature_extractor.load_state_dict({key: weights[key] for key in own})


def pixels(paths: list[Path]) -> Tensor:
    """Images [N, 3, H, W] from 0 to 1."""
    images = torch.from_numpy(np.stack([decode(path, 3) for path in paths]))
    return images.permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def fill_post_processor(module: Any, images: Path) -> None:
    """A threshold that tells the test images apart, and a range that clamps none of them."""
    files = test_images(str(images / "test"))
    scores, maps = raw_scores(module, pixels([file.path for file in files]))
    post = module.post_processor
    truth = np.array([bool(file.label) for file in files])
    threshold = best_f1_threshold(scores.double().numpy(), truth)
    room = _MARGIN * float(scores.max() - scores.min())
    post._image_threshold.fill_(threshold)  # noqa: SLF001
    post.image_min.copy_(scores.min() - room)
    post.image_max.copy_(scores.max() + room)
    values = maps.flatten()[:: max(1, maps.numel() // 1_000_000)]
    post._pixel_threshold.copy_(values.quantile(0.97))  # noqa: SLF001
    post.pixel_min.copy_(maps.min())
    post.pixel_max.copy_(maps.max())


@torch.no_grad()
def fit_bank(rows: int, module: Any, images: Tensor, _quick: bool) -> None:  # noqa: FBT001
    """PatchCore: so many rows by the greedy k-centre rule, of twice as many patches or more."""
    module.model.train()
    patches: list[Tensor] = []
    for image in images:
        patches.append(module.model(image[None]))
        if sum(map(len, patches)) >= 2 * rows:
            break
    module.model.embedding_store.clear()
    found = torch.cat(patches)
    assert len(found) >= rows, "too few images for the memory bank"
    module.model.memory_bank = found[coreset_indices(found, rows)].contiguous()
    module._is_fitted = torch.tensor([True])  # noqa: SLF001


@torch.no_grad()
def fit_gaussians(module: Any, images: Tensor, _quick: bool) -> None:  # noqa: FBT001
    """PaDiM: a Gaussian a place."""
    module.model.train()
    for image in images:
        module.model(image[None])
    module.fit()
    module._is_fitted = torch.tensor([True])  # noqa: SLF001


def fit_student(module: Any, images: Tensor, quick: bool) -> None:  # noqa: FBT001
    """STFPM: the student learns its teacher by the loss of anomalib's own."""
    student = module.model.student_model
    optimiser = torch.optim.Adam(student.parameters(), 1e-3)
    for batch in batches(images, 2 if quick else 100):
        module.model.train()
        module.model.teacher_model.eval()
        step(optimiser, module.loss(*module.model(batch)))


def fit_efficient_ad(module: Any, images: Tensor, quick: bool) -> None:  # noqa: FBT001
    """EfficientAD: student and autoencoder learn the teacher; other cells stand for ImageNet's."""
    with torch.no_grad():
        channel_statistics(module, images[:8])
    model = module.model
    learning = [*model.student.parameters(), *model.ae.parameters()]
    optimiser = torch.optim.Adam(learning, 1e-3)
    others = batches(images.flip(-2), 2 if quick else 40)
    for batch, other in zip(batches(images, 2 if quick else 40), others, strict=True):
        model.train()
        model.teacher.eval()
        step(optimiser, sum(model(batch[:1], other[:1])))
    model.eval()
    with torch.no_grad():
        channel_statistics(module, images[:8])


def batches(images: Tensor, steps: int) -> list[Tensor]:
    """So many batches of four, each drawn at random."""
    random = torch.Generator().manual_seed(0)
    return [images[torch.randint(len(images), (4,), generator=random)] for _ in range(steps)]


def step(optimiser: torch.optim.Optimizer, loss: Any) -> None:
    """One step of training."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def native(family: str, *choices: str) -> Callable[[Path, Path, bool], None]:
    """A maker of a detector of vadexport's own, by `vadexport fit`."""

    def make(images: Path, destination: Path, quick: bool) -> None:  # noqa: FBT001
        command = [sys.executable, "-m", "vadexport", "fit", family, str(images / "train"), "-o"]
        minutes = "0.1" if quick else "1.5"
        subprocess.run(
            [*command, str(destination), "--max-minutes", minutes, *choices, "-q"], check=True
        )

    return make


_BANK: Final[dict[str, Any]] = {"layers": ["layer2", "layer3"], "pre_trained": False}

ROWS: Final[dict[str, Row]] = {
    "patchcore-wide_resnet50_2": Row(
        "PatchCore wide_resnet50_2, 16,384 × 1,536",
        16,
        4,
        "Patchcore",
        anomalib_model("Patchcore", partial(fit_bank, 16_384), "wide_resnet50_2", **_BANK),
    ),
    "patchcore-resnet18": Row(
        "PatchCore resnet18, 10,240 × 384",
        12,
        6,
        "Patchcore",
        anomalib_model("Patchcore", partial(fit_bank, 10_240), "resnet18", **_BANK),
    ),
    "padim-resnet18": Row(
        "PaDiM resnet18, d = 100",
        10,
        1.5,
        "Padim",
        anomalib_model("Padim", fit_gaussians, "resnet18", n_features=100, pre_trained=False),
    ),
    "stfpm-resnet18": Row(
        "STFPM resnet18",
        12,
        1.5,
        "Stfpm",
        anomalib_model("Stfpm", fit_student, "resnet18"),
    ),
    "efficient_ad-s": Row(
        "EfficientAD-S",
        14,
        1.8,
        "EfficientAd",
        anomalib_model("EfficientAd", fit_efficient_ad, None),
    ),
    "autoencoder": Row("autoencoder", 6, None, None, native("autoencoder")),
    "diffusion": Row(
        "diffusion, 10 steps", 5, None, None, native("diffusion", "--denoise-steps", "10")
    ),
}


def stfpm_of_size(size: int, destination: Path) -> None:
    """STFPM resnet18 with random weights for images of `size` pixels: what growth is timed on."""
    with offline(), torch.no_grad():
        torch.manual_seed(0)
        kind = import_module("anomalib.models").Stfpm
        module = kind(pre_processor=kind.configure_pre_processor((size, size))).eval()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
        random = torch.rand(2, 3, size, size)
        run_once(module, module.pre_processor.transform(random))
        post = module.eval().post_processor
        scores, maps = raw_scores(module, random)
        post._image_threshold.copy_(scores.mean())  # noqa: SLF001
        post.image_min.copy_(scores.min() / 2)
        post.image_max.copy_(2 * scores.max())
        post._pixel_threshold.copy_(maps.mean())  # noqa: SLF001
        post.pixel_min.copy_(maps.min())
        post.pixel_max.copy_(maps.max())
        write(module, destination)
