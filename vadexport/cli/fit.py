"""`vadexport fit`."""

import json
from pathlib import Path

import click

from vadexport.cli.console import Console, columns
from vadexport.cli.options import (
    PATH,
    SizeType,
    console_options,
    json_option,
    skip_unreadable_option,
)
from vadexport.detectors.patchcore import PatchCoreConfig
from vadexport.fitting import FitOptions, fit


@click.command("fit")
@click.argument("family", type=click.Choice(["patchcore"]))
@click.argument("images")
@click.option("-o", "--output", type=PATH, required=True, help="Checkpoint to write (safetensors).")
@click.option(
    "--backbone",
    default="efficientnet_lite0",
    show_default=True,
    help="efficientnet_lite0 … lite2, or any timm model.",
)
@click.option(
    "--levels",
    default="2,3",
    show_default=True,
    help="Feature levels that make up a patch; level l has stride 2^(l+1).",
)
@click.option("--size", type=SizeType(), help="The network's input. [default: the images' size]")
@click.option(
    "--coreset",
    type=float,
    default=0.01,
    show_default=True,
    help="Fraction of the normal patches that the memory bank keeps.",
)
@click.option(
    "--neighbours",
    type=int,
    default=0,
    show_default=True,
    help="Neighbours of the paper's re-weighting of the score (9 in the paper); 0 turns it off.",
)
@click.option(
    "--quantile",
    type=float,
    default=0.95,
    show_default=True,
    help="Fraction of the normal images that stays below the threshold.",
)
@click.option(
    "--labelled",
    help="Labelled IMAGES; the threshold of their best F1 score replaces the quantile's.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random projection.")
@skip_unreadable_option
@json_option
@console_options
def command(
    console: Console,
    *,
    family: str,
    images: str,
    output: Path,
    backbone: str,
    levels: str,
    size: tuple[int, int] | None,
    coreset: float,
    neighbours: int,
    quantile: float,
    labelled: str | None,
    seed: int,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Train a reference detector of FAMILY on the normal IMAGES.

    IMAGES is a folder, a glob, a text file of paths, or an MVTec-style category folder, of which
    train/good is used.

    \b
    Example:
      vadexport fit patchcore images/train -o detector.safetensors
    """
    config = PatchCoreConfig(
        backbone=backbone,
        levels=_levels(levels),
        coreset_ratio=coreset,
        neighbours=neighbours,
        seed=seed,
    )
    options = FitOptions(images, output, config, size, quantile, labelled, skip_unreadable)
    detector = fit(options, console)
    limits = detector.thresholds
    facts = {
        "family": family,
        **detector.describe(),
        "threshold": f"{limits.image:.4f} ({limits.rule})",
        "checkpoint": str(output),
    }
    if as_json:
        console.result(json.dumps({**facts, "thresholds": limits.to_json()}, indent=2))
    else:
        console.result(columns(list(facts.items())))


def _levels(text: str) -> tuple[int, ...]:
    try:
        levels = tuple(int(level) for level in text.split(","))
    except ValueError:
        levels = ()
    if not levels or list(levels) != sorted(set(levels)):
        raise click.BadParameter(
            f"{text!r} is no ascending list such as 2,3", param_hint="--levels"
        )
    return levels
