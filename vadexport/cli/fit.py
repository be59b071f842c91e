"""`vadexport fit`: one command a family, its options read off the family's configuration."""

import dataclasses
import json
import time
import typing
from pathlib import Path
from typing import Any

import click

from vadexport.cli.console import Console, columns
from vadexport.cli.options import (
    PATH,
    LevelsType,
    NumberType,
    SizeType,
    console_options,
    json_option,
    skip_unreadable_option,
)
from vadexport.detectors.families import FAMILIES, Family


class _FitGroup(click.Group):
    """A command for each family; a family's module is imported only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(FAMILIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise click.BadArgumentUsage(f"unknown family {cmd_name!r}; known: {known}", ctx)
        return _command_of(FAMILIES[cmd_name])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Families"):
            formatter.write_dl([(family.name, family.summary) for family in FAMILIES.values()])


@click.group("fit", cls=_FitGroup, subcommand_metavar="FAMILY IMAGES -o FILE [OPTIONS]")
def command() -> None:
    """Train a reference detector of FAMILY on the normal IMAGES.

    IMAGES is a folder, a glob, a text file of paths, or an MVTec-style category folder, of which
    train/good is used.

    \b
    Example:
      vadexport fit patchcore images/train -o detector.safetensors
      vadexport fit patchcore --help
    """


def _command_of(family: Family) -> click.Command:
    """The command of one family: common options, then those of its configuration."""

    @console_options
    def run(console: Console, **arguments: Any) -> None:
        _fit(console, family, arguments)

    config = family.load(family.config)
    hints = typing.get_type_hints(config)
    own = [_option(each, hints[each.name]) for each in dataclasses.fields(config)]
    decorated = click.command(family.name, help=_help(family))(run)
    training = _training_options() if family.trains else []
    decorated.params = [*_common(family), *training, *own, *decorated.params]
    return decorated


def _common(family: Family) -> list[click.Parameter]:
    @click.argument("images")
    @click.option(
        "-o", "--output", type=PATH, required=True, help="Checkpoint to write (safetensors)."
    )
    @click.option(
        "--size",
        type=SizeType(),
        help=f"The network's input. [default: {family.default_size}]",
    )
    @click.option(
        "--quantile",
        type=NumberType(0, 1, min_open=True),
        default=0.95,
        show_default=True,
        help="Fraction of the normal images that stays below the threshold.",
    )
    @click.option(
        "--labelled",
        help="Labelled IMAGES; the threshold of their best F1 score replaces the quantile's.",
    )
    @skip_unreadable_option
    @json_option
    def holder() -> None:
        pass

    return click.command()(holder).params


def _training_options() -> list[click.Parameter]:
    """Those of families that train by gradient descent."""
    return [
        click.Option(
            ["--max-minutes"],
            type=NumberType(min=0, min_open=True),
            help="Stop training after this long, with the best so far. A fit that was killed goes "
            "on where it was when the same command is given again.",
        )
    ]


def _option(each: "dataclasses.Field[Any]", kind: Any) -> click.Option:
    """The option of one field of a family's configuration."""
    name = each.metadata["option"] or f"--{each.name.replace('_', '-')}"
    is_levels = typing.get_origin(kind) is tuple
    default: Any = each.default
    return click.Option(
        [name, each.name],
        type=LevelsType() if is_levels else kind,
        default=",".join(map(str, default)) if is_levels else default,
        show_default=True,
        help=each.metadata["help"],
    )


def _help(family: Family) -> str:
    return (
        f"{family.summary}\n\nTrained on the normal IMAGES: a folder, a glob, a text file of "
        "paths, or an MVTec-style category folder, of which train/good is used.\n\n"
        f"\b\nExample:\n  vadexport fit {family.name} images/train -o detector.safetensors"
    )


def _fit(console: Console, family: Family, arguments: dict[str, Any]) -> None:
    from vadexport.fitting import FitOptions, fit, training_kept_since
    from vadexport.inspecting import detector_json

    output: Path = arguments["output"]
    start = time.time()

    def left_behind() -> str:
        if training_kept_since(output, start):
            return "training was kept: the same command goes on where it was last saved"
        return "nothing was written"

    console.when_interrupted = left_behind
    config_class = family.load(family.config)
    fields = [each.name for each in dataclasses.fields(config_class)]
    options = FitOptions(
        family=family.name,
        images=arguments["images"],
        destination=output,
        config=config_class(**{name: arguments[name] for name in fields}),
        size=arguments["size"],
        quantile=arguments["quantile"],
        labelled=arguments["labelled"],
        skip_unreadable=arguments["skip_unreadable"],
        max_minutes=arguments.get("max_minutes"),
    )
    detector = fit(options, console)
    limits = detector.thresholds
    facts = {
        "family": family.name,
        **detector.describe(),
        **(
            {"training": "; ".join(stage.words for stage in detector.stages)}
            if detector.stages
            else {}
        ),
        "threshold": f"{limits.image:.4f} ({limits.rule})",
        "checkpoint": str(output),
    }
    if arguments["as_json"]:
        described = {"checkpoint": str(output), **detector_json(detector)}
        console.result(json.dumps(described, indent=2))
    else:
        console.result(columns(list(facts.items())))
