"""What takes part in a verification, each on the device that it is for."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, Self, TypeVar

import numpy as np

from vadexport import contract
from vadexport.artifact import Artifact
from vadexport.backends.base import RunnerOpener, available_threads
from vadexport.backends.child import Child
from vadexport.backends.inner import executed_layers
from vadexport.backends.openvino.saturation import check_folder
from vadexport.backends.registry import get_backend, opener
from vadexport.contract import Call, ImageInput
from vadexport.errors import BackendError, InputError, MissingDeviceError, MissingPackageError
from vadexport.images import ImageFile, decode, image_digest
from vadexport.listening import Listener
from vadexport.machine import has_vnni
from vadexport.sources import SourceSpec, reference_opener
from vadexport.verification.contest import (
    Contest,
    ContestantError,
    add_compiled,
    add_part,
    timed_calls,
)
from vadexport.verification.environment import Surroundings
from vadexport.verification.latency import LatencyFigures
from vadexport.verification.parts import Parts, decoding_samples_ms, preprocessing_opener
from vadexport.verification.proxy import graph_folder, proxy_opener
from vadexport.verification.records import ImageRecord
from vadexport.verification.result import Exhibit
from vadexport.verification.throughput import (
    Throughput,
    measure_throughput,
    threads_a_stream,
)
from vadexport.verifying.options import VerifyOptions

_T = TypeVar("_T")

REFERENCE: Final = "reference"
COMPILED: Final = "reference under torch.compile"


@dataclass(frozen=True)
class Arena:
    """What takes part in a verification.

    Attributes:
        artifacts: by their target's name; those that failed are taken out.
        failed: why, by the same name.
        proxied: names of those whose device is not here, each with the reason.
        image_input: of all.
        files: the images, by name.
        calls: that are timed.
        contest: of the reference and the artifacts.
        references: opens the reference, eager and under `torch.compile`.
        surroundings: before any of it ran.
    """

    artifacts: dict[str, Artifact]
    failed: dict[str, str]
    proxied: dict[str, str]
    image_input: ImageInput
    files: dict[str, ImageFile]
    calls: list[Call]
    contest: Contest
    references: tuple[RunnerOpener, RunnerOpener]
    surroundings: Surroundings

    @classmethod
    def opened(
        cls,
        stack: ExitStack,
        options: VerifyOptions,
        spec: SourceSpec,
        artifacts: Sequence[Artifact],
        files: Sequence[ImageFile],
    ) -> Self:
        """Open the reference and every artifact, on the device that each is for.

        Raises:
            MissingDeviceError: a device is not here, and no proxy may stand in for it.
            ContestantError: the reference failed.
        """
        surroundings = Surroundings.now()
        threads = options.threads or available_threads()
        threads_a_stream(threads, options.streams or 1)
        named = {str(one.manifest.target): one for one in artifacts}
        missing = {name: _missing(one) for name, one in named.items()}
        proxied = {name: reason for name, reason in missing.items() if reason is not None}
        if proxied and not options.proxy:
            name, reason = next(iter(proxied.items()))
            raise MissingDeviceError(
                f"{name} cannot run here: {reason}; --proxy verifies the ONNX graph behind it on "
                "the processor, which proves its numerics and not the artifact itself"
            )
        precisions = {one.manifest.target.precision for one in named.values()}
        if len(proxied) == len(named) and options.needs_timing(*precisions):
            raise InputError(
                "a limit on speed or memory, --torch-compile or --streams needs a measurement, and "
                "a proxy shows neither: verify where the artifact's GPU is"
            )
        if options.limits_timing(*(named[name].manifest.target.precision for name in proxied)):
            raise InputError(
                f"a limit on speed or memory cannot be held against {', '.join(proxied)}, for a "
                "proxy shows neither: verify the others without it, or where its GPU is"
            )
        on_gpu = any(one.manifest.target.on_gpu for name, one in named.items() if not missing[name])
        reference = partial(reference_opener, spec, threads, on_gpu=on_gpu)
        openers = {}
        for name, one in named.items():
            target = one.manifest.target
            openers[name] = (
                proxy_opener(_graph_folder(one, proxied[name]), target.precision, threads)
                if name in proxied
                else opener(target, one.folder, threads)
            )
        image_input = artifacts[0].manifest.image_input
        calls = timed_calls(files, image_input, skip_unreadable=options.skip_unreadable)
        contest = Contest(stack, {REFERENCE: reference()}, calls)
        by_name = {file.name: file for file in files}
        both = (reference(), reference(sample=calls[0]))
        arena = cls(named, {}, proxied, image_input, by_name, calls, contest, both, surroundings)
        for name, open_runner in openers.items():
            with arena.without_failed():
                contest.add(name, open_runner)
        return arena

    def surviving(self, phase: Callable[[], _T]) -> _T:
        """What comes of a phase of the verification; done again without an artifact that fails.

        Raises:
            ContestantError: the reference failed.
        """
        while True:
            with self.without_failed():
                return phase()

    @contextmanager
    def without_failed(self) -> Iterator[None]:
        """Take an artifact out that fails in here; another contestant's failure goes on."""
        try:
            yield
        except ContestantError as error:
            if error.contestant not in self.artifacts:
                raise
            del self.artifacts[error.contestant]
            self.failed[error.contestant] = str(error)

    def timed(self, options: VerifyOptions, listener: Listener) -> dict[str, LatencyFigures]:
        """Latency of all that run on their own device, interleaved with the reference.

        Each is timed twice a round, but for the reference, whose calls take longest.
        """
        names = [name for name in self.artifacts if name not in self.proxied]
        if options.rounds == 0 or not names:
            return {}
        all_of_them = [REFERENCE, *names]
        if options.torch_compile and add_compiled(
            self.contest, COMPILED, self.references[1], listener
        ):
            all_of_them.append(COMPILED)
        threads = options.threads or available_threads()
        for name in names:
            artifact = self.artifacts[name]
            part = preprocessing_opener(artifact.folder, artifact.manifest.target, threads)
            if part is not None and add_part(self.contest, preprocessing_of(name), part):
                all_of_them.append(preprocessing_of(name))
        while True:
            try:
                timed = self.contest.time(all_of_them, options.rounds, listener, twice=names)
                return timed | {name: self._with_layers(timed[name], threads) for name in names}
            except ContestantError as error:
                if error.contestant in (REFERENCE, *names):
                    raise
                all_of_them.remove(error.contestant)
                listener.warn(f"{error.contestant} is not timed: {error}")

    def _with_layers(self, timed: LatencyFigures, threads: int) -> LatencyFigures:
        """With the precision that each layer runs in; as it is where the backend fails to tell."""
        artifact = self.artifacts[timed.name]
        try:
            with Child(f"layers of {timed.name}") as child:
                target = artifact.manifest.target
                layers = child.run(executed_layers, artifact.folder, target, threads)
        except BackendError:
            return timed
        return replace(timed, execution=timed.execution.with_layers(layers))

    def throughput(self, options: VerifyOptions, listener: Listener) -> dict[str, Throughput]:
        """Of the reference in one stream, and of all that run on their own device in several."""
        if options.streams is None:
            return {}
        threads = threads_a_stream(options.threads or available_threads(), options.streams)
        openers = {REFERENCE: (self.references[0], 1)}
        for name, one in self.artifacts.items():
            if name not in self.proxied:
                opened = opener(one.manifest.target, one.folder, threads)
                openers[name] = (opened, options.streams)
        return measure_throughput(openers, self.calls, listener)

    def parts(self, name: str, timed: Mapping[str, LatencyFigures]) -> Parts:
        """Where the time of an artifact that was timed goes."""
        preprocessing = timed.get(preprocessing_of(name))
        decoding = decoding_samples_ms(list(self.files.values()), self.image_input)
        return Parts(
            decoding_ms=median(decoding) if decoding else math.nan,
            preprocessing_ms=None if preprocessing is None else preprocessing.median_ms,
            call_ms=timed[name].median_ms,
            decoding_samples_ms=decoding,
            preprocessing_samples_ms=() if preprocessing is None else preprocessing.samples_ms,
        )

    def digests(self, records: Sequence[ImageRecord]) -> dict[str, str]:
        """Digests of the images that the records are of, by their names."""
        return {record.name: image_digest(self.files[record.name].path) for record in records}

    def exhibit(self, name: str, record: ImageRecord, why: str) -> Exhibit:
        """Run one image again, to keep its maps."""
        image = decode(self.files[record.name].path, self.image_input.channels)
        call, _ = next(self.image_input.batches(image[None]))
        maps = [
            self.contest.inference(one)(call)[contract.ANOMALY_MAP][0, 0].astype(np.float32)
            for one in (REFERENCE, name)
        ]
        return Exhibit(record, why, image, *maps)


def preprocessing_of(name: str) -> str:
    """Name of the contestant that is an artifact's preprocessing alone."""
    return f"{name} preprocessing"


def _missing(artifact: Artifact) -> str | None:
    """Why an artifact cannot run here; None where it can."""
    target = artifact.manifest.target
    on_vnni = target.backend == "openvino" and target.precision != "fp32" and not has_vnni()
    if not target.on_gpu and not on_vnni:
        return None  # whatever is missing is an error, and its graph is not in the folder
    try:
        with Child(str(target)) as child:
            if target.on_gpu:
                child.run(get_backend(target.backend).check_device, target)
            else:
                child.run(check_folder, artifact.folder, target)
    except MissingDeviceError as error:
        return str(error)
    except MissingPackageError as error:
        if not target.on_gpu:
            raise
        return str(error)
    except BackendError:
        if target.on_gpu:
            raise  # else it is told of where the artifact is opened, and others go on
    return None


def _graph_folder(artifact: Artifact, reason: str) -> Path:
    """Where the ONNX graph lies that stands in for an artifact."""
    found = graph_folder(artifact)
    if found is None:
        raise MissingDeviceError(f"{reason}; the ONNX graph behind it was not kept")
    return found
