"""What a verification found: the one object that every report is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vadexport.artifact import ProvenOn
from vadexport.contract import ImageArray
from vadexport.verification.evidence import Evidence, PlantedEvidence
from vadexport.verification.identity import Identity
from vadexport.verification.latency import LatencyFigures, Speedup
from vadexport.verification.limits import Check, Limits
from vadexport.verification.parity import ParityFigures
from vadexport.verification.parts import Parts
from vadexport.verification.records import ImageRecord
from vadexport.verification.searched import FoundSearch
from vadexport.verification.throughput import Throughput

#: Name of the check that falls short where an artifact did not run.
RUNS: Final = "runs"


@dataclass(frozen=True)
class Latency:
    """Latency of an artifact and of the reference, measured in the same rounds.

    Attributes:
        artifact: of the artifact.
        reference: of the reference.
        speedup: of the artifact over the reference.
        batch: images a call.
        compiled: of the reference under `torch.compile`; None where it was not timed.
        over_compiled: speed-up of the artifact over that one.
        parts: where the artifact's time goes.
        throughput: of the artifact in streams; None where it was not measured.
        reference_throughput: of the reference at its best: one stream, all threads.
    """

    artifact: LatencyFigures
    reference: LatencyFigures
    speedup: Speedup
    batch: int
    compiled: LatencyFigures | None = None
    over_compiled: Speedup | None = None
    parts: Parts | None = None
    throughput: Throughput | None = None
    reference_throughput: Throughput | None = None


@dataclass(frozen=True)
class Exhibit:
    """An image worth looking at, with both anomaly maps.

    Attributes:
        record: its scores.
        why: it was chosen, for a reader.
        image: `[H, W, C]`.
        reference_map: float32 [h, w].
        anomaly_map: float32 [h, w], of the artifact.
    """

    record: ImageRecord
    why: str
    image: ImageArray = field(repr=False)
    reference_map: NDArray[np.float32] = field(repr=False)
    anomaly_map: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True)
class Diagnosis:
    """Where an artifact that fell short parts from its reference.

    Attributes:
        rung: first step that falls short; None where each holds its limits.
        lines: what is known, for a reader.
        ladder: steps that were done again, on the images that changed most; as in manifests.
    """

    rung: str | None
    lines: tuple[str, ...]
    ladder: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Verification:
    """An artifact held against its reference.

    Attributes:
        target: of the artifact, such as `openvino:int8`.
        artifact_name: name of its folder.
        source_name: file name of the reference.
        threshold: raw score above which an image is anomalous; None where none is decided on.
        drift_unit: in raw score units.
        drift_unit_from: which normal images it was taken from.
        figures: parity.
        records: of every image.
        latency: None where it was not measured.
        limits: that were checked.
        checks: each with its verdict.
        exhibits: images to look at.
        ladder: the build's rungs, from the manifest.
        environment: versions, processor, threads, time: what the figures hold for.
        identity: digests of artifact, reference and images, and the artifact's size.
        warnings: what may spoil the result.
        seen_before: names of the images of `training` and of `calibration` that are among them.
        evidence: how much the figures prove.
        proven_on: `artifact`, or `graph` where its device is not here: the figures are then those
            of the ONNX graph behind it, run on the processor.
        planted: how it takes planted defects; None where images of both labels are given.
        search: of the build for INT8 layers, from its report; None where there is none.
        diagnosis: of an artifact whose parity fell short; None where it held.
    """

    target: str
    artifact_name: str
    source_name: str
    threshold: float | None
    drift_unit: float
    drift_unit_from: str
    figures: ParityFigures
    records: tuple[ImageRecord, ...]
    latency: Latency | None
    limits: Limits
    checks: tuple[Check, ...]
    exhibits: tuple[Exhibit, ...]
    ladder: tuple[dict[str, Any], ...]
    environment: dict[str, Any]
    identity: Identity
    warnings: tuple[str, ...] = ()
    seen_before: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    evidence: Evidence | None = None
    proven_on: ProvenOn = "artifact"
    planted: PlantedEvidence | None = None
    diagnosis: Diagnosis | None = None
    search: FoundSearch | None = None

    @property
    def failed(self) -> bool:
        """Whether it could not be judged, because it crashed or did not answer."""
        return any(check.name == RUNS and not check.held for check in self.checks)

    @property
    def held(self) -> bool:
        """Whether every check held."""
        return all(check.held for check in self.checks)
