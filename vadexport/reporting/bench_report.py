"""A bench as tables for the terminal, and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from vadexport.reporting.wording import MISSING, figure, floor, measured, ratio, throughput
from vadexport.verification.bench import Bench, Benched
from vadexport.verification.statistics import values_needed

SCHEMA_VERSION: Final = 1

Row = tuple[str, ...]

_SPEED: Final[Row] = (
    *("contestant", "median ms", "90% ms", "99% ms", "images/s"),
    *("speed-up [95%]", "A/A floor [95%]"),
)
_REST: Final[Row] = (
    *("contestant", "precision", "threads", "load ms", "first ms", "peak MB", "files MB"),
    "backend",
)


def bench_tables(bench: Bench) -> list[list[Row]]:
    """Rows of two tables, titles first: how fast each is, and how it ran."""
    speed = [_speed(one, bench.batch) for one in bench.contestants]
    return [[_SPEED, *speed], [_REST, *map(_rest, bench.contestants)]]


def bench_notes(bench: Bench) -> Iterator[str]:
    """What the tables must be read with."""
    rounds = len(bench.contestants[0].figures.samples_ms)
    images = "1 image" if bench.batch == 1 else f"{bench.batch} images"
    yield f"{rounds} rounds, {images} a call; speed-up over {bench.contestants[0].figures.name}"
    for one in bench.contestants:
        if one.throughput is not None:
            yield f"images per second of {one.figures.name}: {throughput(one.throughput)}"
    few = [f"{of:.0%} from {values_needed(of)}" for of in (0.9, 0.99) if rounds < values_needed(of)]
    if few:
        yield f"{MISSING}: too few rounds tell ({', '.join(few)} on)"


def bench_json(bench: Bench) -> dict[str, Any]:
    """All figures, every sample included."""
    return {
        "schema_version": SCHEMA_VERSION,
        "batch": bench.batch,
        "contestants": [
            {
                **asdict(one.figures),
                "aa_floor": one.figures.floor,
                "images_per_s": one.figures.images_per_s(bench.batch),
                "megabytes": one.megabytes,
                "throughput": None if one.throughput is None else asdict(one.throughput),
                "speedup_over_first": None
                if one.over_first is None
                else asdict(one.over_first.ratio),
            }
            for one in bench.contestants
        ],
        "environment": bench.environment,
        "warnings": list(bench.warnings),
    }


def _speed(one: Benched, batch: int) -> Row:
    found = one.figures
    over_first = MISSING if one.over_first is None else ratio(one.over_first.ratio)
    quantiles = (MISSING if ms is None else measured(ms) for ms in (found.p90_ms, found.p99_ms))
    rate = measured(found.images_per_s(batch))
    return (found.name, measured(found.median_ms), *quantiles, rate, over_first, floor(found))


def _rest(one: Benched) -> Row:
    found, taken = one.figures, one.figures.footprint
    footprint: Row = (MISSING, MISSING, MISSING)
    if taken is not None:
        peak = MISSING if taken.peak_mb is None else f"{taken.peak_mb:.0f}"
        footprint = (f"{taken.load_ms:.0f}", f"{taken.first_ms:.0f}", peak)
    execution = found.execution
    return (
        *(found.name, execution.precision, str(execution.threads), *footprint),
        figure(one.megabytes, ".1f"),
        execution.backend,
    )
