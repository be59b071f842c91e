"""`vadexport evaluate`."""

import json
from pathlib import Path

import click

from vadexport.cli.console import Console, columns
from vadexport.cli.options import (
    PATH,
    console_options,
    json_option,
    skip_unreadable_option,
    threads_option,
)
from vadexport.cli.source_options import is_artifact, source_options
from vadexport.config import SourceChoices


@click.command("evaluate")
@click.argument("detector", metavar="SOURCE|ARTIFACT")
@click.argument("dataset")
@click.option("--plots", type=PATH, help="Folder for a picture of each metric (SVG).")
@source_options
@threads_option
@skip_unreadable_option
@json_option
@console_options
def command(
    console: Console,
    *,
    detector: str,
    dataset: str,
    plots: Path | None,
    given: SourceChoices,
    threads: int | None,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Say how well a detector tells anomalous from normal on DATASET: AUROC, F1-max, AUPRO.

    DATASET is a category folder laid out like those of MVTec AD (test/good, test/<defect>,
    ground_truth), a folder of such folders, or labelled IMAGES, such as a category's folder test
    alone. Pixel AUROC and AUPRO (false positive rate up to 0.3) are there where there are masks.
    Figures are of raw scores, over all thresholds.

    \b
    Example:
      vadexport evaluate detector.safetensors mvtec/bottle
      vadexport evaluate artifact mvtec --plots plots
    """
    from vadexport.evaluating import EvaluateOptions, evaluate
    from vadexport.reporting.evaluation_pictures import write_evaluation_pictures
    from vadexport.reporting.evaluation_report import evaluation_json, evaluation_rows

    if plots is not None:
        console.when_interrupted = lambda: "pictures are written only at the end"
    subject = Path(detector) if is_artifact(detector, given) else given.at(detector).spec()
    evaluation = evaluate(EvaluateOptions(subject, dataset, threads, skip_unreadable), console)
    if as_json:
        console.result(json.dumps(evaluation_json(evaluation), indent=2))
    else:
        console.result(columns(evaluation_rows(evaluation)))
    if plots is not None:
        written = write_evaluation_pictures(evaluation, plots)
        console.note(f"pictures: {', '.join(map(str, written))}")
