"""The steps of a verification."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from vadexport.artifact import (
    BUILD_FILE,
    REPORT_FOLDER,
    Artifact,
    Manifest,
    find_artifacts,
    open_artifact,
)
from vadexport.contract import ImageInput
from vadexport.errors import InputError
from vadexport.images.listing import test_images as images_to_test
from vadexport.listening import Listener
from vadexport.reporting import write_reports
from vadexport.sources import Source, SourceSpec, open_source
from vadexport.targets import Target
from vadexport.verification.drift import DriftUnit, fitted_scores
from vadexport.verification.evidence import weigh, weigh_planted
from vadexport.verification.latency import LatencyFigures, speedup
from vadexport.verification.limits import (
    Limits,
    disturbance,
    instability,
    latency_checks,
    parity_checks,
    planted_check,
    repeat_check,
    size_checks,
)
from vadexport.verification.parity import ImageRecord, figures
from vadexport.verification.result import Latency, Verification
from vadexport.verification.searched import read_search
from vadexport.verification.throughput import Throughput
from vadexport.verifying.arena import COMPILED, REFERENCE, Arena
from vadexport.verifying.diagnosing import Subject, diagnose, explains
from vadexport.verifying.findings import Findings, findings
from vadexport.verifying.options import VerifyOptions, VerifyResult

_WORST_EXHIBITS = 4
_NEAREST_EXHIBITS = 2
_RANDOM_EXHIBITS = 2
_FEW_IMAGES = 20
#: Images that a warning names.
_NAMED = 5


def verify(options: VerifyOptions, listener: Listener) -> VerifyResult:
    """Compare scores, decisions, maps and latency of artifacts with the reference's.

    Raises:
        InputError: an artifact was changed, or the reference or an image is wrong.
        MissingPackageError: a backend is not installed here.
        MissingDeviceError: an artifact's GPU is not here, and no proxy may stand in for it.
        BackendError: a backend crashed or timed out.
    """
    artifacts = [open_artifact(folder) for folder in find_artifacts(options.artifact)]
    precisions = {artifact.manifest.target.precision for artifact in artifacts}
    if options.rounds == 0 and options.needs_timing(*precisions):
        raise InputError(
            "a limit on speed or memory, --torch-compile or --streams needs a measurement: give it "
            "more than 0 rounds"
        )
    spec = SourceSpec.of(options.reference).completed(artifacts[0].manifest.options)
    source = open_source(spec)
    _check_comparable(artifacts, source)
    files = images_to_test(options.images)
    reports = [_report_folder(artifact, artifacts, options) for artifact in artifacts]
    listener.step("load", 0, 1)
    with ExitStack() as stack:
        arena = Arena.opened(stack, options, spec, artifacts, files)
        listener.step("load", 1, 1)
        found = findings(arena, source, files, options, listener)
        timed = arena.timed(options, listener)
        rates = arena.throughput(options, listener)
        judged = [
            _judge(artifact, source, found[name], (timed, rates), arena, options)
            for name, artifact in arena.artifacts.items()
        ]
        verifications = _diagnosed(judged, artifacts, source, arena, options, listener)
    for verification, folder in zip(verifications, reports, strict=True):
        for warning in (*verification.warnings, *write_reports(verification, folder)):
            listener.warn(warning)
    return VerifyResult(tuple(verifications), tuple(reports))


def _report_folder(
    artifact: Artifact, artifacts: Sequence[Artifact], options: VerifyOptions
) -> Path:
    """Where the artifact's report goes; raises InputError where it cannot go there."""
    folder = artifact.folder / REPORT_FOLDER
    if options.report is not None:
        folder = options.report / (artifact.folder.name if len(artifacts) > 1 else "")
    try:
        there = next((each for each in (folder, *folder.parents) if each.exists()), None)
    except OSError as error:
        raise InputError(f"cannot write the report {folder}: {error.strerror}") from None
    if there is not None and not there.is_dir():
        raise InputError(f"cannot write the report {folder}: {there} is a file")
    try:
        with tempfile.TemporaryFile(dir=there):
            return folder
    except OSError as error:
        raise InputError(f"cannot write the report {folder}: {error.strerror}") from None


def _judge(
    artifact: Artifact,
    source: Source,
    images: Findings,
    measured: tuple[dict[str, LatencyFigures], dict[str, Throughput]],
    arena: Arena,
    options: VerifyOptions,
) -> Verification:
    """All that is known of one artifact, with a verdict."""
    manifest = artifact.manifest
    records = images.first
    timed, rates = measured
    name = str(manifest.target)
    unit = _drift_unit(manifest, source)
    found = figures(records, unit.value)
    limits = options.limits_of(manifest.target.precision)
    finite = any(record.finite for record in images.again)
    again = figures(images.again, unit.value) if finite else None
    checks = [*parity_checks(found, limits, records), repeat_check(again)]
    planted = None
    if images.planted is not None:
        planted = weigh_planted(images.planted, unit.value)
        checks.append(planted_check(planted, limits))
    latency = None
    if name in timed:
        latency = Latency(
            artifact=timed[name],
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
    megabytes = sum(entry.size for entry in manifest.files.values()) / 1e6
    checks += size_checks(megabytes, timed.get(name), limits)
    warnings = _overlap_warnings(artifact, source, arena.digests(records))
    if len(records) < _FEW_IMAGES:
        few, them = (
            ("1 image is", "it") if len(records) == 1 else (f"{len(records)} images are", "them")
        )
        warnings.append(f"{few} few: parity on {them} says little")
    warnings += _loosened(manifest.target, options)
    if name in arena.proxied:
        warnings.insert(
            0,
            "not the artifact was verified but the ONNX graph behind it, on the processor, for "
            f"{arena.proxied[name]}",
        )
    state = arena.contest.gpu_state(name)
    if state is not None and state.slowed_by:
        warnings.append(f"the GPU was slowed down by its {', '.join(state.slowed_by)}")
    if latency:
        pair = (latency.artifact, latency.reference)
        warnings += [reason for reason in (disturbance(*pair), instability(*pair)) if reason]
    if manifest.source.get("sha256") != source.sha256:
        warnings.append(f"the artifact was built from another file than {source.name}")
    thresholds = source.detector.thresholds
    threshold = None if thresholds is None else thresholds.decides_above
    return Verification(
        target=name,
        artifact_name=artifact.folder.absolute().name,
        source_name=source.name,
        threshold=threshold,
        drift_unit=unit.value,
        drift_unit_from=unit.words,
        figures=found,
        records=tuple(records),
        latency=latency,
        limits=limits,
        checks=tuple(checks),
        exhibits=tuple(
            arena.exhibit(name, record, why)
            for record, why in _to_exhibit(records, threshold)
            if manifest.map_size is not None
        ),
        ladder=tuple(manifest.parity),
        environment={
            "latency_rounds": len(latency.artifact.samples_ms) if latency else 0,
            **arena.surroundings.to_json(options.threads, state),
        },
        proven_on="graph" if name in arena.proxied else "artifact",
        warnings=tuple(warnings),
        evidence=weigh(records, unit.value, images.aupro),
        planted=planted,
        search=read_search(artifact.folder / REPORT_FOLDER / BUILD_FILE),
    )


def _diagnosed(
    verifications: Sequence[Verification],
    artifacts: Sequence[Artifact],
    source: Source,
    arena: Arena,
    options: VerifyOptions,
    listener: Listener,
) -> list[Verification]:
    """The same with what is known of why parity fell short."""
    subjects = {
        v.target: Subject(artifact, v.records, DriftUnit(v.drift_unit, v.drift_unit_from))
        for v, artifact in zip(verifications, artifacts, strict=True)
        if explains([check.name for check in v.checks if not check.held])
    }
    if not subjects:
        return list(verifications)
    names = ", ".join(subjects)
    listener.note(f"{names} fell short: steps of the build are done again, to find where")
    found = diagnose(list(subjects.values()), source, arena, options, listener)
    known = dict(zip(subjects, found, strict=True))
    return [replace(v, diagnosis=known.get(v.target)) for v in verifications]


def _loosened(target: Target, options: VerifyOptions) -> Iterator[str]:
    """Limits that are meant for others, most likely, and prove little of this one."""
    default = Limits.of_precision(target.precision)
    for name in options.loosened(target.precision):
        flag = f"--{name.replace('_', '-')}"
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


def _check_comparable(artifacts: Sequence[Artifact], source: Source) -> None:
    """All artifacts must take and give what the reference does, and differ in their target."""
    manifests = [artifact.manifest for artifact in artifacts]
    if len({manifest.image_input for manifest in manifests}) > 1:
        raise InputError(
            "the artifacts take images of different sizes, or different numbers of them: verify "
            "them one by one"
        )
    names = [str(manifest.target) for manifest in manifests]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two of the artifacts are {twice}: verify them one by one")
    detector = source.detector
    first = manifests[0].image_input
    wanted = replace(detector.image_input, batch=first.batch, layout=first.layout)
    size = detector.map_size
    for artifact in artifacts:
        manifest = artifact.manifest
        if manifest.image_input != wanted or manifest.map_size != size:
            raise InputError(
                f"{artifact.folder} was not built from {source.name}: it takes "
                f"{_in_words(manifest.image_input, manifest.map_size)}, the reference "
                f"{_in_words(wanted, size)}"
            )


def _in_words(image_input: ImageInput, map_size: tuple[int, int] | None) -> str:
    size = f"{image_input.height}x{image_input.width}x{image_input.channels}"
    camera = f"{image_input.dtype} images of {size}"
    maps = "no maps" if map_size is None else f"{map_size[0]}x{map_size[1]} maps"
    return f"{camera} and gives {maps}"


def _overlap_warnings(artifact: Artifact, source: Source, verified: dict[str, str]) -> list[str]:
    """Images that the detector or the artifact has seen before prove nothing about new ones."""
    calibration = artifact.manifest.calibration
    seen = {
        "trained the detector": source.detector.fitted_on,
        f"calibrated {artifact.manifest.target}": calibration.image_digests if calibration else (),
    }
    names = {
        what: [verified[digest] for digest in digests if digest in verified]
        for what, digests in seen.items()
    }
    return [
        f"{len(found)} of the verified images also {what}: parity on them says less about new "
        f"images ({', '.join(sorted(found)[:_NAMED])}{', …' if len(found) > _NAMED else ''})"
        for what, found in names.items()
        if found
    ]
