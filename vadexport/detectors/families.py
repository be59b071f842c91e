"""The families of detectors by name; importing this imports none of them."""

import importlib
from dataclasses import dataclass
from typing import Any

from vadexport.errors import InputError


@dataclass(frozen=True)
class Family:
    """Where a family is found, and what the command line says of it.

    Its module holds the detector's class, a frozen dataclass of the method's choices, and
    `fit(images, config, image_input, *, size, quantile, progress)`, which returns the detector; a
    family that trains by gradient descent also takes `training`.

    Attributes:
        name: on the command line and in checkpoints.
        summary: one line.
        module: that implements it.
        detector: name of its class.
        config: name of the dataclass of its choices.
        trains: whether it trains by gradient descent.
        default_size: of the network's input, in words.
    """

    name: str
    summary: str
    module: str
    detector: str
    config: str
    trains: bool = False
    default_size: str = "the images'"

    def load(self, name: str) -> Any:
        """Something of the family's module."""
        return getattr(importlib.import_module(self.module), name)


_ALL = (
    Family(
        "patchcore",
        "Nearest neighbours among patches of normal images (Roth et al. 2022).",
        "vadexport.detectors.patchcore",
        "PatchCore",
        "PatchCoreConfig",
    ),
    Family(
        "padim",
        "A Gaussian of normal patches at every position (Defard et al. 2021).",
        "vadexport.detectors.padim",
        "PaDiM",
        "PaDiMConfig",
    ),
    Family(
        "student_teacher",
        "A student that learnt its teacher on normal images (STFPM, Wang et al. 2021).",
        "vadexport.detectors.student_teacher",
        "StudentTeacher",
        "StudentTeacherConfig",
        trains=True,
    ),
    Family(
        "efficient_ad",
        "Small teacher, student and autoencoder (EfficientAD-style, Batzner et al. 2024).",
        "vadexport.detectors.efficient_ad",
        "EfficientAd",
        "EfficientAdConfig",
        trains=True,
    ),
    Family(
        "autoencoder",
        "A convolutional autoencoder trained with SSIM and L2 (Bergmann et al. 2019).",
        "vadexport.detectors.autoencoder",
        "Autoencoder",
        "AutoencoderConfig",
        trains=True,
    ),
    Family(
        "diffusion",
        "What a few guided denoising steps do not reproduce (DDAD, Mousakhan et al. 2023).",
        "vadexport.detectors.diffusion",
        "Diffusion",
        "DiffusionConfig",
        trains=True,
        default_size="the images', scaled to at most 64 pixels a side",
    ),
)

#: Every family by its name.
FAMILIES = {family.name: family for family in _ALL}


def find_family(name: object) -> Family:
    """The family of that name; raises InputError where there is none."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise InputError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]
