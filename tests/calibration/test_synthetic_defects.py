import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vadexport.calibration.synthetic_defects import with_defect

images = st.tuples(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]), st.sampled_from(["u1", "u2"])
)


def noise(height, width, channels, dtype, seed=0):
    rng = np.random.default_rng(seed)
    largest = np.iinfo(dtype).max
    return rng.integers(0, largest, (height, width, channels), dtype, endpoint=True)


@given(images, st.integers(0, 50))
@settings(deadline=None)
def test_any_image_keeps_its_form(shape, seed):
    image = noise(*shape)
    before = image.copy()
    spoiled = with_defect(image, seed)
    assert (spoiled.shape, spoiled.dtype) == (image.shape, image.dtype)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(spoiled, with_defect(image, seed))


@pytest.mark.parametrize("seed", range(30))
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
    for seed in range(60):
        assert (np.abs(with_defect(flat, seed).astype(int) - flat) > 5).sum() > 10
