import warnings

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from vadexport.errors import InputError
from vadexport.images.colouring import colour, overlay, save_png, viewable
from vadexport.images.decoding import decode

MAPS = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)))
DARK, BRIGHT, MAGENTA = [0x44, 0x01, 0x54], [0xFD, 0xE7, 0x25], [255, 0, 255]


def ramp(count=1001):
    return colour(np.linspace(-2, 3, count, dtype=np.float32)[None], -2, 3)[0].astype(float)


class TestColour:
    def test_ends_of_the_scale(self):
        values = np.array([[-1, 0, 1, 2, -np.inf, np.inf]], np.float32)
        assert colour(values, 0, 1)[0].tolist() == [DARK, DARK, BRIGHT, BRIGHT, DARK, BRIGHT]

    def test_larger_is_lighter(self):
        red, green, blue = (ramp() / 255).T ** 2.2
        lightness = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        # Rounding to bytes may take a step back by a hair, never over a few values.
        assert (np.diff(lightness[::10]) > 0).all()

    def test_has_no_jumps(self):
        assert np.abs(np.diff(ramp(), axis=0)).max() <= 2

    def test_red_green_blindness_leaves_the_order(self):
        # What deuteranopes keep apart: the blue-yellow and the light-dark axis.
        red, green, blue = ramp().T
        seen = np.stack([(red + green) / 2, blue], axis=-1)[::100]
        steps = np.linalg.norm(np.diff(seen, axis=0), axis=1)
        assert steps.min() > 5

    def test_nan_is_magenta_and_nothing_else_is(self):
        values = np.array([[np.nan, 0.5]], np.float32)
        assert colour(values, 0, 1)[0, 0].tolist() == MAGENTA
        assert np.linalg.norm(ramp() - MAGENTA, axis=1).min() > 100

    def test_a_constant_map(self):
        values = np.array([[3, 3.5]], np.float32)
        assert colour(values, 3, 3)[0].tolist() == [DARK, BRIGHT]

    @given(MAPS, st.floats(-1e30, 1e30), st.floats(0, 1e30))
    @example(np.array([[4]], np.float32), 0.0, 3e-308)
    def test_any_map(self, values, low, span):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            colours = colour(values, low, low + span)
        assert colours.shape == (*values.shape, 3)
        assert colours.dtype == np.uint8
        assert ((colours == MAGENTA).all(axis=2) == np.isnan(values)).all()

    @pytest.mark.parametrize(("low", "high"), [(1, 0), (np.nan, 1), (0, np.inf)])
    def test_no_scale(self, low, high):
        with pytest.raises(ValueError, match="no colour scale goes from"):
            colour(np.zeros((2, 2), np.float32), low, high)


class TestViewable:
    def test_8_bits_stay(self):
        image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
        np.testing.assert_array_equal(viewable(image), image)

    def test_16_bits_are_stretched_whatever_part_they_use(self):
        image = (20_000 + np.arange(3000, dtype=np.uint16)).reshape(50, 60, 1)
        seen = viewable(image)
        assert seen.dtype == np.uint8
        assert (seen.min(), seen.max()) == (0, 255)
        assert (np.diff(seen.ravel().astype(int)) >= 0).all()

    def test_a_dead_pixel_does_not_make_the_rest_dark(self):
        image = (np.arange(3000, dtype=np.uint16)).reshape(50, 60, 1)
        image[7, 7] = 65535
        assert viewable(image)[-1, -1, 0] > 250

    @pytest.mark.parametrize("value", [0, 40_000, 65535])
    def test_a_flat_image(self, value):
        assert not viewable(np.full((4, 4, 1), value, np.uint16)).any()


class TestOverlay:
    IMAGE = np.full((2, 3, 3), 100, np.uint8)
    HEAT = np.full((2, 3, 3), (0, 201, 255), np.uint8)

    @pytest.mark.parametrize(
        ("alpha", "wanted"), [(0, [100] * 3), (1, [0, 201, 255]), (0.25, [75, 125, 139])]
    )
    def test_shares(self, alpha, wanted):
        mixed = overlay(self.IMAGE, self.HEAT, alpha)
        assert mixed.dtype == np.uint8
        assert (mixed == wanted).all()

    def test_of_16_bits(self):
        image = np.arange(6, dtype=np.uint16).reshape(2, 3, 1) * 10_000
        mixed = overlay(image, self.HEAT, 0)
        assert mixed.dtype == np.uint8
        assert (mixed[0, 0, 0], mixed[1, 2, 0]) == (0, 255)

    def test_gray(self):
        mixed = overlay(self.IMAGE[:, :, :1], self.HEAT, 0.25)
        np.testing.assert_array_equal(mixed, overlay(self.IMAGE, self.HEAT, 0.25))

    def test_other_size(self):
        with pytest.raises(ValueError, match="differ in size"):
            overlay(self.IMAGE[:1], self.HEAT, 0.5)

    @pytest.mark.parametrize("alpha", [-0.1, 1.1, np.nan])
    def test_alpha_outside(self, alpha):
        with pytest.raises(ValueError, match="is outside 0 … 1"):
            overlay(self.IMAGE, self.HEAT, alpha)


class TestSavePng:
    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
    def test_round_trip(self, tmp_path, shape):
        array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        save_png(array, tmp_path / "a.png")
        channels = 3 if shape[-1] == 3 else 1
        image = decode(tmp_path / "a.png", channels)
        np.testing.assert_array_equal(image, array.reshape(4, 5, channels))
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_same_bytes_each_time(self, tmp_path):
        for name in ("a.png", "b.png"):
            save_png(TestOverlay.HEAT, tmp_path / name)
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_a_failed_write_leaves_the_old_file_and_no_other(self, tmp_path, monkeypatch):
        path = tmp_path / "a.png"
        path.write_bytes(b"old")

        def fill_the_disk(_image, to, **_options):
            to.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", fill_the_disk)
        with pytest.raises(InputError, match=r"cannot write .*a\.png: No space left"):
            save_png(TestOverlay.HEAT, path)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_missing_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"cannot write .*a\.png: No such file or directory"):
            save_png(TestOverlay.HEAT, tmp_path / "none" / "a.png")
