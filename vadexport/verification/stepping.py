"""How long calls of a build's graphs take, each beside the one before it: brief, a rough figure."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from vadexport.backends.base import Runner, outputs_of
from vadexport.backends.registry import get_backend
from vadexport.contract import Call
from vadexport.targets import Target
from vadexport.verification.applied import Pair

#: Rounds of a pair, and seconds that they may take: at most so many of the one, then of the other.
_MOST_ROUNDS: Final = 40
_MOST_SECONDS: Final = 0.5
#: Fewer have no interval that means anything.
_FEWEST_ROUNDS: Final = 6
#: Seconds of a call that is long: such have the fewest, and are not timed against themselves.
_LONG_CALL: Final = 0.1


def time_graphs(
    graphs: Sequence[Path], work: Path, target: Target, threads: int, call: Call
) -> tuple[Pair | None, list[Pair]]:
    """Time calls of graphs in pairs, in random order round by round. To be run in a child process.

    No more than two are in memory at a time. Each timed call follows an untimed one of the same
    graph, which brings back what the other pushed out of the caches; where calls are long, that
    does not matter and is left out.

    Args:
        graphs: their ONNX files.
        work: folder for what is compiled.
        target: that they are compiled for.
        threads: that a call may use.
        call: that is made.

    Returns:
        The first graph beside itself, loaded twice; None where its calls are long. And each graph
        but the first, behind the one before it.

    Raises:
        BackendError: the backend cannot read one of them.
    """
    backend = get_backend(target.backend)

    def opened(graph: Path) -> Runner:
        with TemporaryDirectory(dir=work, ignore_cleanup_errors=True) as place:
            backend.compile_graph(graph, Path(place), target)
            runner = backend.open_runner(Path(place), target, threads)
        outputs_of(runner, call)
        return runner

    before = opened(graphs[0])
    long = _seconds(before, call) > _LONG_CALL
    again = None if long else _paired(before, opened(graphs[0]), call, long=long)
    pairs = []
    for graph in graphs[1:]:
        after = opened(graph)
        pairs.append(_paired(before, after, call, long=long))
        before = after
    return again, pairs


def _paired(first: Runner, second: Runner, call: Call, *, long: bool) -> Pair:
    runners = (first, second)
    samples: Pair = ([], [])
    most = _FEWEST_ROUNDS if long else _MOST_ROUNDS
    random = np.random.default_rng(0)
    started = time.perf_counter()
    for number in range(most):
        if number >= _FEWEST_ROUNDS and time.perf_counter() - started > _MOST_SECONDS:
            break
        for index in random.permutation(2):
            if not long:
                outputs_of(runners[index], call)
            samples[index].append(_seconds(runners[index], call))
    return samples


def _seconds(runner: Runner, call: Call) -> float:
    started = time.perf_counter()
    outputs_of(runner, call)
    return time.perf_counter() - started
