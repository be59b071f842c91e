"""What observes tensors of a network runs no score head: here one that cannot run."""

import numpy as np
import pytest

from tests.passes.half_graphs import graph
from vadexport.calibration.bank_search import _queries
from vadexport.calibration.half import largest_values
from vadexport.calibration.network import find_layers
from vadexport.calibration.observing import extremes, moments, run_graph
from vadexport.calibration.repair import _means
from vadexport.verification.tensors import tensor_values

RANDOM = np.random.default_rng(3)
CALLS = [RANDOM.normal(size=(1, 2, 4, 4)).astype(np.float32) for _ in range(2)]
MODEL = graph(
    "float[1,2,4,4] image",
    """
    c = Conv(image, w)
    r = Relu(c)
    beyond = Gather<axis = 1>(r, index)
    raw_score = Add(beyond, bank)
    """,
    "float[1,4,4] raw_score",
    w=RANDOM.normal(size=(2, 2, 1, 1)),
    index=np.array(99),
    bank=np.zeros((4, 4)),
)
NETWORK = frozenset({"c", "r"})


def test_the_head_cannot_run():
    with pytest.raises(Exception, match="out of"):
        list(run_graph(MODEL, CALLS))


@pytest.mark.parametrize(
    "observed",
    [
        lambda: extremes(MODEL, ["r"], CALLS),
        lambda: moments(
            MODEL, find_layers(MODEL, NETWORK), {"image": (0.1, 0.1)}, CALLS, len(CALLS)
        ),
        lambda: _means(MODEL, ["r"], CALLS),
        lambda: list(_queries(MODEL, ["r"], CALLS, lambda *_: None)),
        lambda: largest_values(MODEL, ["c", "r"], CALLS),
        lambda: tensor_values(MODEL, ["r"], CALLS[0]),
    ],
    ids=["extremes", "moments", "means", "queries", "half", "tensors"],
)
def test_it_is_not_run(observed):
    assert observed()
