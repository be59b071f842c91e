"""`vadexport build`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from vadexport.backends.tensorrt.settings import TensorRTSettings
from vadexport.cli.config_options import chosen, config_option, needed
from vadexport.cli.console import Console, columns
from vadexport.cli.options import (
    PATH,
    ApproximateType,
    BatchType,
    TargetType,
    console_options,
    json_option,
    skip_unreadable_option,
    threads_option,
)
from vadexport.cli.source_options import source_options
from vadexport.cli.verify import verify_json, verify_text
from vadexport.config import Config, SourceChoices
from vadexport.config.reading import LAYOUTS
from vadexport.targets import Target
from vadexport.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vadexport.building import BuildOptions, BuildResult, BuiltTarget
    from vadexport.contract import Layout
    from vadexport.verification.applied import Passes
    from vadexport.verification.ladder import Rung
    from vadexport.verification.limits import Check
    from vadexport.verifying import VerifyResult


@click.command("build")
@click.argument("source", required=False)
@click.option("-o", "--output", type=PATH, help="Folder of the artifact to write.")
@config_option
@click.option(
    "--target",
    "targets",
    type=TargetType(),
    multiple=True,
    default=["openvino:fp32"],
    show_default=True,
    help="Backend and precision; may be given several times. `vadexport doctor` lists them.",
)
@click.option(
    "--calibration",
    help="Normal IMAGES that set INT8 ranges, check every step, and give drift its unit; INT8 "
    "needs them, and every source but a detector of `vadexport fit`.",
)
@click.option(
    "--batch", type=BatchType(), default=1, show_default=True, help="Images a call of the graph."
)
@click.option(
    "--input-layout",
    type=click.Choice(LAYOUTS),
    default="nhwc",
    show_default=True,
    help="The camera's bytes, or float32 from 0 to 1 as anomalib's own inferencers feed it.",
)
@click.option(
    "--tensorrt",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of TensorRT's builder, such as batches=1:8:32, workspace_mb=2048, level=5 or "
    "tf32=true; docs/tensorrt.md has them all.",
)
@click.option(
    "--search-minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Time that each auto target may take to find the layers that must stay in float, and "
    "forms in bfloat16.",
)
@click.option(
    "--no-pass",
    multiple=True,
    metavar="NAME",
    help="A graph pass that is not applied; may be given several times. docs/passes.md names them.",
)
@click.option(
    "--approximate",
    type=ApproximateType(),
    is_flag=False,
    flag_value=True,
    default=False,
    metavar="[DRIFT]",
    help="Also rewrite in ways that move scores (fewer rows or directions of a memory bank), by up "
    "to DRIFT drift units, default the precision's limit; --calibration IMAGES choose how far.",
)
@click.option(
    "--verify",
    "verified",
    is_flag=False,
    flag_value="",
    metavar="[IMAGES]",
    help="Then verify what was built on these IMAGES, as `vadexport verify` does with its "
    "defaults and the limits of --config; without IMAGES on those of its [verify].",
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
    source: str | None,
    output: Path | None,
    config: Config | None,
    given: SourceChoices,
    targets: tuple[Target, ...],
    calibration: str | None,
    batch: int | None,
    input_layout: "Layout",
    settings: tuple[str, ...],
    search_minutes: float,
    no_pass: tuple[str, ...],
    approximate: bool | float,
    verified: str | None,
    threads: int | None,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Compile the trained detector SOURCE, and check every step against PyTorch.

    SOURCE is a file, or `python:package.module:factory`, which runs that code. What it leaves open
    the options say: its preprocessing, for one, or its threshold.

    With one target, the output is its artifact; with several, it holds an artifact for each.
    What was there before is replaced when the new one is whole.

    \b
    Example:
      vadexport build detector.safetensors -o artifact \\
          --target openvino:int8 --target onnxruntime:fp32 --calibration images/train
      vadexport build detector.safetensors -o artifact \\
          --target tensorrt-rtx:fp16@sm86+sm89 --calibration images/train
      vadexport build --config vadexport.toml --verify images/test
    """
    config = config or Config()
    stored = config.build
    location = needed(source or config.source.location, "SOURCE", "location of [source]")
    destination = needed(output or stored.output, "-o", "output of [build]")
    images = None if verified is None else _images_to_verify(verified or config.verify)
    from vadexport.building import BuildOptions, build

    batch_size: int | Literal["dynamic"] | None = chosen("batch", batch, stored.batch)
    options = BuildOptions(
        source=given.over(config.source).at(location).spec(),
        destination=destination,
        targets=chosen("targets", targets, stored.targets),
        calibration=chosen("calibration", calibration, config.calibration),
        batch=None if batch_size == "dynamic" else batch_size,
        threads=chosen("threads", threads, stored.threads),
        skip_unreadable=skip_unreadable,
        layout=chosen("input_layout", input_layout, stored.input_layout),
        tensorrt=TensorRTSettings.of({**config.tensorrt, **_settings(settings)}),
        search_minutes=chosen("search_minutes", search_minutes, stored.search_minutes),
        no_pass=chosen("no_pass", no_pass, stored.no_pass),
        approximate=chosen("approximate", approximate, stored.approximate),
    )
    result = build(options, console)
    console.when_interrupted = lambda: f"{destination} was written"
    status = _status(result)
    if not as_json:
        console.result(_as_text(result))
    found = None
    if images is not None and any(one.folder for one in result.targets):
        found = _verify(console, options, images, config)
        status = status or found.exit_status
    if as_json:
        both = {} if found is None else {"verifications": verify_json(found)}
        console.result(json.dumps({**_as_json(result), **both}, indent=2))
    elif found is not None:
        console.result(f"\n{verify_text(found)}")
    console.verdict([*_reasons(result), *(found.reasons if found else ())])
    ctx.exit(status)


def _images_to_verify(images: str | None) -> str:
    """IMAGES, found before a build takes its time."""
    from vadexport.images.listing import test_images

    if images is None:
        raise click.UsageError("--verify needs IMAGES, or images of [verify] in --config")
    test_images(images)
    return images


def _verify(
    console: Console, options: "BuildOptions", images: str, config: Config
) -> "VerifyResult":
    from vadexport.verifying import VerifyOptions, verify

    wanted = VerifyOptions(
        artifact=options.destination,
        reference=options.source,
        images=images,
        limits=config.limits.everywhere,
        limits_of_precision=config.limits.of_precision,
        threads=options.threads,
        skip_unreadable=options.skip_unreadable,
    )
    return verify(wanted, console)


def _settings(given: tuple[str, ...]) -> dict[str, str]:
    """Settings by name; raises a usage error where one is not NAME=VALUE."""
    pairs = [text.partition("=") for text in given]
    wrong = next((name for name, sign, _ in pairs if not sign), None)
    if wrong is not None:
        raise click.UsageError(f"--tensorrt {wrong!r} is not of the form NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _status(result: "BuildResult") -> int:
    """Of the first target that failed, else 1 if a rung fell short."""
    for one in result.targets:
        if one.error is not None:
            return one.error.exit_status
    return int(any(not rung.held for one in result.targets for rung in one.rungs))


def _reasons(result: "BuildResult") -> list[str]:
    """Why the status is not 0: targets that failed, and each rung that fell short, once."""
    words = [f"{one.target}: {one.error}" for one in result.targets if one.error]
    for one in result.targets:
        for rung in one.rungs:
            words += [f"{_rung_name(rung, one)}: {_shortfall(rung.checks)}"] * (not rung.held)
    return list(dict.fromkeys(words))


def _rung_name(rung: "Rung", target: "BuiltTarget") -> str:
    """With the target, where others may have another one of the same name."""
    of_target = rung.name in ("quantised", "prepared", "compiled")
    return f"{rung.name} {target.target}" if of_target else rung.name


def _as_text(result: "BuildResult") -> str:
    lines = [
        printable(f"checked on {result.check_images}; drift unit {result.drift_unit}"),
        *map(printable, result.notes),
        *passes_table([one.passes for one in result.targets]),
        "",
    ]
    rows: list[tuple[str, ...]] = [("rung", "drift max", "drift mean", "flips", "verdict")]
    seen = set()
    for one in result.targets:
        for rung in one.rungs:
            name = _rung_name(rung, one)
            if name not in seen:
                seen.add(name)
                found = rung.figures
                verdict = "held" if rung.held else _shortfall(rung.checks)
                rows.append(
                    (
                        name,
                        f"{found.drift_max:.2e}",
                        f"{found.drift_mean:.2e}",
                        "–" if found.flips is None else f"{found.flips}/{found.images}",
                        verdict,
                    )
                )
    lines += [columns(rows), ""]
    lines += [printable(_outcome(one)) for one in result.targets]
    return "\n".join(lines)


def passes_table(built: "Sequence[Passes]") -> list[str]:
    """What was left out, and a table of what became of the passes of all targets."""
    known = {one.name: one for passes in built for one in passes.applied}
    left_out = next((passes.left_out for passes in built if passes.left_out), ())
    lines = [f"passes left out: {', '.join(left_out)}"] if left_out else []
    if known:
        timed_on = next((passes.timed_on for passes in built if passes.timed_on), None)
        brought = f"brought, on {timed_on}" if timed_on else "brought"
        rows = [
            ("pass", "places", brought),
            *((one.name, str(one.places), one.brought) for one in known.values()),
        ]
        lines += ["", columns(rows)]
    return lines


def _outcome(one: "BuiltTarget") -> str:
    return f"{one.target}: {one.folder or f'not built: {one.error}'}"


def _shortfall(checks: "tuple[Check, ...]") -> str:
    return "; ".join(check.line for check in checks if not check.held)


def _as_json(result: "BuildResult") -> dict[str, object]:
    return {
        "check_images": result.check_images,
        "drift_unit": result.drift_unit,
        "notes": list(result.notes),
        "targets": [
            {
                "target": str(one.target),
                "artifact": str(one.folder) if one.folder else None,
                "error": str(one.error) if one.error else None,
                "search": one.facts.get("search"),
                "passes": one.passes.to_json(),
                "ladder": [rung.to_json() for rung in one.rungs],
            }
            for one in result.targets
        ],
    }
