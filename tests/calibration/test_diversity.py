from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from vadexport.calibration.diversity import description, spread_out


def points(count, width=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def radius(scaled, chosen):
    """How far the point farthest from all chosen ones is."""
    return cdist(scaled, scaled[list(chosen)]).min(axis=1).max()


def scaled(found):
    return (found - found.mean(axis=0)) / found.std(axis=0)


@given(st.integers(1, 40), st.data(), st.integers(0, 1000))
@settings(deadline=None)
def test_follows_the_greedy_rule(count, data, seed):
    found = points(count, seed=seed)
    chosen = spread_out(found, data.draw(st.integers(1, count))).tolist()
    assert len(set(chosen)) == len(chosen)
    if count == 1:
        return
    away = scaled(found)
    first = np.linalg.norm(away, axis=1)
    assert first[chosen[0]] == pytest.approx(first.max(), rel=1e-5)
    for number in range(1, len(chosen)):
        far = cdist(away, away[chosen[:number]]).min(axis=1)
        assert far[chosen[number]] == pytest.approx(far.max(), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_covers_at_most_twice_as_far_as_the_best_choice(seed):
    # Gonzalez 1985, theorem 2.1
    away = scaled(points(12, seed=seed))
    best = min(radius(away, chosen) for chosen in combinations(range(12), 3))
    assert radius(away, spread_out(points(12, seed=seed), 3)) <= 2 * best + 1e-6


def test_copies_come_last():
    found = np.concatenate([points(10)] * 4)
    chosen = spread_out(found, 25).tolist()
    assert sorted(number % 10 for number in chosen[:10]) == list(range(10))
    assert len(set(chosen)) == 25


@pytest.mark.parametrize("count", [1, 7])
def test_points_that_are_all_alike(count):
    assert sorted(spread_out(np.ones((7, 4), np.float32), count)) == list(range(count))


def test_large_numbers_do_not_hide_small_ones():
    found = points(200, 2)
    assert spread_out(found * [1e4, 1e-4], 20).tolist() == spread_out(found, 20).tolist()


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))


@given(shapes, st.integers(0, 100))
@settings(deadline=None)
def test_any_image_is_described(shape, seed):
    image = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    found = description(image)
    assert found.dtype == np.float32
    assert len(found) == min(8, shape[0]) * min(8, shape[1]) + 27
    assert np.isfinite(found).all()
    # The same picture of another camera: 16 bits, or gray as RGB.
    deep = description(image.astype(np.uint16) * 257)
    np.testing.assert_allclose(deep, found, atol=1e-6)
    if shape[2] == 1:
        np.testing.assert_allclose(description(image.repeat(3, axis=2)), found, atol=1e-6)


def test_says_where_an_image_is_light_and_how_it_is_textured():
    image = np.full((64, 48, 1), 51, np.uint8)
    image[:8, 6:12] = 204  # the second cell of the first row
    image[32:, ::2] += 51
    found = description(image)
    grid, levels, down, across = np.split(found, [64, 73, 82])
    expected = np.full((8, 8), 0.2)
    expected[4:] += 0.1
    expected[0, 1] = 0.8
    np.testing.assert_allclose(grid, expected.ravel(), atol=1e-6)
    assert (levels[0], levels[-1]) == pytest.approx((0.2, 0.8))
    assert down[4] == 0  # the median step down
    assert across[5:8] == pytest.approx([0.2] * 3)  # half of the steps across


@pytest.mark.parametrize("size", [(512, 2), (257, 1024)])
def test_large_images_are_thinned_out(size):
    image = np.zeros((*size, 1), np.uint8)
    image[::2] = 100  # every second row, and so every row that is looked at
    found = description(image)
    np.testing.assert_allclose(found[-27:-18], 100 / 255, atol=1e-6)


def test_puts_unlike_images_first(crops):
    rng = np.random.default_rng(0)
    many = [crops[0].astype(int) + rng.integers(-2, 3, crops[0].shape) for _ in range(20)]
    dark, coarse = crops[0] // 4, crops[0].astype(int) + rng.integers(-40, 41, crops[0].shape)
    images = [np.clip(image, 0, 255).astype(np.uint8) for image in (*many, dark, coarse)]
    chosen = spread_out(np.stack([description(image) for image in images]), 3)
    assert {20, 21} < set(chosen.tolist())
