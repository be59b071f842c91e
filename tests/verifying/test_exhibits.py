import math

import pytest

from vadexport.verification.records import ImageRecord
from vadexport.verifying.judging import _to_exhibit

WORST, NEAREST, RANDOM = "largest drift", "nearest to the threshold", "drawn at random"


def record(name, reference, move=0.0):
    return ImageRecord(
        name,
        anomalous=None,
        reference_raw=reference,
        raw=reference + move,
        reference_label=False,
        label=False,
        map_max=0.0,
        map_mean=0.0,
        map_range=1.0,
        consistent=True,
    )


@pytest.fixture
def records():
    """Image n scores n; the last four drift, the more the later."""
    return [record(f"{n}.png", float(n), max(0, n - 95) / 10) for n in range(100)]


def chosen(records, threshold=50.2):
    found = {WORST: [], NEAREST: [], RANDOM: []}
    for one, why in _to_exhibit(records, threshold):
        found[why].append(one.name)
    return found


def test_worst_then_nearest_then_random(records):
    found = chosen(records)
    assert found[WORST] == ["99.png", "98.png", "97.png", "96.png"]
    assert found[NEAREST] == ["50.png", "51.png"]
    assert len(found[RANDOM]) == 2
    assert len({name for names in found.values() for name in names}) == 8


def test_without_a_threshold(records):
    found = chosen(records, None)
    assert (len(found[WORST]), len(found[NEAREST]), len(found[RANDOM])) == (4, 0, 2)


def test_the_draw_depends_on_names_alone(records):
    drawn = chosen(records)[RANDOM]
    assert chosen(records[::-1])[RANDOM] == drawn
    assert chosen(records, 1.5)[RANDOM] == drawn
    # Of other names, others: over many sets, each image is drawn about as often.
    counts = [0] * 100
    for number in range(500):
        renamed = [record(f"{number}/{n}.png", float(n)) for n in range(100)]
        for name in chosen(renamed, None)[RANDOM]:
            counts[int(name.split("/")[1].removesuffix(".png"))] += 1
    assert counts[:4] == [0, 0, 0, 0]  # of equal drift, the first are the worst
    assert min(counts[4:]) >= 1
    assert max(counts[4:]) <= 30


def test_few_images(records):
    assert [len(names) for names in chosen(records[:5]).values()] == [4, 1, 0]
    assert [len(names) for names in chosen(records[:1]).values()] == [1, 0, 0]


def test_names_and_scores_of_any_kind(records):
    odd = [*records, record("b\udcff.png", math.nan), record("测试.png", math.inf)]
    found = chosen(odd)
    assert found[WORST] == ["b\udcff.png", "测试.png", "99.png", "98.png"]
    assert len(found[RANDOM]) == 2
