import tempfile

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vadexport.verification.overlap import MapSpool
from vadexport.verification.segmentation import FPR_LIMIT, PixelScores, resized_map


def samples(seed, count=24, size=(48, 64), *, signal=1.0, grain=2):
    """Maps of smooth noise, brighter where the mask says so; every second image is normal."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        mask = None
        noise = gaussian_filter(rng.normal(size=size), grain) * 2 * grain
        if number % 2:
            mask = np.zeros(size, bool)
            for _ in range(rng.integers(1, 4)):
                y, x = rng.integers(0, np.array(size) - 9)
                mask[y : y + rng.integers(2, 9), x : x + rng.integers(2, 9)] = True
            noise = noise + signal * gaussian_filter(mask.astype(float), 1)
        found.append((noise.astype(np.float32), mask))
    return found


def exact(found, size):
    pixels = PixelScores()
    for anomaly_map, mask in found:
        pixels.add(resized_map(anomaly_map, size), mask)
    return pixels.curves()[1].area(FPR_LIMIT)


def compared(first, second, size, reference="a"):
    with MapSpool("a", "b") as spool:
        for (one, mask), (other, _) in zip(first, second, strict=True):
            spool.add({"a": one, "b": other}, mask, size)
        return spool.compared(reference)


@pytest.mark.parametrize("signal", [0.0, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_is_the_exact_area_to_a_thousandth(seed, signal):
    first = samples(seed, signal=signal)
    second = [(values + np.float32(0.5) * np.sin(7 * values), mask) for values, mask in first]
    found = compared(first, second, (48, 64))
    assert list(found) == ["b"]
    assert found["b"].reference == pytest.approx(exact(first, (48, 64)), abs=1e-3)
    assert found["b"].artifact == pytest.approx(exact(second, (48, 64)), abs=1e-3)


def test_maps_are_resized_to_the_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rng = np.random.default_rng(0)
    first = [(rng.normal(size=(20, 30)).astype(np.float32), mask) for _, mask in samples(3, 200)]
    found = compared(first, first, (48, 64))["b"]
    assert found.reference == pytest.approx(exact(first, (48, 64)), abs=1e-3)
    assert (found.loss.value, found.loss.low, found.loss.high) == (0, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_only_the_order_of_pixels_counts():
    first = samples(5, 200)
    second = [(np.exp(values) * 100, mask) for values, mask in first]
    loss = compared(first, second, (48, 64))["b"].loss
    assert max(abs(loss.value), abs(loss.low), abs(loss.high)) < 1e-3


def test_ties_and_few_values():
    first = [(np.round(values), mask) for values, mask in samples(7, signal=3.0)]
    found = compared(first, first, (48, 64))["b"]
    assert found.reference == pytest.approx(exact(first, (48, 64)), abs=5e-3)


def test_the_interval_is_that_of_drawing_images():
    first = samples(11, count=200, size=(24, 32), signal=2.0)
    rng = np.random.default_rng(0)
    second = [
        (values + rng.normal(size=values.shape).astype(np.float32), mask) for values, mask in first
    ]
    found = compared(first, second, (24, 32))["b"].loss
    kinds = [[n for n, (_, mask) in enumerate(first) if (mask is None) == none] for none in (0, 1)]
    losses = []
    for _ in range(200):
        drawn = np.concatenate([rng.choice(kind, len(kind)) for kind in kinds])
        losses.append(
            exact([first[n] for n in drawn], (24, 32)) - exact([second[n] for n in drawn], (24, 32))
        )
    low, high = np.quantile(losses, [0.025, 0.975])
    width = high - low
    assert found.low == pytest.approx(low, abs=0.15 * width)
    assert found.high == pytest.approx(high, abs=0.15 * width)
    assert found.low < found.value < found.high


def test_an_image_that_is_not_finite_is_left_out():
    first = samples(13)
    second = [(values.copy(), mask) for values, mask in first]
    second[3][0][0, 0] = np.nan
    kept = first[:3] + first[4:]
    assert compared(first, second, (48, 64))["b"] == compared(kept, kept, (48, 64))["b"]


def test_without_defects_there_is_none():
    first = [(values, None) for values, _ in samples(17)]
    assert compared(first, first, (48, 64)) == {}
    with MapSpool("a", "b") as spool:
        assert spool.compared("a") == {}


def test_of_few_images_there_is_no_interval():
    first = samples(5, 190)
    loss = compared(first, first, (48, 64))["b"].loss
    assert (loss.value, loss.low, loss.high, loss.enough) == (0, None, None, 100)
