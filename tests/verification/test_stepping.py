"""Which graphs are held and how often they are called; the backend and the clock are made up."""

import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

from vadexport.targets import Target
from vadexport.verification import stepping
from vadexport.verification.stepping import time_graphs

GRAPHS = [Path(name) for name in "abcd"]


class Backend:
    """Runners whose calls take as long as it is told; it knows which of them are held."""

    def __init__(self):
        self.now, self.held, self.most, self.calls = 0.0, weakref.WeakSet(), 0, []

    def compile_graph(self, graph, folder, _target):
        (folder / "graph").write_text(str(graph))

    def open_runner(self, folder, _target, _threads):
        runner = Runner(self, (folder / "graph").read_text())
        self.held.add(runner)
        self.most = max(self.most, len(self.held))
        return runner


class Runner:
    def __init__(self, backend, name):
        self.backend, self.name = backend, name

    def infer(self, _call):
        self.backend.calls.append(self.name)
        self.backend.now += self.backend.seconds[self.name]
        return {}


@pytest.fixture
def timed(monkeypatch, tmp_path):
    def go(**seconds):
        backend = Backend()
        backend.seconds = seconds
        monkeypatch.setattr(stepping, "get_backend", lambda _: backend)
        monkeypatch.setattr(stepping, "time", SimpleNamespace(perf_counter=lambda: backend.now))
        again, pairs = time_graphs(GRAPHS, tmp_path, Target("openvino", "fp32"), 1, None)
        assert list(tmp_path.iterdir()) == []
        return backend, again, pairs

    return go


def test_each_stands_beside_the_one_before_it_and_two_are_held(timed):
    backend, again, pairs = timed(a=0.008, b=0.004, c=0.002, d=0.001)
    assert backend.most == 2
    assert again[0] == pytest.approx(again[1])
    medians = [(before[0], after[0]) for before, after in pairs]
    for found, expected in zip(medians, [(8, 4), (4, 2), (2, 1)], strict=True):
        assert found == pytest.approx([each / 1000 for each in expected])
    assert all(len(before) == len(after) >= 6 for before, after in pairs)


def test_long_calls_are_few_and_none_is_made_beside(timed):
    backend, again, pairs = timed(a=0.5, b=0.4, c=0.3, d=0.3)
    assert again is None
    assert [len(before) for before, _ in pairs] == [6, 6, 6]
    # To warm up, to see that they are long, and in two pairs.
    assert [backend.calls.count(name) for name in "abcd"] == [8, 13, 13, 7]
