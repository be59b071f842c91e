"""What an evaluation found: how well a detector tells anomalous from normal, by category."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self, cast

import numpy as np
from numpy.typing import NDArray

from vadexport.backends.base import Execution
from vadexport.errors import InputError
from vadexport.verification.curves import BestF1, Curve
from vadexport.verification.segmentation import FPR_LIMIT, PixelScores
from vadexport.verification.statistics import Float64Array, auroc

#: Names of the figures that are averaged over categories, in the order they are shown.
METRICS: Final = ("image_auroc", "f1_max", "pixel_auroc", "aupro")


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class CategoryEvaluation:
    """One category's figures.

    Attributes:
        name: of the category.
        scores: raw score of each image, float64 `[n]`.
        anomalous: label of each image, bool `[n]`.
        image_auroc: area under the ROC curve of the images.
        best_f1: the largest F1 score of the images, and where it is reached.
        regions: number of defects in the masks; None without masks.
        pixel_auroc: area under the ROC curve of all pixels; None without masks.
        aupro: area under the PRO curve up to a false positive rate of 0.3; None without masks.
        pixel_roc: ROC curve of all pixels, thinned for pictures; None without masks.
        pro: PRO curve, likewise.
    """

    name: str
    scores: Float64Array
    anomalous: NDArray[np.bool_]
    image_auroc: float
    best_f1: BestF1
    regions: int | None = None
    pixel_auroc: float | None = None
    aupro: float | None = None
    pixel_roc: Curve | None = None
    pro: Curve | None = None

    @property
    def f1_max(self) -> float:
        """The largest F1 score of the images."""
        return self.best_f1.value

    @classmethod
    def of(
        cls,
        name: str,
        scores: Sequence[float],
        anomalous: Sequence[bool],
        pixels: PixelScores | None,
    ) -> Self:
        """Sum up a category.

        Args:
            name: of the category.
            scores: raw score of each image, finite.
            anomalous: label of each image.
            pixels: of all images; None without masks.

        Raises:
            InputError: the images are not of both labels.
        """
        check_labels(name, anomalous)
        raw, truth = np.array(scores, np.float64), np.array(anomalous, np.bool_)
        area = cast("float", auroc(raw, truth))  # not None, as both labels are there
        image = (name, raw, truth, area, BestF1.of(raw, truth))
        curves = pixels.curves() if pixels else None
        if pixels is None or curves is None:
            return cls(*image)
        roc, pro = curves
        return cls(
            *image,
            regions=pixels.regions,
            pixel_auroc=roc.area(),
            aupro=pro.area(FPR_LIMIT),
            pixel_roc=roc.thinned(),
            pro=pro.thinned(),
        )


@dataclass(frozen=True)
class Evaluation:
    """A detector's figures on a data set.

    Attributes:
        detector: file name of the source, or name of the artifact's folder.
        kind: `source` or `artifact`.
        target: that an artifact was built for; None of a source.
        sha256: of the source's file: of what an artifact was built from.
        execution: how the detector ran.
        dataset: as it was given.
        categories: in the order of their names.
    """

    detector: str
    kind: str
    target: str | None
    sha256: str | None
    execution: Execution
    dataset: str
    categories: tuple[CategoryEvaluation, ...]

    def mean(self, metric: str) -> float | None:
        """Mean of one of `METRICS` over the categories; None where one of them lacks it."""
        values = [getattr(category, metric) for category in self.categories]
        return None if None in values else float(np.mean(values))


def check_labels(where: str, anomalous: Sequence[bool]) -> None:
    """Make sure that there are images to tell apart.

    Args:
        where: they are.
        anomalous: label of each image, at least one.

    Raises:
        InputError: all images are normal, or all are anomalous.
    """
    if len(set(anomalous)) > 1:
        return
    count = len(anomalous)
    these = f"all {count} test images are" if count > 1 else "the only test image is"
    if any(anomalous):
        raise InputError(
            f"{where}: {these} anomalous; figures take normal ones, too, in a folder named good"
        )
    raise InputError(f"{where}: {these} normal; figures take anomalous ones, too")
