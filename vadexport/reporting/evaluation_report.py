"""An evaluation as a table for the terminal, and as JSON."""

from dataclasses import asdict
from typing import Any, Final

from vadexport.reporting.wording import figure
from vadexport.verification.evaluation import METRICS, CategoryEvaluation, Evaluation
from vadexport.verification.segmentation import FPR_LIMIT

SCHEMA_VERSION: Final = 1

_TITLES: Final = ("category", "images", "image AUROC", "F1-max", "pixel AUROC", "AUPRO")


def evaluation_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """The table's rows: titles, a row a category, and their mean where there are several."""
    rows: list[tuple[str, ...]] = [_TITLES]
    for category in evaluation.categories:
        figures = (figure(getattr(category, metric), ".4f") for metric in METRICS)
        rows.append((category.name, str(len(category.scores)), *figures))
    if len(evaluation.categories) > 1:
        means = (figure(evaluation.mean(metric), ".4f") for metric in METRICS)
        rows.append(("mean", "", *means))
    return rows


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """All figures; None for those that take masks where there are none.

    Threshold in raw score units; `mean` is over categories, None where one lacks the figure.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "detector": evaluation.detector,
        "kind": evaluation.kind,
        "target": evaluation.target,
        "source_sha256": evaluation.sha256,
        "execution": asdict(evaluation.execution),
        "dataset": evaluation.dataset,
        "aupro_fpr_limit": FPR_LIMIT,
        "categories": [_category(one) for one in evaluation.categories],
        "mean": {metric: evaluation.mean(metric) for metric in METRICS},
    }


def _category(category: CategoryEvaluation) -> dict[str, Any]:
    return {
        "category": category.name,
        "images": len(category.scores),
        "anomalous_images": int(category.anomalous.sum()),
        "regions": category.regions,
        **{metric: getattr(category, metric) for metric in METRICS},
        "f1_threshold": category.best_f1.threshold,
        "precision": category.best_f1.precision,
        "recall": category.best_f1.recall,
    }
