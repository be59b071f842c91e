"""What a measurement of latency says, in words: one way for page, summary and terminal."""

from collections.abc import Callable, Iterator
from typing import Final

from vadexport.reporting.wording import (
    MISSING,
    floor,
    measured,
    parts,
    quantile,
    ratio,
    throughput,
)
from vadexport.verification.latency import LatencyFigures
from vadexport.verification.result import Latency

#: Names of the rows that a table shows in columns of its own.
MEDIAN: Final = "median latency"
SPEEDUP: Final = "speed-up [95% interval]"


def latency_rows(found: Latency) -> Iterator[tuple[str, str, str]]:
    """A fact a row: its name, of the reference, of the artifact."""

    def both(words: Callable[[LatencyFigures], str]) -> tuple[str, str]:
        return words(found.reference), words(found.artifact)

    yield MEDIAN, *both(lambda one: f"{measured(one.median_ms)} ms ({one.execution.precision})")
    if found.parts is not None:
        yield from ((name, MISSING, words) for name, words in parts(found.parts))
    rate = both(lambda one: measured(one.images_per_s(found.batch)))
    yield "images per second, call after call", *rate
    if found.throughput is not None and found.reference_throughput is not None:
        beside = (throughput(found.reference_throughput), throughput(found.throughput))
        yield "images per second, call beside call", *beside
    yield "90% of the calls within", *both(lambda one: quantile(one, 0.9))
    yield "99% of the calls within", *both(lambda one: quantile(one, 0.99))
    yield SPEEDUP, MISSING, ratio(found.speedup.ratio)
    if found.compiled is not None and found.over_compiled is not None:
        compiled = f"{measured(found.compiled.median_ms)} ms"
        over = ratio(found.over_compiled.ratio)
        yield "torch.compile: median, and speed-up over it", compiled, over
    yield "A/A floor [95% interval against itself]", *both(floor)
