import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vadexport.calibration.synthetic_defects import _KINDS, planted, with_defect

images = st.tuples(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]), st.sampled_from(["u1", "u2"])
)


def noise(height, width, channels, dtype, seed=0):
    rng = np.random.default_rng(seed)
    largest = np.iinfo(dtype).max
    return rng.integers(0, largest, (height, width, channels), dtype, endpoint=True)


@given(images, st.integers(0, 50))
@example((1, 1, 1, "u1"), 0)
@example((1, 1, 3, "u2"), 4)
@example((3, 200, 1, "u1"), 3)
@example((200, 3, 3, "u2"), 4)
@settings(deadline=None)
def test_any_image_keeps_its_form_and_shows_a_defect(shape, seed):
    image = noise(*shape)
    before = image.copy()
    spoiled = with_defect(image, seed)
    assert (spoiled.shape, spoiled.dtype) == (image.shape, image.dtype)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(spoiled, with_defect(image, seed))
    assert np.abs(spoiled.astype(int) - image).max() > np.iinfo(image.dtype).max // 51


@pytest.mark.parametrize("seed", range(70))
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_defect_is_one_place_and_leaves_most_of_the_image(seed, dtype):
    image = noise(96, 128, 3, dtype)
    moved = np.abs(with_defect(image, seed).astype(np.int64) - image)
    changed = (moved > np.iinfo(dtype).max / 50).any(axis=2)
    share = changed.mean()
    assert 1e-3 < share < 0.4
    # Pixels that stayed the same by chance leave holes, no more.
    _, places = ndimage.label(ndimage.binary_closing(changed, iterations=2), np.ones((3, 3)))
    assert places == 1


def test_seeds_differ():
    image = noise(64, 64, 1, "u1")
    made = {with_defect(image, seed).tobytes() for seed in range(30)}
    assert len(made) == 30


@pytest.mark.parametrize("value", [0, 100, 255])
def test_defects_show_on_a_flat_image(value):
    flat = np.full((64, 64, 1), value, np.uint8)
    for seed in range(70):
        assert (np.abs(with_defect(flat, seed).astype(int) - flat) > 5).sum() > 10


@pytest.mark.parametrize("kind", range(7))
def test_a_kind_changes_a_bounded_part_and_leaves_the_rest_alone(kind, crops):
    crop = crops[0].repeat(3, axis=2)
    for seed in range(kind, 70, 7):
        rows, columns = np.nonzero((with_defect(crop, seed) != crop).any(axis=2))
        assert rows.size < 0.4 * crop[..., 0].size
        assert np.ptp(rows) < 0.85 * 96
        assert np.ptp(columns) < 0.85 * 96


def test_a_blur_takes_texture_away():
    image = noise(96, 96, 1, "u1")
    for seed in range(4, 70, 7):
        spoiled = with_defect(image, seed)
        inside = ndimage.binary_erosion((spoiled != image)[..., 0], iterations=4)
        assert inside.any()
        assert spoiled[inside].std() < image[inside].std() / 2
        assert spoiled[inside].mean() == pytest.approx(image[inside].mean(), rel=0.1)


@pytest.mark.parametrize(("first", "sign"), [(5, 1), (6, -1)])
def test_a_spot_is_brighter_or_darker(first, sign):
    gray = np.full((64, 64, 3), 128, np.uint8)
    for seed in range(first, 70, 7):
        moved = with_defect(gray, seed).astype(int) - 128
        assert (sign * moved >= 0).all()
        assert (sign * moved).max() > 70


@pytest.mark.parametrize(("value", "first", "sign"), [(255, 5, -1), (0, 6, 1)])
def test_what_would_not_show_gives_way(value, first, sign):
    flat = np.full((64, 64, 1), value, np.uint8)
    for seed in range(first, 70, 7):  # a bright spot on white, a dark one on black
        assert (sign * (with_defect(flat, seed).astype(int) - value)).max() > 5


def test_planted_gives_each_image_a_defect_of_its_own(crops):
    flat = [np.full((48, 48, 1), 100, np.uint8)] * 14
    made = planted(flat, 3)
    assert len({one.tobytes() for one in made}) == 14
    assert len({one.tobytes() for one in (*made, *planted(flat, 4))}) == 28
    for image, one, again in zip(crops, planted(crops, 3), planted(crops, 3), strict=True):
        assert (one.dtype, one.shape) == (image.dtype, image.shape)
        assert (one != image).any()
        np.testing.assert_array_equal(one, again)


def test_kinds_take_turns(monkeypatch):
    turns = []

    def named(kind):
        def plant(random, image):
            turns.append(kind.__name__)
            return kind(random, image)

        return plant

    kinds = tuple(map(named, _KINDS))
    monkeypatch.setattr("vadexport.calibration.synthetic_defects._KINDS", kinds)
    noisy = [noise(64, 64, 1, "u1", seed) for seed in range(9)]
    planted(noisy, 0)
    assert turns == [kind.__name__ for kind in (*_KINDS, *_KINDS[:2])]
    turns.clear()
    for seed in range(7):
        with_defect(noisy[seed], seed)
    assert turns == [kind.__name__ for kind in _KINDS]
    assert planted([], 0) == []
