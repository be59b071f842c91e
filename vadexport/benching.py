"""`vadexport bench`: artifacts and trained detectors side by side, in the same rounds."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from vadexport.artifact import Artifact, file_digest, find_artifacts, open_artifact
from vadexport.backends.base import RunnerOpener, available_threads
from vadexport.backends.registry import opener
from vadexport.contract import Call, ImageInput
from vadexport.errors import InputError
from vadexport.images.listing import test_images as images_to_time
from vadexport.listening import Listener
from vadexport.sources import SourceSpec, open_source, reference_opener
from vadexport.verification.bench import Bench, Benched
from vadexport.verification.contest import Contest, add_compiled, timed_calls
from vadexport.verification.environment import Surroundings
from vadexport.verification.latency import speedup
from vadexport.verification.limits import disturbance, instability
from vadexport.verification.throughput import measure_throughput, threads_a_stream


@dataclass(frozen=True)
class BenchOptions:
    """What to time.

    Attributes:
        subjects: folders of artifacts, or of builds with several; and sources, each of which is
            timed as the reference that it is, in PyTorch. The first is what others are compared to.
            What a source leaves open is as it was for an artifact that was built from it.
        images: IMAGES that calls are made of.
        rounds: None makes 100, or as many as a minute has time for, but no fewer than 10.
        torch_compile: time each source under `torch.compile` as well.
        streams: in which each artifact's throughput is measured, and a source's in one; None leaves
            it out.
        threads: of each; default all processors.
        skip_unreadable: pass over images that cannot be read.
    """

    subjects: tuple[Path | SourceSpec, ...]
    images: str
    rounds: int | None = None
    torch_compile: bool = False
    streams: int | None = None
    threads: int | None = None
    skip_unreadable: bool = False


@dataclass(frozen=True)
class _Subject:
    """Something to time.

    Attributes:
        name: as the table has it.
        location: where it lies.
        image_input: what it takes.
        open_runner: opens it.
        megabytes: of its files, in 10^6 bytes; None where it is code.
        streamed: opens it as one of several streams; a source is always one alone.
        compiled: of a source, gives what opens it under `torch.compile`, for calls like the sample.
    """

    name: str
    location: str
    image_input: ImageInput
    open_runner: RunnerOpener
    megabytes: float | None
    streamed: RunnerOpener
    compiled: Callable[[Call], RunnerOpener] | None = None


def bench(options: BenchOptions, listener: Listener) -> Bench:
    """Time artifacts and detectors in the same rounds, each against itself too.

    Raises:
        InputError: a subject is neither an artifact nor a source, is given twice, or takes other
            images than the rest; or an image is wrong.
        MissingPackageError: a backend is not installed here.
        MissingDeviceError: an artifact's GPU is not here.
        BackendError: a backend crashed or timed out.
    """
    surroundings = Surroundings.now()
    subjects = _named(_subjects(options))
    image_input = _common_input(subjects)
    if options.torch_compile and not any(one.compiled for one in subjects):
        raise InputError("--torch-compile is for a source, and there is none among what is timed")
    files = images_to_time(options.images)
    calls = timed_calls(files, image_input, skip_unreadable=options.skip_unreadable)
    listener.step("load", 0, 1)
    with ExitStack() as stack:
        contest = Contest(stack, {one.name: one.open_runner for one in subjects}, calls)
        listener.step("load", 1, 1)
        if options.torch_compile:
            subjects += _compiled(contest, subjects, calls[0], listener)
        names = [one.name for one in subjects]
        timed = contest.time(names, options.rounds, listener, twice=names)
        rates = {}
        if options.streams is not None:
            openers = {
                one.name: (one.streamed, 1 if one.compiled else options.streams) for one in subjects
            }
            rates = measure_throughput(openers, calls, listener)
        state = next(filter(None, map(contest.gpu_state, names)), None)
    first = timed[names[0]]
    contestants = [
        Benched(
            figures=timed[one.name],
            over_first=speedup(timed[one.name], first) if one is not subjects[0] else None,
            megabytes=one.megabytes,
            throughput=rates.get(one.name),
        )
        for one in subjects
    ]
    figures = timed.values()
    warnings = [disturbance(*figures), instability(*figures)]
    if state is not None and state.slowed_by:
        warnings.append(f"the GPU was slowed down by its {', '.join(state.slowed_by)}")
    found = Bench(
        contestants=tuple(contestants),
        batch=image_input.batch or 1,
        environment={
            "latency_rounds": len(first.samples_ms),
            **surroundings.to_json(options.threads, state),
        },
        warnings=tuple(filter(None, warnings)),
    )
    for warning in found.warnings:
        listener.warn(warning)
    return found


def _compiled(
    contest: Contest, subjects: Sequence[_Subject], sample: Call, listener: Listener
) -> list[_Subject]:
    """The sources under `torch.compile`, opened; those that it cannot compile are left out."""
    found = []
    for one in subjects:
        name = f"{one.name} under torch.compile"
        if one.compiled and add_compiled(contest, name, one.compiled(sample), listener):
            found.append(replace(one, name=name, streamed=one.compiled(sample)))
    return found


def _subjects(options: BenchOptions) -> list[_Subject]:
    """All that are given, in their order; a folder of several artifacts is as many."""
    threads = options.threads or available_threads()
    opened = {
        given: [open_artifact(folder) for folder in find_artifacts(given)]
        for given in options.subjects
        if isinstance(given, Path)
    }
    artifacts = [one for found in opened.values() for one in found]
    share = threads_a_stream(threads, options.streams or 1)
    on_gpu = any(one.manifest.target.on_gpu for one in artifacts)
    subjects = []
    for given in options.subjects:
        if isinstance(given, Path):
            subjects += [_artifact(one, threads, share) for one in opened[given]]
        else:
            subjects.append(_source(given, artifacts, threads, on_gpu=on_gpu))
    return subjects


def _artifact(artifact: Artifact, threads: int, share: int) -> _Subject:
    manifest = artifact.manifest
    return _Subject(
        name=str(manifest.target),
        location=str(artifact.folder),
        image_input=manifest.image_input,
        open_runner=opener(manifest.target, artifact.folder, threads),
        streamed=opener(manifest.target, artifact.folder, share),
        megabytes=sum(entry.size for entry in manifest.files.values()) / 1e6,
    )


def _source(
    spec: SourceSpec, artifacts: Sequence[Artifact], threads: int, *, on_gpu: bool
) -> _Subject:
    """A source; it takes calls of the artifacts' batch and layout, as its graphs would."""
    spec = _completed(spec, artifacts)
    source = open_source(spec)
    image_input = source.detector.image_input
    if artifacts:
        graph = artifacts[0].manifest.image_input
        image_input = replace(image_input, batch=graph.batch, layout=graph.layout)

    def opened(sample: Call | None = None) -> RunnerOpener:
        return reference_opener(spec, threads, on_gpu=on_gpu, sample=sample)

    return _Subject(
        name=source.name,
        location=spec.location,
        image_input=image_input,
        open_runner=opened(),
        streamed=opened(),
        megabytes=None if source.size is None else source.size / 1e6,
        compiled=opened,
    )


def _completed(spec: SourceSpec, artifacts: Sequence[Artifact]) -> SourceSpec:
    """What the source leaves open, as it was for an artifact that was built from its file."""
    if not spec.path.is_file():
        return spec
    digest = file_digest(spec.path)
    manifests = (one.manifest for one in artifacts)
    built = next((one for one in manifests if one.source.get("sha256") == digest), None)
    return spec if built is None else spec.completed(built.options)


def _named(subjects: Sequence[_Subject]) -> list[_Subject]:
    """Those that share a name are told apart by where they lie."""
    counts = Counter(one.name for one in subjects)
    named = [
        replace(one, name=f"{one.name} in {one.location}") if counts[one.name] > 1 else one
        for one in subjects
    ]
    (name, count), *_ = Counter(one.name for one in named).most_common(1)
    if count > 1:
        raise InputError(f"{name} is given twice: each is timed against itself in any case")
    return named


def _common_input(subjects: Sequence[_Subject]) -> ImageInput:
    first = subjects[0]
    for other in subjects[1:]:
        if other.image_input != first.image_input:
            raise InputError(
                f"{other.location} takes {_in_words(other.image_input)}, {first.location} "
                f"{_in_words(first.image_input)}: bench them one by one"
            )
    return first.image_input


def _in_words(image_input: ImageInput) -> str:
    size = f"{image_input.height}x{image_input.width}x{image_input.channels}"
    batch = "any number" if image_input.batch is None else image_input.batch
    return f"{batch} of {size} {image_input.dtype} as {image_input.layout}"
