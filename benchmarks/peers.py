"""Every detector family and target beside the peers: speed, scores, builds, on one machine.

Each row is a detector: one trained by anomalib's own classes, or one of vadexport's own. Its
contestants get the same weights and the same camera bytes, 256 × 256: PyTorch eager, channels
last and under torch.compile, anomalib's own exports, the plain trace, NNCF over the whole graph,
and five targets of vadexport. Scores of all are held against PyTorch eager's on images that nothing
has seen; calls are timed in the same rounds, in random order. Goals stand beside what was measured.

    python benchmarks/peers.py [--only padim-resnet18,…] [--again] [--rounds 100] [--quick]
        [--document docs/benchmarks.md]
    python benchmarks/peers.py growth [--again] [--quick] [--document docs/benchmarks.md]
    python benchmarks/peers.py peaks [--again] [--quick] [--document docs/benchmarks.md]
    python benchmarks/peers.py all [--quick] [--document docs/benchmarks.md]

`growth` times banks of 1,024 to 65,536 rows, and images of 128 to 1,024 pixels; `peaks` compares
artifacts with the matrix products that this processor manages. What was made or measured is kept in
benchmark-output/peers after each step, raw samples too, so that a run which was stopped goes on;
--again makes artifacts and figures anew (detectors stay). --quick is to see that all of it works:
few images and rounds, two detectors, weights that hardly learnt; no document takes its figures.
"""

import argparse
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Final

import peer_growth
import peer_peaks
from documents import replace_table
from peer_builds import build, commands
from peer_measuring import measure
from peer_plots import PLOTS, write_plots
from peer_rows import PARTS, QUICK_PARTS, ROWS, lay_out
from peer_table import contestants_table, goals_table, growth_table, peaks_table

from vadexport.machine import processor_name, tool_versions
from vadexport.telemetry import forbid_telemetry

OUTPUT: Final = Path("benchmark-output")
QUICK_ROWS: Final = ("padim-resnet18", "autoencoder")
QUICK_ROUNDS: Final = 10
STEPS: Final = ("rows", "growth", "peaks")


def main() -> None:
    """Make and measure what is not there yet, and write what is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", nargs="?", default="rows", choices=(*STEPS, "all"))
    parser.add_argument("--only", help="rows, joined by commas")
    parser.add_argument("--again", action="store_true", help="artifacts and figures anew")
    parser.add_argument("--rounds", type=int, help="as many as a minute has time for, up to 100")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    parser.add_argument("--document", type=Path, help="whose tables are replaced")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    forbid_telemetry()
    names = options.only.split(",") if options.only else QUICK_ROWS if options.quick else [*ROWS]
    for name in names:
        if name not in ROWS:
            sys.exit(f"unknown detector {name!r}; known: {', '.join(ROWS)}")
    if options.quick and options.document:
        sys.exit("figures of --quick mean nothing: none go into a document")
    work = OUTPUT / ("peers-quick" if options.quick else "peers")
    work.mkdir(parents=True, exist_ok=True)
    print(processor_name(), tool_versions(), flush=True)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else None)
    steps = STEPS if options.step == "all" else (options.step,)
    if "rows" in steps:
        for name in names:
            run_row(name, work, rounds, quick=options.quick, again=options.again)
    for step, module in (("growth", peer_growth), ("peaks", peer_peaks)):
        if step in steps:
            module.run(work, rounds, quick=options.quick, again=options.again)
    write(work, options.document)


def run_row(name: str, work: Path, rounds: int | None, *, quick: bool, again: bool) -> None:
    """Make a detector, build all of it, and measure; what was done before is kept."""
    row, folder = ROWS[name], work / name
    folder.mkdir(exist_ok=True)
    images = lay_out(work / "images", QUICK_PARTS if quick else PARTS)
    source = work / f"{name}.{'ckpt' if row.model else 'safetensors'}"
    if not source.exists():
        with timed(f"{name}: made"):
            row.make(images, source, quick)
    state = folder / "found.json"
    found: dict[str, Any] = {"builds": {}}
    if state.exists() and not again:
        found = json.loads(state.read_text())
    for each, command in commands(row, source, images, folder).items():
        if each not in found["builds"]:
            with timed(f"{name}: {each}"):
                found["builds"][each] = build(each, command, folder)
            found.pop("measured", None)
            keep(state, found)
    if "measured" not in found:
        with timed(f"{name}: measured"):
            found["measured"] = measure(source, images, folder, rounds, compiled=not quick)
        keep(state, found)


class timed:  # noqa: N801 - reads as a phrase
    """Says how long what is within it took."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, kind: object, *_: object) -> None:
        ended = "in" if kind is None else "failed after"
        print(f"{self._what} {ended} {time.monotonic() - self._started:.0f} s", flush=True)


def keep(state: Path, found: dict[str, Any]) -> None:
    """Write a state, whole or not at all."""
    partial = state.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.rename(state)


def write(work: Path, document: Path | None) -> None:
    """Tables of all that is measured, to the terminal or into the document; and plots beside it."""
    rows = {name: state(work / name / "found.json") for name in ROWS}
    measured = {name: one for name, one in rows.items() if one and "measured" in one}
    growth, peaks = state(work / "growth.json"), state(work / "peaks.json")
    tables = {}
    if measured:
        tables["goals"] = goals_table(measured, growth) + _plot("bench-speed")
        tables["contestants"] = contestants_table(measured) + _plot("bench-drift")
    if growth:
        tables["growth"] = growth_table(growth)
    if peaks:
        tables["peaks"] = peaks_table(peaks)
    for name, table in tables.items():
        print(f"\n{table}", flush=True)
        if document is not None:
            replace_table(document, table, name)
    if measured:
        write_plots(measured, work if document is None else document.parent / "images")


def _plot(name: str) -> str:
    """A line that shows a plot."""
    return f"\n![{PLOTS[name]}](images/{name}.svg)\n"


def state(path: Path) -> dict[str, Any] | None:
    """What was kept; None where nothing was."""
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    main()
