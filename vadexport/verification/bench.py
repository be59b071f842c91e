"""What a bench found: the one object that its table and its JSON are made from."""

from dataclasses import dataclass
from typing import Any

from vadexport.verification.latency import LatencyFigures, Speedup
from vadexport.verification.throughput import Throughput


@dataclass(frozen=True)
class Benched:
    """One of those that were timed.

    Attributes:
        figures: its latency.
        over_first: how many times faster than the first it is; None for the first itself.
        megabytes: of its files, in 10^6 bytes; None where it is code.
        throughput: None where it was not measured.
    """

    figures: LatencyFigures
    over_first: Speedup | None
    megabytes: float | None
    throughput: Throughput | None = None


@dataclass(frozen=True)
class Bench:
    """Contestants that were timed in the same rounds.

    Attributes:
        contestants: in the order they were given.
        batch: images a call.
        environment: what the figures hold for.
        warnings: what may spoil them.
    """

    contestants: tuple[Benched, ...]
    batch: int
    environment: dict[str, Any]
    warnings: tuple[str, ...]
