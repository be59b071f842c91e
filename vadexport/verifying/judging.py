"""The verdict on one artifact, from all that was found of it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from vadexport.artifact import BUILD_FILE, REPORT_FOLDER, Artifact, Manifest
from vadexport.images import digest_of_all
from vadexport.sources import Source
from vadexport.targets import AUTO, Target
from vadexport.verification.drift import DriftUnit, fitted_scores
from vadexport.verification.evidence import weigh, weigh_planted
from vadexport.verification.further_checks import planted_check, repeat_check
from vadexport.verification.identity import Identity
from vadexport.verification.latency import LatencyFigures, speedup
from vadexport.verification.limits import (
    Check,
    Limits,
    disturbance,
    instability,
    latency_checks,
    parity_checks,
    size_checks,
)
from vadexport.verification.parity import NO_FIGURES, figures
from vadexport.verification.records import ImageRecord
from vadexport.verification.result import RUNS, Latency, Verification
from vadexport.verification.searched import read_search
from vadexport.verification.throughput import Throughput
from vadexport.verification.unjudged import flag_of, given_checks, unjudged
from vadexport.verifying.arena import COMPILED, REFERENCE, Arena
from vadexport.verifying.findings import Findings
from vadexport.verifying.options import VerifyOptions

_WORST_EXHIBITS: Final = 4
_NEAREST_EXHIBITS: Final = 2
_RANDOM_EXHIBITS: Final = 2
_FEW_IMAGES: Final = 20
#: Images that a warning names.
_NAMED: Final = 5


def judge(
    artifact: Artifact,
    source: Source,
    images: Findings,
    measured: tuple[dict[str, LatencyFigures], dict[str, Throughput]],
    arena: Arena,
    options: VerifyOptions,
) -> Verification:
    """All that is known of one artifact, with a verdict.

    Raises:
        ContestantError: it fails while images are run again for the report.
    """
    manifest = artifact.manifest
    records = images.first
    timed, rates = measured
    name = str(manifest.target)
    unit = _drift_unit(manifest, source)
    limits = options.limits_of(manifest.target.precision)
    finite = any(record.finite for record in records)
    count = len(records)
    nothing = replace(NO_FIGURES, images=count, not_finite=count)
    found = figures(records, unit.value) if finite else nothing
    again = None
    if any(record.finite for record in images.again):
        again = figures(images.again, unit.value)
    held_to = limits if finite else Limits()  # of no finite score, no other figure says anything
    given = options.given(manifest.target.precision)
    checks = [
        *parity_checks(found, held_to, records, given),
        repeat_check(again, images.again, unit.value),
    ]
    planted = None
    if images.planted is not None:
        planted = weigh_planted(images.planted, unit.value)
        checks.append(planted_check(planted, limits))
    latency = None
    if name in timed:
        latency = Latency(
            artifact=_as_built(timed[name], manifest),
            reference=timed[REFERENCE],
            speedup=speedup(timed[name], timed[REFERENCE]),
            batch=arena.image_input.batch or 1,
            compiled=timed.get(COMPILED),
            over_compiled=speedup(timed[name], timed[COMPILED]) if COMPILED in timed else None,
            parts=arena.parts(name, timed),
            throughput=rates.get(name),
            reference_throughput=rates.get(REFERENCE),
        )
        checks += latency_checks(latency.artifact, latency.reference, latency.speedup, limits)
    digests = arena.digests(records)
    identity = Identity.of(artifact, source.sha256, digest_of_all(digests.values()))
    checks += size_checks(identity.megabytes, timed.get(name), limits)
    if finite:
        why = unjudged(limits, checks, found, timed=latency is not None)
        checks += given_checks(why, limits, given, checks)
    seen = _seen_before(artifact, source, digests)
    warnings = [
        *images.warnings,
        *_origin_warnings(artifact, source, arena),
        *_overlap_warnings(str(manifest.target), seen),
    ]
    if len(records) < _FEW_IMAGES:
        few, them = (
            ("1 image is", "it") if len(records) == 1 else (f"{len(records)} images are", "them")
        )
        warnings.append(f"{few} few: parity on {them} says little")
    warnings += _loosened(manifest.target, options)
    state = arena.contest.gpu_state(name)
    if state is not None and state.slowed_by:
        warnings.append(f"the GPU was slowed down by its {', '.join(state.slowed_by)}")
    if latency:
        warnings += _timing_warnings(latency)
    threshold = _threshold(source)
    return Verification(
        **_about(artifact, source, unit, options),
        threshold=threshold,
        figures=found,
        records=tuple(records),
        latency=latency,
        checks=tuple(checks),
        exhibits=tuple(
            arena.exhibit(name, record, why)
            for record, why in _to_exhibit(records, threshold)
            if manifest.map_size is not None
        ),
        environment={
            "latency_rounds": len(latency.artifact.samples_ms) if latency else 0,
            **arena.surroundings.to_json(options.threads, state),
        },
        identity=identity,
        proven_on="graph" if name in arena.proxied else "artifact",
        warnings=tuple(warnings),
        seen_before=seen,
        evidence=weigh(records, unit.value, images.aupro) if finite else None,
        planted=planted,
    )


def failed(
    artifact: Artifact, source: Source, reason: str, arena: Arena, options: VerifyOptions
) -> Verification:
    """Of an artifact that did not run to the end: why not, and what needs no run."""
    manifest = artifact.manifest
    limits = options.limits_of(manifest.target.precision)
    identity = Identity.of(artifact, source.sha256, None)
    return Verification(
        **_about(artifact, source, _drift_unit(manifest, source), options),
        threshold=_threshold(source),
        figures=NO_FIGURES,
        records=(),
        latency=None,
        checks=(
            Check(RUNS, held=False, line=reason),
            *size_checks(identity.megabytes, None, limits),
        ),
        exhibits=(),
        environment={"latency_rounds": 0, **arena.surroundings.to_json(options.threads)},
        identity=identity,
        proven_on="graph" if str(manifest.target) in arena.proxied else "artifact",
        warnings=tuple(_origin_warnings(artifact, source, arena)),
    )


def _about(
    artifact: Artifact, source: Source, unit: DriftUnit, options: VerifyOptions
) -> dict[str, Any]:
    """What a verification says of an artifact, however it did."""
    manifest = artifact.manifest
    return {
        "target": str(manifest.target),
        "artifact_name": artifact.folder.absolute().name,
        "source_name": source.name,
        "drift_unit": unit.value,
        "drift_unit_from": unit.words,
        "limits": options.limits_of(manifest.target.precision),
        "ladder": tuple(manifest.parity),
        "search": read_search(artifact.folder / REPORT_FOLDER / BUILD_FILE),
    }


def _as_built(timed: LatencyFigures, manifest: Manifest) -> LatencyFigures:
    """With the precision that `auto` came to, which no runner knows."""
    if manifest.target.precision != AUTO:
        return timed
    words = ", ".join(f"{part} {precision}" for part, precision in manifest.precision.items())
    return replace(timed, execution=replace(timed.execution, precision=words))


def _threshold(source: Source) -> float | None:
    thresholds = source.detector.thresholds
    return None if thresholds is None else thresholds.decides_above


def _timing_warnings(latency: Latency) -> Iterator[str]:
    """What disturbed the measurement; under `torch.compile` there is no A/A floor."""
    pair = (latency.artifact, latency.reference)
    compiled = () if latency.compiled is None else (latency.compiled,)
    for reason in (disturbance(*pair, *compiled), instability(*pair)):
        if reason is not None:
            yield reason


def _origin_warnings(artifact: Artifact, source: Source, arena: Arena) -> Iterator[str]:
    """What was verified may be something else than what somebody means."""
    name = str(artifact.manifest.target)
    if name in arena.proxied:
        yield (
            "not the artifact was verified but the ONNX graph behind it, on the processor, for "
            f"{arena.proxied[name]}"
        )
    if artifact.manifest.source.get("sha256") != source.sha256:
        yield f"the artifact was built from another file than {source.name}"


def _loosened(target: Target, options: VerifyOptions) -> Iterator[str]:
    """Limits that are meant for others, most likely, and prove little of this one."""
    default = Limits.of_precision(target.precision)
    for name in options.loosened(target.precision):
        flag = flag_of(name)
        yield (
            f"{flag} {options.limits[name]:g} is looser than the default of {target}, "
            f"{getattr(default, name):g}: {flag} PRECISION=X leaves other precisions theirs"
        )


def _drift_unit(manifest: Manifest, source: Source) -> DriftUnit:
    """The unit of the build, so that a limit means the same in both.

    Scores that the detector brings give it again; images that only the build saw do not.
    """
    own = fitted_scores(source.detector.normal_scores.numpy())
    if manifest.drift_unit_from == own.words:
        return DriftUnit.of(own)
    return DriftUnit(manifest.drift_unit, f"{manifest.drift_unit_from}, when it was built")


def _to_exhibit(
    records: Sequence[ImageRecord], threshold: float | None
) -> Iterator[tuple[ImageRecord, str]]:
    """The images that drifted most, those whose decision is the closest call, and any others."""

    def drift(record: ImageRecord) -> float:
        return abs(record.raw - record.reference_raw) if record.finite else float("inf")

    def lot(record: ImageRecord) -> str:
        """By its name: the same images for each artifact, and again when it is verified again."""
        return hashlib.sha256(record.name.encode("utf-8", "surrogatepass")).hexdigest()

    worst = sorted(records, key=drift, reverse=True)[:_WORST_EXHIBITS]
    yield from ((record, "largest drift") for record in worst)
    others = [record for record in records if record not in worst]
    if threshold is not None:
        finite = (record for record in others if record.finite)
        nearest = sorted(finite, key=lambda record: abs(record.reference_raw - threshold))
        nearest = nearest[:_NEAREST_EXHIBITS]
        yield from ((record, "nearest to the threshold") for record in nearest)
        others = [record for record in others if record not in nearest]
    drawn = sorted(others, key=lot)[:_RANDOM_EXHIBITS]
    yield from ((record, "drawn at random") for record in drawn)


def _seen_before(
    artifact: Artifact, source: Source, verified: dict[str, str]
) -> dict[str, tuple[str, ...]]:
    """Names of images that trained the detector, and of those that calibrated the artifact."""
    calibration = artifact.manifest.calibration
    before = {
        "training": set(source.detector.fitted_on),
        "calibration": set(calibration.image_digests if calibration else ()),
    }
    return {
        what: tuple(sorted(name for name, digest in verified.items() if digest in digests))
        for what, digests in before.items()
    }


def _overlap_warnings(target: str, seen: dict[str, tuple[str, ...]]) -> list[str]:
    """Images that the detector or the artifact has seen before prove nothing about new ones."""
    did = {"training": "trained the detector", "calibration": f"calibrated {target}"}
    return [
        f"{len(found)} of the verified images also {did[what]}: parity on them says less about new "
        f"images ({', '.join(found[:_NAMED])}"
        f"{', …; parity.json names all' if len(found) > _NAMED else ''})"
        for what, found in seen.items()
        if found
    ]
