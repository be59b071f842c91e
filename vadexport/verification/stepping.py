"""How long calls of a build's graphs take, one beside the other: brief, for a rough figure."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from vadexport.backends.base import outputs_of
from vadexport.backends.registry import get_backend
from vadexport.contract import Call
from vadexport.targets import Target

#: Rounds, and seconds that they may take: at most so many of the one, then of the other.
_MOST_ROUNDS: Final = 40
_MOST_SECONDS: Final = 1.0
#: Fewer have no interval that means anything.
_FEWEST_ROUNDS: Final = 6


def time_graphs(
    graphs: Sequence[Path], work: Path, target: Target, threads: int, call: Call
) -> list[list[float]]:
    """Time calls of graphs, in random order round by round. To be run in a child process.

    Each timed call follows an untimed one of the same graph, which brings back what the others
    pushed out of the caches; where calls are long, that does not matter and is left out.

    Args:
        graphs: their ONNX files; one that is named twice is loaded twice.
        work: folder for what is compiled.
        target: that they are compiled for.
        threads: that a call may use.
        call: that is made.

    Returns:
        Seconds of each round, for each graph.

    Raises:
        BackendError: the backend cannot read one of them.
    """
    with TemporaryDirectory(dir=work, ignore_cleanup_errors=True) as place:
        folders = {graph: Path(place) / str(number) for number, graph in enumerate(graphs)}
        backend = get_backend(target.backend)
        for graph, folder in folders.items():
            folder.mkdir()
            backend.compile_graph(graph, folder, target)
        runners = [backend.open_runner(folders[graph], target, threads) for graph in graphs]
    for runner in runners:
        outputs_of(runner, call)
    started = time.perf_counter()
    for runner in runners:
        outputs_of(runner, call)
    long = (time.perf_counter() - started) * _FEWEST_ROUNDS > _MOST_SECONDS
    random = np.random.default_rng(0)
    samples: list[list[float]] = [[] for _ in runners]
    started = time.perf_counter()
    for number in range(_MOST_ROUNDS):
        if number >= _FEWEST_ROUNDS and time.perf_counter() - started > _MOST_SECONDS:
            break
        for index in random.permutation(len(runners)):
            if not long:
                outputs_of(runners[index], call)
            before = time.perf_counter()
            outputs_of(runners[index], call)
            samples[index].append(time.perf_counter() - before)
    return samples
