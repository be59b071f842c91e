import time

import numpy as np
import pytest

from vadexport.backends.base import Execution
from vadexport.errors import InputError
from vadexport.listening import Listener
from vadexport.verification import throughput
from vadexport.verification.throughput import Streams, measure_throughput, threads_a_stream

CALLS = [np.zeros((4, 1, 1, 1), np.uint8)] * 2


class Sleeping:
    execution = Execution("sleeping", "none", "a processor", 1)

    def infer(self, image):
        del image
        time.sleep(0.02)
        return {}


class Broken(Sleeping):
    def infer(self, image):
        raise ValueError(image.shape)


def test_images_of_calls_that_run_beside_each_other():
    alone, beside = (Streams(Sleeping, count, CALLS).run(0.3) for count in (1, 4))
    assert 4 / 0.02 / 4 < alone <= 4 / 0.02  # sleeps last longer, never shorter
    assert 2 * alone < beside <= 4 * 4 / 0.02


def test_every_stream_makes_a_call():
    start = time.perf_counter()
    rate = Streams(Sleeping, 3, CALLS).run(0.0)
    assert 3 * 4 / (time.perf_counter() - start) <= rate <= 3 * 4 / 0.02


def test_a_failing_call_is_not_lost():
    with pytest.raises(ValueError, match="4, 1, 1, 1"):
        Streams(Broken, 2, CALLS).run(0.1)


def test_contestants_in_blocks(monkeypatch):
    monkeypatch.setattr(throughput, "_BLOCK_S", 0.1)
    found = measure_throughput({"a": (Sleeping, 1), "b": (Sleeping, 3)}, CALLS, Listener())
    assert {name: one.streams for name, one in found.items()} == {"a": 1, "b": 3}
    for one in found.values():
        assert len(one.blocks) == 5
        assert one.images_per_s == pytest.approx(np.median(one.blocks))
    assert found["b"].images_per_s > 1.5 * found["a"].images_per_s


@pytest.mark.parametrize(("threads", "streams", "each"), [(8, 4, 2), (8, 3, 2), (2, 2, 1)])
def test_streams_share_the_threads(threads, streams, each):
    assert threads_a_stream(threads, streams) == each


def test_more_streams_than_threads():
    with pytest.raises(InputError, match="3 streams cannot share 2 threads"):
        threads_a_stream(2, 3)
