import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.contract import ImageInput
from vadexport.images.generated import generated_images

SIDES = st.integers(1, 40)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.sampled_from([1, 3]), st.integers(0, 12), st.integers(0, 2**64))
def test_any_size_and_seed(height, width, channels, count, seed):
    images = generated_images(ImageInput(height, width, channels), count, seed)
    assert images.shape == (count, height, width, channels)
    assert images.dtype == np.uint8


def test_the_bytes_never_change():
    # Reports of different machines and versions are compared on the same images.
    images = generated_images(ImageInput(33, 47, 3), 12, seed=7)
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    assert digest == "7f84505d8e507e069d96e147d5d4b3e975ccba4a5bd71475f552e67493ad87c2"


def test_16_bits_show_the_same_finer():
    shallow, deep = (
        generated_images(ImageInput(33, 47, 1, dtype=dtype), 12, seed=7)
        for dtype in ("uint8", "uint16")
    )
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - shallow).max() <= 0.5
    # Gradients and smooth noise use what lies below 8 bits.
    assert len(np.unique(deep % 257)) == 257


def test_fewer_are_the_first_of_more():
    image_input = ImageInput(8, 9, 3)
    more = generated_images(image_input, 9, seed=1)
    np.testing.assert_array_equal(generated_images(image_input, 4, seed=1), more[:4])


def test_seeds_differ():
    image_input = ImageInput(8, 9, 1)
    first, second = (generated_images(image_input, 12, seed) for seed in (1, 2))
    assert all((a != b).any() for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def kinds():
    """Eight images of each kind, `[kind, 8, H, W, C]` as float."""
    images = generated_images(ImageInput(64, 96, 3), 48, seed=3).astype(float)
    return images.reshape(8, 6, 64, 96, 3).swapaxes(0, 1)


class TestContent:
    def test_flat(self, kinds):
        assert (np.ptp(kinds[0], axis=(1, 2)) == 0).all()

    def test_gradients_are_straight(self, kinds):
        inside = (kinds[1] > 0) & (kinds[1] < 255)
        bends = np.abs(np.diff(kinds[1], n=2, axis=2))
        # Rounding bends by up to 2; so does clipping, by more.
        assert bends[inside[:, :, :-2] & inside[:, :, 1:-1] & inside[:, :, 2:]].max() <= 2
        assert np.ptp(kinds[1], axis=(1, 2)).max() > 100

    def test_checkerboards_have_two_levels_and_several_periods(self, kinds):
        levels = [len(np.unique(image[..., 0])) for image in kinds[2]]
        assert max(levels) <= 2
        flips = {int((np.diff(image[0, :, 0]) != 0).sum()) for image in kinds[2]}
        assert len(flips - {0}) >= 3

    def test_smooth_noise_has_no_fine_detail(self, kinds):
        # A cell is at least 8 pixels high here; no step comes near the range of the values.
        assert np.abs(np.diff(kinds[3], axis=1)).max() <= 60
        assert np.ptp(kinds[3], axis=(1, 2)).min() > 60

    def test_white_noise_is_flat_in_its_histogram(self, kinds):
        counts = np.bincount(kinds[4].astype(int).ravel(), minlength=256)
        assert counts.min() > 0.7 * counts.mean()

    def test_blobs_are_brighter_and_darker_than_the_ground(self, kinds):
        ground = np.median(kinds[5], axis=(1, 2), keepdims=True)
        assert (kinds[5] - ground).max() > 50
        assert (kinds[5] - ground).min() < -50

    def test_channels_differ(self, kinds):
        images = kinds.reshape(48, -1, 3)
        assert all((image[:, 0] != image[:, 2]).any() for image in images)
