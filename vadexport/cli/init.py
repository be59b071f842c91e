"""`vadexport init`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from vadexport.cli.console import Console
from vadexport.cli.inspect import describe_source
from vadexport.cli.options import PATH, console_options, json_option
from vadexport.cli.source_options import source_options
from vadexport.config import SourceChoices, commands, config_text, location_in
from vadexport.errors import InputError
from vadexport.files import is_stream, written_text
from vadexport.inspecting import source_json
from vadexport.terminal import printable

if TYPE_CHECKING:
    from vadexport.sources import Source

#: Kinds of sources that bring their preprocessing.
_PREPROCESSES: Final = ("native", "anomalib")


@click.command("init")
@click.argument("source")
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("vadexport.toml"),
    show_default=True,
    help="File to write.",
)
@click.option("--force", is_flag=True, help="Replace the file that is there.")
@source_options
@json_option
@console_options
def command(
    console: Console,
    *,
    source: str,
    output: Path,
    force: bool,
    given: SourceChoices,
    as_json: bool,
) -> None:
    """Write a vadexport.toml for the trained detector SOURCE, from what `inspect` finds.

    The file holds a whole build and its check. Paths in it start from its folder.

    \b
    Example:
      vadexport init detector.safetensors
      vadexport build --config vadexport.toml
    """
    from vadexport.sources import open_source

    _refuse_to_replace(output, force=force)
    opened = open_source(given.at(source).spec())
    folder = Path() if is_stream(output) else output.parent
    choices = replace(given.at(location_in(folder, source)), model=opened.options.get("model"))
    name = "vadexport.toml" if is_stream(output) else output.name
    text = config_text(
        name,
        choices,
        _proposals(opened),
        describe_source(opened),
        preprocesses=opened.kind in _PREPROCESSES,
    )
    _refuse_to_replace(output, force=force)
    with written_text(output) as file:
        file.write(text)
    if as_json:
        found = {"written": str(output), **source_json(source, opened)}
        console.result(json.dumps(found, indent=2))
    elif not is_stream(output):
        build, _ = commands(str(output), choices)
        console.result(printable(f"{output}: written; next: {build}"))


def _refuse_to_replace(output: Path, *, force: bool) -> None:
    if output.exists() and not is_stream(output) and not force:
        raise InputError(f"{output} is there already: --force replaces it, -o names another")


def _proposals(source: "Source") -> SourceChoices:
    """What the file names in comments: as the source has it, of what may be given for it."""
    image_input = source.detector.image_input
    found = SourceChoices(image_size=(image_input.height, image_input.width))
    if source.kind == "native":
        return found
    deep = "gray16" if image_input.dtype == "uint16" else "gray"
    return replace(found, camera="rgb" if image_input.channels == 3 else deep)
