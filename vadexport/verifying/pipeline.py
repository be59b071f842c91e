"""The steps of a verification."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from vadexport.artifact import (
    REPORT_FOLDER,
    Artifact,
    artifact_around,
    find_artifacts,
    open_artifact,
)
from vadexport.contract import ImageInput
from vadexport.errors import InputError
from vadexport.images.listing import test_images as images_to_test
from vadexport.listening import Listener
from vadexport.reporting import remove_reports, write_reports
from vadexport.sources import Source, SourceSpec, open_source
from vadexport.verification.drift import DriftUnit
from vadexport.verification.result import Verification
from vadexport.verifying.arena import Arena
from vadexport.verifying.diagnosing import Subject, diagnose, explains, on_planted_alone
from vadexport.verifying.findings import Findings, findings
from vadexport.verifying.judgeable import check_judgeable
from vadexport.verifying.judging import failed, judge
from vadexport.verifying.options import VerifyOptions, VerifyResult
from vadexport.verifying.planting import with_defects


def verify(options: VerifyOptions, listener: Listener) -> VerifyResult:
    """Compare scores, decisions, maps and latency of artifacts with the reference's.

    Raises:
        InputError: an artifact was changed, or the reference or an image is wrong.
        MissingPackageError: a backend is not installed here.
        MissingDeviceError: an artifact's GPU is not here, and no proxy may stand in for it.
        ContestantError: the reference crashed or timed out. An artifact that does has a report
            that says so, and the others theirs.
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
    check_judgeable(options, precisions, source.detector, files)
    reports = [_report_folder(artifact, artifacts, options) for artifact in artifacts]
    for folder in reports:
        remove_reports(folder)  # of an earlier verification: this one may not come to its end
    listener.step("load", 0, 1)
    with ExitStack() as stack:
        arena = Arena.opened(stack, options, spec, artifacts, files)
        listener.step("load", 1, 1)
        found = findings(arena, source, files, options, listener)
        judged = _judged(found, artifacts, arena, source, options, listener)
        verifications = _diagnosed(judged, found, arena, source, options, listener)
    _write(verifications, reports, listener)
    return VerifyResult(tuple(verifications), tuple(reports))


def _write(
    verifications: Sequence[Verification], folders: Sequence[Path], listener: Listener
) -> None:
    """Write every report that can be written; raises InputError where one cannot."""
    problems = []
    told = set()  # what is true of all artifacts is said once
    for verification, folder in zip(verifications, folders, strict=True):
        try:
            warnings = [*verification.warnings, *write_reports(verification, folder)]
        except InputError as error:
            problems.append(error)
            continue
        for warning in warnings:
            if warning not in told:
                listener.warn(warning)
                told.add(warning)
    if problems:
        raise problems[0]


def _report_folder(
    artifact: Artifact, artifacts: Sequence[Artifact], options: VerifyOptions
) -> Path:
    """Where the artifact's report goes; raises InputError where it cannot go there."""
    folder = artifact.folder / REPORT_FOLDER
    if options.report is not None:
        folder = options.report / (artifact.folder.name if len(artifacts) > 1 else "")
    sealed = artifact_around(folder)
    if sealed is not None:
        raise InputError(
            f"the report cannot go to {folder}: {sealed} is an artifact, whose manifest names all "
            f"its files; give --report a folder outside it, or leave it out to have the report in "
            f"{sealed / REPORT_FOLDER}"
        )
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


def _judged(
    found: Mapping[str, Findings],
    artifacts: Sequence[Artifact],
    arena: Arena,
    source: Source,
    options: VerifyOptions,
    listener: Listener,
) -> list[Verification]:
    """A verdict on every artifact, on one that fails too; the reference must not."""
    timed = arena.surviving(lambda: arena.timed(options, listener))
    rates = arena.surviving(lambda: arena.throughput(options, listener))
    judged = {}
    for name, artifact in list(arena.artifacts.items()):
        with arena.without_failed():
            judged[name] = judge(artifact, source, found[name], (timed, rates), arena, options)
    return [
        judged[name]
        if (name := str(artifact.manifest.target)) in judged
        else failed(artifact, source, arena.failed[name], arena, options)
        for artifact in artifacts
    ]


def _diagnosed(
    verifications: Sequence[Verification],
    found: Mapping[str, Findings],
    arena: Arena,
    source: Source,
    options: VerifyOptions,
    listener: Listener,
) -> list[Verification]:
    """The same with what is known of why parity fell short."""
    subjects = {}
    for v in verifications:
        fallen = [check.name for check in v.checks if not check.held and check.judged]
        if explains(fallen):
            unit = DriftUnit(v.drift_unit, v.drift_unit_from)
            images = found[v.target]
            again = images.again if "repeat" in fallen else ()
            planted = with_defects(images.planted or ()) if on_planted_alone(fallen) else ()
            artifact = arena.artifacts[v.target]
            subjects[v.target] = Subject(artifact, v.records, unit, again, planted)
    if not subjects:
        return list(verifications)
    names = ", ".join(subjects)
    listener.note(f"{names} fell short: steps of the build are done again, to find where")
    diagnoses = diagnose(list(subjects.values()), source, arena, options, listener)
    known = dict(zip(subjects, diagnoses, strict=True))
    return [replace(v, diagnosis=known.get(v.target)) for v in verifications]


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
