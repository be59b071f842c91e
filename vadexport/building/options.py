"""What to build, and what was built."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vadexport.artifact import ProvenOn
from vadexport.backends.tensorrt.settings import DEFAULT_SETTINGS, TensorRTSettings
from vadexport.contract import Layout
from vadexport.errors import VadexportError
from vadexport.sources import SourceSpec
from vadexport.targets import Target
from vadexport.verification.applied import Passes
from vadexport.verification.ladder import Rung


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        source: the trained detector: its file, or a specification.
        destination: the artifact; with several targets, the folder of their artifacts.
        targets: what to compile for.
        calibration: IMAGES; those that are not labelled as anomalous calibrate INT8 and check.
        batch: images a call; None for any number.
        threads: of the reference and of the checks; default all processors.
        skip_unreadable: leave out images that cannot be read.
        layout: how the graph takes its images, see `ImageInput`.
        tensorrt: settings of TensorRT's builder.
        search_minutes: that the search for forms of `auto` may take, for each target.
        no_pass: names of graph passes that are not applied.
        approximate: whether rewrites may move scores: True by what the limits of the targets'
            precisions leave room for, a number by so many drift units.
    """

    source: SourceSpec | Path
    destination: Path
    targets: tuple[Target, ...]
    calibration: str | None = None
    batch: int | None = 1
    threads: int | None = None
    skip_unreadable: bool = False
    layout: Layout = "nhwc"
    tensorrt: TensorRTSettings = DEFAULT_SETTINGS
    search_minutes: float = 10.0
    no_pass: tuple[str, ...] = ()
    approximate: bool | float = False


@dataclass(frozen=True)
class BuiltTarget:
    """What became of one target.

    Attributes:
        target: which.
        folder: of its artifact; None where there is none.
        rungs: of its ladder, as far as it got.
        error: what stopped it.
        resolved: the target with the precision that `auto` came to.
        precision: of each part.
        proven_on: `artifact`, or `graph` where the device that it runs on is not here: parity was
            then proven on the ONNX graph that it was compiled from.
        facts: what its backend tells of it, as JSON values.
        passes: what became of the graph passes.
    """

    target: Target
    folder: Path | None
    rungs: tuple[Rung, ...]
    error: VadexportError | None = None
    resolved: Target | None = None
    precision: dict[str, str] = field(default_factory=dict)
    proven_on: ProvenOn = "artifact"
    facts: dict[str, Any] = field(default_factory=dict)
    passes: Passes = field(default_factory=Passes)


@dataclass(frozen=True)
class BuildResult:
    """What `build` made.

    Attributes:
        targets: one entry for each that was asked for, in that order.
        check_images: what the ladder was checked on, in words.
        drift_unit: in raw score units, and what it was taken from.
        notes: what else the user should know.
    """

    targets: tuple[BuiltTarget, ...]
    check_images: str
    drift_unit: str
    notes: tuple[str, ...]
