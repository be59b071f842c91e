"""What a measurement holds for: machine, load, versions, time."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from vadexport.backends.base import available_threads
from vadexport.backends.cuda import GpuState
from vadexport.machine import load_average, processor_name, processors, tool_versions


@dataclass(frozen=True)
class Surroundings:
    """What was there before the measurement.

    Attributes:
        load: average of the last minute; None where the system does not say.
    """

    load: float | None

    @classmethod
    def now(cls) -> Self:
        """Before anything of the measurement runs: its own processes are load as well."""
        return cls(load_average())

    def to_json(self, threads: int | None, gpu: GpuState | None = None) -> dict[str, Any]:
        """All that is to be recorded, after the measurement.

        Args:
            threads: that were asked for; None for as many as this process may use.
            gpu: state of the GPU; None where there is none.
        """
        return {
            **({} if gpu is None else {"gpu": gpu.to_json()}),
            "verified_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "processor": processor_name(),
            **processors(),
            "threads": threads or available_threads(),
            "load_before": self.load,
            "load_after": load_average(),
            "system": platform.platform(),
            "python": platform.python_version(),
            **tool_versions(),
        }
