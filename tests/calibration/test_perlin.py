import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.calibration.perlin import perlin_noise


def reference(random, height, width, cell):
    """Perlin's noise a point at a time, as his paper says it."""
    rows, columns = math.floor((height - 1) / cell) + 2, math.floor((width - 1) / cell) + 2
    angles = random.uniform(0, 2 * math.pi, (rows, columns))

    def fade(t):
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    def at(y, x):
        value = 0.0
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                down, right = y - row, x - column
                slope = math.sin(angles[row, column]), math.cos(angles[row, column])
                weight = fade(1 - abs(down)) * fade(1 - abs(right))
                value += weight * (slope[0] * down + slope[1] * right)
        return value

    return np.array([[at(y / cell, x / cell) for x in range(width)] for y in range(height)])


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.7, 30), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_agrees_with_the_definition(height, width, cell, seed):
    found = perlin_noise(np.random.default_rng(seed), height, width, cell)
    expected = reference(np.random.default_rng(seed), height, width, cell)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.abs(found).max() <= math.sqrt(0.5)


@pytest.mark.parametrize("cell", [4, 16])
def test_is_zero_at_the_corners_and_smooth_between(cell):
    found = perlin_noise(np.random.default_rng(0), 64, 64, cell)
    np.testing.assert_array_equal(found[::cell, ::cell], 0)
    assert found.std() > 0.1
    assert max(np.abs(np.diff(found, axis=axis)).max() for axis in (0, 1)) < 3 / cell
