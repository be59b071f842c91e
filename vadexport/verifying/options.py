"""What to verify, and what came of it."""

from dataclasses import dataclass, field
from pathlib import Path

from vadexport.sources import SourceSpec
from vadexport.verification.result import Verification


@dataclass(frozen=True)
class VerifyOptions:
    """What to hold against what.

    Attributes:
        artifact: an artifact, or a build folder with several.
        reference: the trained detector: its file, or a specification. What a specification
            leaves open is as it was for the build.
        images: IMAGES that neither training nor calibration saw; of a category folder `test`.
        limits: that replace the defaults of a target's precision, by their name in `Limits`.
        rounds: of the latency measurement; 0 leaves it out, None makes 100, or as many as a minute
            has time for, but no fewer than 10.
        threads: of the reference and of each artifact; default all processors.
        report: folder of the report; default `report` in the artifact. With several artifacts,
            each gets a folder in it.
        skip_unreadable: leave out images that cannot be read.
        repeat: how often each image is run again, to find results that change from run to run; 0 is
            once, on a few images.
        torch_compile: time the reference under `torch.compile` as well; parity is never judged on
            it.
        streams: in which each artifact's throughput is measured, beside the reference in one; None
            leaves it out.
        proxy: where an artifact's device is not here, verify the ONNX graph behind it instead.
    """

    artifact: Path
    reference: SourceSpec | Path
    images: str
    limits: dict[str, float | None] = field(default_factory=dict)
    rounds: int | None = None
    threads: int | None = None
    report: Path | None = None
    skip_unreadable: bool = False
    repeat: int = 0
    torch_compile: bool = False
    streams: int | None = None
    proxy: bool = False

    @property
    def limits_timing(self) -> bool:
        """Whether a limit is given that only a measurement of latency can be held against."""
        names = ("min_speedup", "max_latency_ms", "max_memory_mb")
        return any(self.limits.get(name) is not None for name in names)

    @property
    def needs_timing(self) -> bool:
        """Whether a limit, or what else is asked for, needs latency to be measured."""
        return self.torch_compile or self.streams is not None or self.limits_timing


@dataclass(frozen=True)
class VerifyResult:
    """A verification of each artifact, and where its report lies."""

    verifications: tuple[Verification, ...]
    reports: tuple[Path, ...]

    @property
    def held(self) -> bool:
        """Whether every check of every artifact held."""
        return all(verification.held for verification in self.verifications)
