import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vadexport.detectors.maps import blur, full_size_map, gaussian_kernel

sigmas = st.floats(0.2, 8)


@given(sigma=sigmas)
def test_kernel_is_a_gaussian_that_sums_to_one(sigma):
    kernel = gaussian_kernel(sigma)
    radius = len(kernel) // 2
    assert radius == int(np.ceil(4 * sigma))
    assert len(kernel) == 2 * radius + 1
    # Each tap is rounded to float32, by half a unit in the last place.
    assert abs(float(kernel.double().sum()) - 1) <= np.finfo(np.float32).eps / 2
    expected = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    np.testing.assert_allclose(kernel, expected / expected.sum(), rtol=1e-7, atol=1e-45)


@given(
    height=st.integers(10, 40),
    width=st.integers(10, 40),
    sigma=st.floats(0.3, 2.2),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_blur_is_scipys_with_mirrored_borders(height, width, sigma, seed):
    image = np.random.default_rng(seed).normal(size=(2, 1, height, width))
    kernel = gaussian_kernel(sigma).double()
    expected = image
    for axis in (2, 3):
        expected = ndimage.correlate1d(expected, kernel.numpy(), axis=axis, mode="mirror")
    found = blur(torch.from_numpy(image), kernel)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_blur_is_scipys_gaussian_filter():
    image = np.random.default_rng(0).random((50, 70))
    found = blur(torch.from_numpy(image)[None, None], gaussian_kernel(4.0).double())
    expected = ndimage.gaussian_filter(image, 4.0, mode="mirror", radius=16)
    # The kernel is float32.
    np.testing.assert_allclose(found[0, 0], expected, rtol=0, atol=1e-6)


def test_blur_in_float32_is_that_of_float64(float32_eps):
    image = torch.rand(1, 1, 64, 48, generator=torch.Generator().manual_seed(0))
    kernel = gaussian_kernel(4.0)
    found = blur(image, kernel)
    expected = blur(image.double(), kernel.double())
    # Sums of 33 products below one, twice.
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) <= 2 * 33 * float32_eps


@pytest.mark.parametrize("size", [(40, 56), (45, 33), (7, 9), (3, 40)])
def test_a_flat_map_stays_flat_at_any_size(size):
    scores = torch.full((2, 1, 5, 7), 3.25)
    found = full_size_map(scores, size, gaussian_kernel(0.5))
    assert found.shape == (2, 1, *size)
    torch.testing.assert_close(found, torch.full((2, 1, *size), 3.25), rtol=1e-6, atol=0)


def test_upsampling_is_bilinear_at_half_pixel_centres():
    scores = torch.tensor([[0.0, 1.0]], dtype=torch.float64).view(1, 1, 1, 2)
    narrow = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)  # no blur
    found = full_size_map(scores, (2, 4), narrow)
    assert found.tolist() == [[[[0, 0.25, 0.75, 1]] * 2]]
