"""`vadexport predict`."""

import json
from contextlib import closing
from pathlib import Path

import click

from vadexport.cli.console import Console
from vadexport.cli.options import (
    PATH,
    console_options,
    json_option,
    skip_unreadable_option,
    threads_option,
)
from vadexport.predicting import PredictedImage, PredictOptions, predict
from vadexport.terminal import printable


@click.command("predict")
@click.argument("artifact", type=PATH)
@click.argument("images")
@click.option("--heatmaps", type=PATH, help="Folder for overlays of image and anomaly map (PNG).")
@click.option("--jsonl", type=PATH, help="File for one JSON object a line and image.")
@threads_option
@skip_unreadable_option
@json_option
@console_options
def command(
    console: Console,
    *,
    artifact: Path,
    images: str,
    heatmaps: Path | None,
    jsonl: Path | None,
    threads: int | None,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Score IMAGES with ARTIFACT: a line each, its score in [0, 1], threshold at 0.5.

    \b
    Example:
      vadexport predict artifact images/new --heatmaps heatmaps --jsonl scores.jsonl
    """
    options = PredictOptions(artifact, images, heatmaps, jsonl, threads, skip_unreadable)
    if heatmaps is not None:
        console.when_interrupted = lambda: f"heatmaps made so far stay in {heatmaps}"
    count = decided = anomalous = 0
    with closing(predict(options, console)) as predicted:
        for found in predicted:
            count += 1
            decided += found.prediction.label is not None
            anomalous += bool(found.prediction.label)
            console.result(json.dumps(found.to_json()) if as_json else _line(found))
    console.note(
        f"{anomalous} of {count} images are anomalous"
        if decided or not count
        else f"{count} images scored; the detector makes no decisions"
    )


def _line(found: PredictedImage) -> str:
    label = {True: "anomalous", False: "normal", None: "–"}[found.prediction.label]
    return f"{found.prediction.pred_score:.4f}  {label:<9}  {printable(found.file.name)}"
