import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from tests.images.files import JPEG, encoded, png, random_image, rgb_tiff
from vadexport.errors import InputError
from vadexport.images.decoding import decode, probe
from vadexport.images.headers import ImageHeader, UnreadableImageError

fast = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


SIDES = st.integers(1, 9)
GRAY = arrays(np.uint8, st.tuples(SIDES, SIDES))
RGB = arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3)))


class TestDecode:
    @fast
    @given(RGB, st.sampled_from(["PNG", "BMP", "TIFF"]))
    def test_colour_round_trip(self, write, pixels, form):
        path = write(encoded(pixels, form))
        image = decode(path, 3)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, pixels)
        assert probe(path) == ImageHeader(*pixels.shape)

    @fast
    @given(GRAY, st.sampled_from(["PNG", "BMP", "TIFF"]))
    def test_gray_round_trip(self, write, pixels, form):
        path = write(encoded(pixels, form))
        np.testing.assert_array_equal(decode(path, 1), pixels[:, :, None])
        np.testing.assert_array_equal(decode(path, 3), np.stack([pixels] * 3, axis=-1))
        assert probe(path) == ImageHeader(*pixels.shape, 1)

    @fast
    @given(GRAY, arrays(np.uint8, (256, 3)))
    def test_palette_round_trip(self, write, indices, palette):
        image = Image.fromarray(indices)
        image.putpalette(palette.tobytes())
        path = write(encoded(image, "PNG"))
        np.testing.assert_array_equal(decode(path, 3), palette[indices])
        assert probe(path) == ImageHeader(*indices.shape, 3)

    def test_webp_round_trip(self, write):
        pixels = random_image(5, 7, 3)
        path = write(encoded(pixels, "WEBP", lossless=True), "image.webp")
        np.testing.assert_array_equal(decode(path, 3), pixels)
        assert probe(path) == ImageHeader(5, 7, 3)

    def test_jpeg_is_what_the_reference_reads(self, write):
        path = write(encoded(random_image(20, 30, 3), "JPEG"), "image.jpg")
        np.testing.assert_array_equal(decode(path, 3), np.array(Image.open(path).convert("RGB")))

    def test_cmyk(self, write):
        image = Image.fromarray(random_image(8, 8, 3)).convert("CMYK")
        path = write(encoded(image, "JPEG"), "image.jpg")
        np.testing.assert_array_equal(decode(path, 3), np.array(Image.open(path).convert("RGB")))
        assert probe(path).channels == 3

    def test_black_and_white(self, write):
        pixels = random_image(5, 7) > 127
        path = write(encoded(Image.fromarray(pixels), "PNG"))
        np.testing.assert_array_equal(decode(path, 1)[:, :, 0], pixels * 255)
        assert probe(path).channels == 1

    def test_the_suffix_does_not_matter(self, write):
        pixels = random_image(5, 7, 3)
        np.testing.assert_array_equal(decode(write(encoded(pixels, "BMP"), "a.jpg"), 3), pixels)

    def test_a_colour_file_of_equal_channels_is_gray(self, write):
        gray = random_image(5, 7)
        path = write(encoded(np.stack([gray] * 3, axis=-1), "PNG"))
        np.testing.assert_array_equal(decode(path, 1), gray[:, :, None])

    @pytest.mark.parametrize("channel", [0, 1, 2])
    def test_a_colour_image_is_not_made_gray(self, write, channel):
        pixels = np.full((5, 7, 3), 9, np.uint8)
        pixels[4, 6, channel] = 10
        with pytest.raises(InputError, match="is a colour image, the detector takes gray") as info:
            decode(write(encoded(pixels, "PNG")), 1)
        # A whole set of the wrong kind must not be skipped as if each file were damaged.
        assert not isinstance(info.value, UnreadableImageError)

    def test_exif_orientation_is_ignored(self, write):
        exif = Image.Exif()
        exif[0x0112] = 6
        path = write(encoded(random_image(8, 16, 3), "JPEG", exif=exif), "image.jpg")
        assert decode(path, 3).shape == (8, 16, 3)
        assert probe(path) == ImageHeader(8, 16, 3)

    def test_only_the_first_frame_is_read(self, write):
        first, second = random_image(5, 7), random_image(5, 7, seed=1)
        more = {"save_all": True, "append_images": [Image.fromarray(second)]}
        path = write(encoded(first, "TIFF", **more))
        np.testing.assert_array_equal(decode(path, 1)[:, :, 0], first)


class TestTransparency:
    @pytest.mark.parametrize(("channels", "mode"), [(2, "LA"), (4, "RGBA")])
    def test_of_an_alpha_channel(self, write, channels, mode):
        pixels = random_image(5, 7, channels)
        pixels[..., -1] = 255
        opaque = write(encoded(Image.fromarray(pixels, mode), "PNG"), "opaque.png")
        wanted = pixels[..., :-1] if mode == "RGBA" else pixels[..., [0, 0, 0]]
        np.testing.assert_array_equal(decode(opaque, 3), wanted)
        pixels[4, 6, -1] = 254
        path = write(encoded(Image.fromarray(pixels, mode), "PNG"))
        with pytest.raises(UnreadableImageError, match="has transparency"):
            decode(path, 3)

    @pytest.mark.parametrize("value", [b"\xff\x80", 1])
    def test_of_a_palette(self, write, value):
        image = Image.fromarray(np.array([[0, 1], [0, 0]], np.uint8))
        image.putpalette([1, 2, 3, 4, 5, 6])
        with pytest.raises(UnreadableImageError, match="has transparency"):
            decode(write(encoded(image, "PNG", transparency=value)), 3)
        image.putdata([0, 0, 0, 0])
        assert decode(write(encoded(image, "PNG", transparency=value)), 3).max() == 3

    @pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
    def test_of_one_colour(self, write, shape):
        pixels = np.full(shape, 9, np.uint8)
        key = 9 if len(shape) == 2 else (9, 9, 9)
        with pytest.raises(UnreadableImageError, match="has transparency"):
            decode(write(encoded(pixels, "PNG", transparency=key)), 3)
        other = 8 if len(shape) == 2 else (9, 9, 8)
        assert (decode(write(encoded(pixels, "PNG", transparency=other)), 3) == 9).all()

    def test_of_black_and_white(self, write):
        image = Image.fromarray(np.eye(4, dtype=bool))
        with pytest.raises(UnreadableImageError, match="has transparency"):
            decode(write(encoded(image, "PNG", transparency=0)), 1)


DEEP_FILES = (
    ("int32 TIFF", lambda: encoded(random_image(4, 4).astype(np.int32), "TIFF")),
    # Pillow opens these as 8 bit images, without a word.
    ("RGB PNG", lambda: png(2, 2, 16, 2, (b"\0" + bytes(12)) * 2)),
    ("RGBA PNG", lambda: png(2, 2, 16, 6, (b"\0" + b"\xff" * 16) * 2)),
    ("gray and alpha PNG", lambda: png(2, 2, 16, 4, (b"\0" + b"\xff" * 8) * 2)),
    ("RGB TIFF", lambda: rgb_tiff("<", 16)),
    ("big-endian RGB TIFF", lambda: rgb_tiff(">", 16)),
)


class TestDeepImages:
    @pytest.mark.parametrize("make", [m for _, m in DEEP_FILES], ids=[n for n, _ in DEEP_FILES])
    @pytest.mark.parametrize("read", [probe, lambda path: decode(path, 3)], ids=["probe", "decode"])
    def test_are_refused_not_cut(self, write, make, read):
        path = write(make())
        Image.open(path).load()  # it is a file that Pillow reads
        with pytest.raises(UnreadableImageError, match=r"only of unsigned gray .* cut to 8 bits"):
            read(path)

    def test_floating_point_numbers_are_called_so(self, write):
        path = write(encoded(random_image(4, 4).astype(np.float32), "TIFF"))
        with pytest.raises(
            UnreadableImageError, match=r"floating-point .* 8 or 16 bits a channel$"
        ):
            probe(path)

    def test_32_bits_a_channel_are_named(self, write):
        path = write(encoded(random_image(4, 4).astype(np.int32), "TIFF"))
        with pytest.raises(UnreadableImageError, match="has 32 bits a channel"):
            probe(path)

    def test_what_pillow_cannot_open_tells_which_bits_can_be_read(self, write):
        with pytest.raises(UnreadableImageError, match="TIFF, WEBP of 8 bits a channel can be"):
            probe(write(rgb_tiff("<", 32)))

    def test_the_same_files_with_8_bits_is_read(self, write):
        path = write(png(2, 2, 8, 2, (b"\0" + bytes(range(6))) * 2))
        assert decode(path, 3)[0].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert not decode(write(rgb_tiff(">", 8)), 3).any()

    @pytest.mark.parametrize("bits", [2, 4])
    def test_fewer_bits_are_scaled_up(self, write, bits):
        path = write(png(4, 1, bits, 0, b"\0\xff\xff"))
        assert (decode(path, 1) == 255).all()


class TestWarnings:
    def test_do_not_leak(self, write, recwarn):
        # An EXIF block that ends early: Pillow warns of it, the pixels are whole.
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\0\0\0\xff\0\0\0"
        content = bytearray(JPEG)
        content[2:2] = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        path = write(content, "image.jpg")
        assert decode(path, 3).shape == (40, 50, 3)
        assert not recwarn.list


def test_importing_loads_no_pillow():
    code = (
        "import sys, numpy.random; before = set(sys.modules); import vadexport.images\n"
        "import vadexport.images.colouring, vadexport.images.generated\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - sys.stdlib_module_names - {'numpy'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["vadexport"]
