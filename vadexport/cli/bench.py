"""`vadexport bench`."""

import json
from pathlib import Path

import click

from vadexport.cli.console import Console, columns
from vadexport.cli.options import (
    console_options,
    json_option,
    rounds_option,
    skip_unreadable_option,
    streams_option,
    threads_option,
    torch_compile_option,
)
from vadexport.cli.source_options import is_artifact, source_options
from vadexport.config import SourceChoices


@click.command("bench")
@click.argument("subjects", metavar="DIR|SOURCE...", nargs=-1, required=True)
@click.option("--images", required=True, help="IMAGES that calls are made of.")
@rounds_option(least=1)
@torch_compile_option
@streams_option
@source_options
@threads_option
@skip_unreadable_option
@json_option
@console_options
def command(
    console: Console,
    *,
    subjects: tuple[str, ...],
    images: str,
    rounds: int | None,
    torch_compile: bool,
    streams: int | None,
    given: SourceChoices,
    threads: int | None,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Time artifacts (DIR) and trained detectors (SOURCE, in PyTorch) side by side.

    Each round times one call of each, in random order; the first is what the others are compared
    to. All take images of the same size. A source that an artifact was built from is read as it was
    for the build.

    \b
    Example:
      vadexport bench detector.safetensors artifact --images images/test
      vadexport bench old/artifact new/artifact --images images/test --rounds 300
    """
    from vadexport.benching import BenchOptions, bench
    from vadexport.reporting.bench_report import bench_json, bench_notes, bench_tables

    folders = [one for one in subjects if Path(one).is_dir()]
    if len(folders) == len(subjects):
        is_artifact(folders[0], given)  # refuses what only sources take
    options = BenchOptions(
        subjects=tuple(Path(one) if one in folders else given.at(one).spec() for one in subjects),
        images=images,
        rounds=rounds,
        torch_compile=torch_compile,
        streams=streams,
        threads=threads,
        skip_unreadable=skip_unreadable,
    )
    found = bench(options, console)
    if as_json:
        console.result(json.dumps(bench_json(found), indent=2))
    else:
        tables = [columns(list(rows)) for rows in bench_tables(found)]
        console.result("\n\n".join([*tables, "\n".join(bench_notes(found))]))
