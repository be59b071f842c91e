"""`vadexport verify`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vadexport.cli.config_options import config_option, needed
from vadexport.cli.console import Console
from vadexport.cli.options import (
    PATH,
    NumberType,
    console_options,
    json_option,
    rounds_option,
    skip_unreadable_option,
    streams_option,
    threads_option,
    torch_compile_option,
)
from vadexport.cli.source_options import source_options
from vadexport.config import Config, SourceChoices
from vadexport.terminal import printable

if TYPE_CHECKING:
    from vadexport.verifying import VerifyResult


@click.command("verify")
@click.argument("artifact", type=PATH, required=False)
@click.option("--reference", metavar="SOURCE", help="The trained detector, as trained.")
@click.option("--images", help="IMAGES that neither training nor calibration has seen.")
@config_option
@click.option(
    "--max-drift", type=NumberType(min=0), help="Largest drift of an image, in drift units."
)
@click.option(
    "--max-flips", type=NumberType(0, 1), help="Largest fraction of decisions that differ."
)
@click.option(
    "--max-map-drift",
    type=NumberType(min=0),
    help="Largest difference of an anomaly map, as a fraction of the maps' range.",
)
@click.option(
    "--min-spearman",
    type=NumberType(-1, 1),
    help="Smallest rank correlation of raw scores with the reference's.",
)
@click.option(
    "--min-speedup",
    type=NumberType(min=0, min_open=True),
    help="Over the reference; the 95% interval, divided by the A/A floor, must clear it.",
)
@click.option(
    "--max-latency-ms",
    type=NumberType(min=0, min_open=True),
    help="Of the median of one call; its 95% interval must clear it.",
)
@click.option(
    "--min-auroc-delta",
    type=NumberType(-1, 1),
    help="Image AUROC minus the reference's, such as -0.002, where labels are known.",
)
@click.option(
    "--max-size-mb", type=NumberType(min=0, min_open=True), help="Of the artifact's files."
)
@click.option(
    "--max-memory-mb",
    type=NumberType(min=0, min_open=True),
    help="Peak of a process that runs the artifact, while latency is measured.",
)
@rounds_option(least=0)
@torch_compile_option
@streams_option
@click.option("--report", type=PATH, help="Folder of the report. [default: report in the artifact]")
@click.option(
    "--repeat",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Run all images N more times, to find results that change. [default: a few, once]",
)
@click.option(
    "--proxy",
    is_flag=True,
    help="Where an artifact's GPU is not here, verify the ONNX graph behind it on the processor.",
)
@source_options
@threads_option
@skip_unreadable_option
@json_option
@console_options
@click.pass_context
def command(
    ctx: click.Context,
    console: Console,
    *,
    artifact: Path | None,
    reference: str | None,
    images: str | None,
    config: Config | None,
    given: SourceChoices,
    max_drift: float | None,
    max_flips: float | None,
    max_map_drift: float | None,
    min_spearman: float | None,
    min_speedup: float | None,
    max_latency_ms: float | None,
    min_auroc_delta: float | None,
    max_size_mb: float | None,
    max_memory_mb: float | None,
    rounds: int | None,
    torch_compile: bool,
    streams: int | None,
    report: Path | None,
    repeat: int,
    proxy: bool,
    threads: int | None,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Hold ARTIFACT, or each artifact of a build, against its reference in PyTorch.

    Drift is the difference of raw scores, in units of the spread (interquartile range) of the
    reference's scores on normal images: those that the detector brings, else those of the build.
    Limits that are not given depend on the precision. How the build read its source is in the
    artifact: options of the reference need not be given again.

    \b
    Example:
      vadexport verify artifact --reference detector.safetensors --images images/test
      vadexport verify --config vadexport.toml
    """
    console.when_interrupted = lambda: "reports are written only at the end"
    config = config or Config()
    artifact = needed(artifact or config.build.output, "ARTIFACT", "output of [build]")
    images = needed(images or config.verify, "--images", "images of [verify]")
    location = needed(reference or config.source.location, "--reference", "location of [source]")
    from vadexport.verifying import VerifyOptions, verify

    limits = {
        "max_drift": max_drift,
        "max_flips": max_flips,
        "max_map_drift": max_map_drift,
        "min_spearman": min_spearman,
        "min_speedup": min_speedup,
        "max_latency_ms": max_latency_ms,
        "min_auroc_delta": min_auroc_delta,
        "max_size_mb": max_size_mb,
        "max_memory_mb": max_memory_mb,
    }
    options = VerifyOptions(
        artifact=artifact,
        reference=given.over(config.source).at(location).spec(),
        images=images,
        limits={
            name: config.limits.get(name) if value is None else value
            for name, value in limits.items()
        },
        rounds=rounds,
        torch_compile=torch_compile,
        streams=streams,
        threads=threads,
        report=report,
        skip_unreadable=skip_unreadable,
        repeat=repeat,
        proxy=proxy,
    )
    result = verify(options, console)
    shown = json.dumps(verify_json(result), indent=2) if as_json else verify_text(result)
    console.result(shown)
    ctx.exit(0 if result.held else 1)


def verify_text(result: "VerifyResult") -> str:
    """What a verification found, for a reader."""
    from vadexport.reporting import summary_table

    places = [printable(f"report: {folder / 'index.html'}") for folder in result.reports]
    return "\n".join([summary_table(result.verifications), "", *places])


def verify_json(result: "VerifyResult") -> list[dict[str, object]]:
    """What a verification found, an entry an artifact."""
    from vadexport.reporting import latency_json, parity_json

    return [
        {"parity": parity_json(one), "latency": latency_json(one)} for one in result.verifications
    ]
