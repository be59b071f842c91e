"""What to verify, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vadexport.sources import SourceSpec
from vadexport.verification.limits import Limits
from vadexport.verification.result import Verification


@dataclass(frozen=True)
class VerifyOptions:
    """What to hold against what.

    Attributes:
        artifact: an artifact, or a build folder with several.
        reference: the trained detector: its file, or a specification. What a specification
            leaves open is as it was for the build.
        images: IMAGES that neither training nor calibration saw; of a category folder `test`.
        limits: that replace the defaults of every target, by their name in `Limits`.
        limits_of_precision: that replace those of the targets of a precision, and `limits`.
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
    limits: Mapping[str, float | None] = field(default_factory=dict)
    limits_of_precision: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rounds: int | None = None
    threads: int | None = None
    report: Path | None = None
    skip_unreadable: bool = False
    repeat: int = 0
    torch_compile: bool = False
    streams: int | None = None
    proxy: bool = False

    def limits_of(self, precision: str) -> Limits:
        """What the targets of a precision are held to."""
        own = self.limits_of_precision.get(precision, {})
        return Limits.of_precision(precision).overridden(**self.limits).overridden(**own)

    def given(self, precision: str) -> frozenset[str]:
        """Names of the limits that somebody set for the targets of a precision."""
        own = self.limits_of_precision.get(precision, {})
        set_for_all = (name for name, limit in self.limits.items() if limit is not None)
        return frozenset((*set_for_all, *own))

    def loosened(self, precision: str) -> list[str]:
        """Limits given for all targets that let those of a precision get away with more."""
        default, found = Limits.of_precision(precision), self.limits_of(precision)
        own = self.limits_of_precision.get(precision, {})
        return [
            name for name in self.limits if name not in own and found.looser_than(default, name)
        ]

    def limits_timing(self, *precisions: str) -> bool:
        """Whether targets of any of these have a limit that needs a measurement of latency."""
        names = ("min_speedup", "max_latency_ms", "max_memory_mb")
        return any(
            getattr(self.limits_of(precision), name) is not None
            for precision in precisions
            for name in names
        )

    def needs_timing(self, *precisions: str) -> bool:
        """Whether a limit of these, or what else is asked for, needs a measurement of latency."""
        return self.torch_compile or self.streams is not None or self.limits_timing(*precisions)


@dataclass(frozen=True)
class VerifyResult:
    """A verification of each artifact, and where its report lies."""

    verifications: tuple[Verification, ...]
    reports: tuple[Path, ...]

    @property
    def held(self) -> bool:
        """Whether every check of every artifact held."""
        return all(verification.held for verification in self.verifications)

    @property
    def exit_status(self) -> int:
        """4 where an artifact failed to run, 1 where a check fell short."""
        failed = any(verification.failed for verification in self.verifications)
        return 4 if failed else int(not self.held)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Of each artifact that did not hold, its target and the checks that fell short."""
        return tuple(
            f"{each.target}: {'; '.join(check.line for check in each.checks if not check.held)}"
            for each in self.verifications
            if not each.held
        )
