import numpy as np
import pytest
import torch
from torch.nn import functional

from vadexport.verification.causes import (
    layer_cause,
    likely_cause,
    map_cause,
    quantiser_cause,
)

MEAN, STD = (
    np.array(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)


@pytest.fixture(scope="module")
def pixels():
    """Noisy waves, [2, 3, 88, 112] from 0 to 1."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:88, :112] / 20
    phase = rng.uniform(0, 6, (2, 3, 1, 1))
    return (0.5 + 0.3 * np.sin(x + phase + y) + rng.normal(0, 0.08, (2, 3, 88, 112))).clip(0, 1)


def resized(pixels, **options):
    scaled = functional.interpolate(torch.from_numpy(pixels), (64, 80), **options)
    return (scaled.numpy() - MEAN) / STD


def right(pixels):
    return resized(pixels, mode="bilinear", antialias=True).astype(np.float32)


CAUSES = {
    "blue first": (lambda p: right(p[:, ::-1].copy()), "another order (2, 1, 0)"),
    "normalised twice": (lambda p: (right(p) - MEAN) / STD, "another normalisation"),
    "not normalised": (lambda p: right(p) * STD + MEAN, "another normalisation"),
    "exchanged": (lambda p: (right(p) * STD + MEAN - STD) / MEAN, "another normalisation"),
    "divided by 256": (lambda p: right(p * 255 / 256), "scaled by 0.996, 0.996, 0.996"),
    "no antialiasing": (lambda p: resized(p, mode="bilinear"), "only fine detail"),
    "nearest": (lambda p: resized(p, mode="nearest"), "only fine detail"),
    "another size": (lambda p: right(p)[:, :, 1:], "size, 3x63x80 where the reference has 3x64x80"),
    "upside down": (lambda p: right(p)[:, :, ::-1], None),
    "moved by half": (lambda p: np.roll(right(p), 32, 2), None),
    "one value is no number": (lambda p: np.where(right(p) > 1, np.nan, right(p)), None),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_known_pattern(pixels, name):
    change, words = CAUSES[name]
    found = likely_cause(right(pixels), change(pixels))
    if words is None:
        assert found is None
    else:
        assert words in found


def test_gray_channels_are_in_any_order(pixels):
    gray = np.repeat(right(pixels)[:, :1], 3, 1)
    assert "another normalisation" in likely_cause(gray, 2 * gray[:, ::-1])


class TestLayers:
    @pytest.fixture
    def output(self):
        return np.random.default_rng(1).normal(0.2, 1, (1, 6, 9, 11)).astype(np.float32)

    def test_a_missing_bias(self, output):
        bias = np.linspace(-1, 1, 6).reshape(1, 6, 1, 1)
        cause = layer_cause(output, output - bias)
        assert cause == "another bias, or none: channels shifted by -1 to 1"

    def test_weights_in_another_scale(self, output):
        cause = layer_cause(output, 1.2 * output)
        assert cause == "weights in another scale: channels scaled by 1.2"

    def test_both(self, output):
        cause = layer_cause(output, 2 * output + 1)
        assert cause.endswith("channels scaled by 2, but for their bias")

    def test_rounding_does_not_hide_it(self, output):
        noise = np.random.default_rng(2).normal(0, 0.02, output.shape)
        assert layer_cause(output, 1.5 * output + noise).startswith("weights in another")

    def test_other_weights_have_no_cause(self, output):
        assert layer_cause(output, output[:, ::-1]) is None

    def test_dropped_rows(self):
        cause = layer_cause(np.zeros((1, 20)), np.zeros((1, 16)))
        assert cause.startswith("1x16 where it was 1x20: rows of a memory bank")
        assert layer_cause(np.zeros((1, 16)), np.zeros((1, 20))) == "1x20 where it was 1x16"

    def test_what_is_not_finite(self, output):
        broken = output.copy()
        broken[0, 0, :2, 0] = np.nan, np.inf
        assert layer_cause(output, broken).startswith("2 of 594 values are not finite")
        assert layer_cause(broken, output) is None

    def test_float16_ends_where_it_ends(self, output):
        large = output * 0 + 1e5
        cause = layer_cause(large, large * np.inf)
        assert cause == "594 of 594 values are not finite: float16 ends at 65504"

    @pytest.mark.parametrize("shape", [(1, 64), (1, 64, 1, 1), (2, 16, 3)])
    def test_few_values_of_a_channel_say_nothing(self, shape):
        rng = np.random.default_rng(0)
        assert layer_cause(rng.normal(size=shape), rng.normal(size=shape)) is None

    def test_a_score_has_no_channels(self):
        assert layer_cause(np.ones(1), np.zeros(1)) is None


class TestQuantisers:
    values = np.random.default_rng(3).normal(size=(1, 4, 30, 30)).astype(np.float32)

    def rounded(self, reach, low=-127):
        return np.clip(np.rint(self.values / reach * 127), low, 127) * np.float32(reach / 127)

    def test_a_range_that_ends_too_early(self):
        share = np.mean(np.abs(self.values) > 1)
        cause = quantiser_cause(self.values, self.rounded(1.0))
        assert cause.startswith(f"its range ends too early: {share:.1%} of the values are clipped")
        assert "to -1 to 1, and reach " in cause

    def test_what_is_never_negative_ends_at_zero(self):
        cause = quantiser_cause(self.values, self.rounded(5.0, low=0))
        assert "clipped to 0 to " in cause

    def test_another_shape(self):
        cause = quantiser_cause(self.values, self.values[:, :3])
        assert cause.startswith("1x3x30x30 where it was 1x4x30x30")

    @pytest.mark.parametrize("change", [lambda x: x, lambda x: x[:, ::-1], lambda x: x * 0])
    def test_all_else_has_no_cause(self, change):
        assert quantiser_cause(self.values, change(self.rounded(5.0))) is None


class TestMaps:
    field = np.add.outer(np.arange(40) ** 1.5, 3.0 * np.arange(40)) + np.random.default_rng(
        4
    ).normal(0, 30, (40, 40))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda m: m.T, "transposed"),
            (lambda m: m[::-1], "upside down"),
            (lambda m: m[:, ::-1], "mirrored"),
            (lambda m: m[::-1, ::-1], "turned by half"),
            (np.rot90, "turned to the left"),
            (lambda m: np.rot90(m, -1), "turned to the right"),
            (lambda m: np.roll(m, 1, 0), "shifted by +1 rows and +0 columns"),
            (lambda m: np.roll(m, (-2, 3), (0, 1)), "shifted by -2 rows and +3 columns"),
            (lambda m: m * 2, None),
            (lambda m: m, None),
            (lambda m: m[:20], None),
            (lambda m: np.full_like(m, np.nan), None),
        ],
    )
    def test_what_moved_it(self, change, words):
        found = map_cause(self.field, change(self.field))
        assert found == (None if words is None else f"the anomaly map is {words}")

    def test_rounding_does_not_hide_it(self):
        noise = np.random.default_rng(5).normal(0, 1, self.field.shape)
        assert map_cause(self.field, self.field.T + noise) == "the anomaly map is transposed"

    def test_a_symmetric_map_that_stayed(self):
        symmetric = self.field + self.field.T
        assert map_cause(symmetric, symmetric) is None

    def test_a_flat_map_tells_nothing(self):
        assert map_cause(np.zeros((4, 4)), np.ones((4, 4))) is None
