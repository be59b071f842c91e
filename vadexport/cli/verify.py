"""`vadexport verify`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vadexport.cli.config_options import config_option, needed
from vadexport.cli.console import Console
from vadexport.cli.limit_options import limit_options
from vadexport.cli.options import (
    PATH,
    console_options,
    json_option,
    rounds_option,
    skip_unreadable_option,
    streams_option,
    threads_option,
    torch_compile_option,
)
from vadexport.cli.source_options import source_options
from vadexport.config import Config, LimitChoices, SourceChoices
from vadexport.terminal import printable

if TYPE_CHECKING:
    from vadexport.verifying import VerifyResult


@click.command("verify")
@click.argument("artifact", type=PATH, required=False)
@click.option("--reference", metavar="SOURCE", help="The trained detector, as trained.")
@click.option("--images", help="IMAGES that neither training nor calibration has seen.")
@config_option
@limit_options
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
    limits: LimitChoices,
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
    Limits that are not given depend on the precision. A limit holds for all targets, or, written
    int8=X, for those of a precision; it may be given several times. How the build read its source
    is in the artifact: options of the reference need not be given again.

    \b
    Example:
      vadexport verify artifact --reference detector.safetensors --images images/test
      vadexport verify artifact --config vadexport.toml --max-drift int8=0.5
    """
    console.when_interrupted = lambda: "reports are written only at the end"
    config = config or Config()
    artifact = needed(artifact or config.build.output, "ARTIFACT", "output of [build]")
    images = needed(images or config.verify, "--images", "images of [verify]")
    location = needed(reference or config.source.location, "--reference", "location of [source]")
    from vadexport.verifying import VerifyOptions, verify

    limits = limits.over(config.limits)
    options = VerifyOptions(
        artifact=artifact,
        reference=given.over(config.source).at(location).spec(),
        images=images,
        limits=limits.everywhere,
        limits_of_precision=limits.of_precision,
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
    console.verdict(result.reasons)
    ctx.exit(result.exit_status)


def verify_text(result: "VerifyResult") -> str:
    """What a verification found, for a reader."""
    from vadexport.reporting import front_page, summary_table

    places = [printable(f"report: {front_page(folder)}") for folder in result.reports]
    return "\n".join([summary_table(result.verifications), "", *places])


def verify_json(result: "VerifyResult") -> list[dict[str, object]]:
    """What a verification found, an entry an artifact."""
    from vadexport.reporting import latency_json, parity_json

    return [
        {"parity": parity_json(one), "latency": latency_json(one)} for one in result.verifications
    ]
