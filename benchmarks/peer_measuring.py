"""Parity and latency of all contestants of a row of benchmarks/peers.py, in the same rounds."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from peer_builds import TARGETS, place
from peer_runners import normalisation_of, peer_openers

from vadexport.artifact import open_artifact
from vadexport.backends.base import available_threads
from vadexport.backends.registry import opener
from vadexport.errors import VadexportError
from vadexport.images import decode, test_images
from vadexport.listening import Listener
from vadexport.sources import SourceSpec, reference_opener
from vadexport.targets import Target
from vadexport.verification.contest import Contest, timed_calls
from vadexport.verification.environment import Surroundings
from vadexport.verification.latency import LatencyFigures, speedup
from vadexport.verification.parity import compare_images, figures

EAGER: Final = "PyTorch eager"
COMPILED: Final = "torch.compile"
#: What speed-ups are over; each is timed against itself too, as vadexport's artifacts are.
BASELINES: Final = (EAGER, "anomalib", "anomalib f32", "plain")


def measure(
    source: Path, images: Path, folder: Path, rounds: int | None, *, compiled: bool
) -> dict[str, Any]:
    """All figures of a row, raw samples included, as JSON values."""
    surroundings = Surroundings.now()
    threads = available_threads()
    spec = SourceSpec.of(source)
    openers = peer_openers(folder, spec, threads, normalisation_of(spec))
    artifacts = {}
    for target in TARGETS:
        if place(folder, target).exists():
            artifacts[target] = open_artifact(place(folder, target)).manifest
            openers[target] = opener(Target.parse(target), place(folder, target), threads)
    manifest = next(iter(artifacts.values()))
    files = test_images(str(images / "test"))
    calls = timed_calls(files, manifest.image_input, skip_unreadable=False)
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        contest = Contest(stack, {EAGER: reference_opener(spec, threads)}, calls)
        for name, each in openers.items():
            try:
                contest.add(name, each)
                contest.inference(name)(calls[0])
            except VadexportError as error:
                failed[name] = str(error).split(" (log:", maxsplit=1)[0]
        there = [name for name in openers if name not in failed]
        channels = manifest.image_input.channels
        labelled = ((one.name, one.label, decode(one.path, channels)) for one in files)
        records = compare_images(
            contest.inference(EAGER),
            {name: contest.inference(name) for name in there},
            labelled,
            manifest.image_input,
            None,
        )
        if compiled:
            try:
                contest.add(COMPILED, reference_opener(spec, threads, sample=calls[0]))
                there.append(COMPILED)
            except VadexportError as error:
                failed[COMPILED] = str(error).split(" (log:", maxsplit=1)[0]
        twice = [name for name in (*BASELINES, *TARGETS) if name == EAGER or name in there]
        timed = contest.time([EAGER, *there], rounds, Progress(), twice=twice)
    unit = manifest.drift_unit
    return {
        "images": len(files),
        "rounds": len(timed[EAGER].samples_ms),
        "environment": surroundings.to_json(threads),
        "failed": failed,
        "latency": {name: latency(one, timed) for name, one in timed.items()},
        "parity": {name: asdict(figures(each, unit)) for name, each in records.items()},
    }


class Progress(Listener):
    """Says where a measurement is, now and then."""

    def step(self, name: str, done: int, total: int, detail: str = "") -> None:
        """See the base class."""
        if done % max(1, total // 5) == 0:
            print(f"  {name} {done}/{total} {detail}".rstrip(), flush=True)


def latency(one: LatencyFigures, timed: dict[str, LatencyFigures]) -> dict[str, Any]:
    """Figures of one contestant, and its speed-ups over the baselines."""
    over = {
        name: asdict(speedup(one, timed[name]).ratio)
        for name in BASELINES
        if name in timed and name != one.name
    }
    return {
        "ms": one.median_ms,
        "floor": one.floor,
        "disturbed": one.disturbed or one.unlike_itself,
        "disturbed_calls": one.disturbed_calls,
        "load_ms": one.footprint.load_ms if one.footprint else None,
        "peak_mb": one.footprint.peak_mb if one.footprint else None,
        "execution": asdict(one.execution),
        "over": over,
        "samples_ms": list(one.samples_ms),
    }


def time_calls(
    openers: dict[str, Any], calls: list[np.ndarray], rounds: int | None
) -> dict[str, dict[str, Any]]:
    """Latency of contestants alone, by name."""
    with ExitStack() as stack:
        contest = Contest(stack, openers, calls)
        timed = contest.time(list(openers), rounds, Progress())
    return {name: latency(one, timed) for name, one in timed.items()}
