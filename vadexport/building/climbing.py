"""A step of a build: its graph, and the rung that it is checked on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vadexport.backends.base import RunnerOpener
from vadexport.verification.applied import AppliedPass
from vadexport.verification.drift import DriftUnit
from vadexport.verification.ladder import Ladder, Rung
from vadexport.verification.limits import Limits
from vadexport.verification.proxy import GRAPH_FILE, proxy_opener


@dataclass(frozen=True)
class Climber:
    """Checks steps of a build against the reference.

    Attributes:
        ladder: check images and the reference's outputs.
        unit: of drift.
        threads: that a step's runner may use.
        limits: of steps by their precision, in place of the defaults.
        repeated: whether each step must also give the same again.
    """

    ladder: Ladder
    unit: DriftUnit
    threads: int
    limits: Mapping[str, Limits] = field(default_factory=dict)
    repeated: bool = False

    def climb(self, name: str, what: str, open_runner: RunnerOpener, precision: str) -> Rung:
        """Check what `open_runner` opens; `what` names it in errors."""
        limits = self.limits.get(precision) or Limits.of_rung(precision)
        return self.ladder.climb(
            name, what, open_runner, self.unit.value, limits, repeated=self.repeated
        )

    def climb_graph(self, name: str, folder: Path, precision: str) -> Rung:
        """Check the ONNX graph in a folder, run by ONNX Runtime on the processor."""
        open_runner = proxy_opener(folder, precision, self.threads)
        rung = self.climb(name, f"onnxruntime:{precision} ({name})", open_runner, precision)
        return self.ladder.check_preprocessing(rung, folder / GRAPH_FILE)


@dataclass(frozen=True)
class Graph:
    """A graph of one precision.

    Attributes:
        path: of its ONNX file.
        rungs: of the steps that led to it.
        precision: of each part.
        search: what chose its layers, as JSON values; None where nothing did.
        proof: the same as far as ONNX Runtime can run it, which the last rung is of; None where
            that is all of it.
        search_pass: that wrote the search of its memory bank in place of those that search in
            float32 in all directions; None where these did.
    """

    path: Path
    rungs: tuple[Rung, ...]
    precision: dict[str, str]
    search: dict[str, Any] | None = None
    proof: Path | None = None
    search_pass: AppliedPass | None = None

    @property
    def provable(self) -> Path:
        """The ONNX file as far as ONNX Runtime can run it."""
        return self.proof or self.path
