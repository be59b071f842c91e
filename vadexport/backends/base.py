"""What every backend offers: compile a graph into files, and open the files to run them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vadexport.backends.tensorrt.settings import DEFAULT_SETTINGS, TensorRTSettings
from vadexport.contract import Outputs
from vadexport.machine import available_processors
from vadexport.targets import Target


@dataclass(frozen=True)
class ExecutedLayer:
    """A layer as a backend runs it: several of the graph, perhaps, that it fused.

    Attributes:
        name: in the backend's words.
        operator: likewise.
        precision: that it computes in, likewise.
    """

    name: str
    operator: str
    precision: str


@dataclass(frozen=True)
class Execution:
    """How a model really runs, as far as its backend can tell.

    Attributes:
        backend: name and version.
        precision: of the arithmetic, in words: what a latency figure must be quoted with.
        device: processor that it runs on.
        threads: that one call may use.
        layers: number of executed layers by the precision they ran in; empty where unknown.
        executed_layers: each of them; empty where unknown.
    """

    backend: str
    precision: str
    device: str
    threads: int
    layers: dict[str, int] = field(default_factory=dict)
    executed_layers: tuple[ExecutedLayer, ...] = ()

    def with_layers(self, layers: Sequence[ExecutedLayer]) -> Self:
        """The same, with its layers, which take time to find out."""
        counts = Counter(layer.precision for layer in layers)
        return replace(self, layers=dict(sorted(counts.items())), executed_layers=tuple(layers))


class Runner(Protocol):
    """A loaded model."""

    @property
    def execution(self) -> Execution:
        """How it runs."""

    def infer(self, image: NDArray[Any]) -> Outputs:
        """Run one call of the graph; `image` is `[N, H, W, C]` of the graph's batch."""


class Backend(Protocol):
    """The module of a backend; its heavy package is imported by the functions that need it."""

    #: Name of the package's module, and the pip extra that brings it; None where vadexport does.
    PACKAGE: str
    EXTRA: str | None
    #: Whether it compiles for devices that are not at hand.
    AHEAD_OF_TIME: bool

    def version(self) -> str:
        """Version of the installed package; raises MissingPackageError."""

    def compile_graph(
        self,
        model: Path,
        folder: Path,
        target: Target,
        settings: TensorRTSettings = DEFAULT_SETTINGS,
    ) -> dict[str, Any]:
        """Write the files of an artifact for the ONNX file `model` into `folder`.

        Returns what can be told of them, as JSON values.
        """

    def check_device(self, target: Target) -> None:
        """Find out whether artifacts of `target` can run here.

        Raises:
            MissingPackageError: a package is not installed.
            MissingDeviceError: there is no such device.
        """

    def open_runner(self, folder: Path, target: Target, threads: int) -> Runner:
        """Load the files that `compile_graph` wrote."""


RunnerOpener = Callable[[], Runner]


def outputs_of(runner: Runner, image: NDArray[Any]) -> Outputs:
    """Run one call and wait for its outputs.

    A runner may return before a device is done, with outputs that wait when they are read; whoever
    times a call, or hands its outputs on, must have them all.
    """
    return {name: np.asarray(value) for name, value in runner.infer(image).items()}


def available_threads() -> int:
    """Processors that this process may use, by affinity and by the quota of its container."""
    return available_processors()
