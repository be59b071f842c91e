import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from PIL import ImageFile as PillowFile

from vadexport.contract import ImageInput
from vadexport.errors import InputError
from vadexport.images import headers
from vadexport.images.decoding import common_input, decode, load_images, probe
from vadexport.images.headers import ImageHeader, UnreadableImageError
from vadexport.images.listing import ImageFile, list_images

fast = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

SIDES = st.integers(1, 9)
GRAY = arrays(np.uint8, st.tuples(SIDES, SIDES))
RGB = arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3)))


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(array, form, **options):
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width, height, bits, colour_type, data):
    """A PNG file of a kind that Pillow does not write."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return signature + content


def rgb_tiff(order, bits):
    """A black TIFF file of 2x2 RGB pixels, which Pillow writes only with 8 bits a channel."""
    after = 8 + 2 + 12 * 9 + 4
    short = {256: 2, 257: 2, 259: 1, 262: 2, 277: 3, 278: 2, 279: 12 * bits // 8}
    entries = {tag: struct.pack(order + "HHIHH", tag, 3, 1, v, 0) for tag, v in short.items()}
    entries[258] = struct.pack(order + "HHII", 258, 3, 3, after)
    entries[273] = struct.pack(order + "HHII", 273, 4, 1, after + 6)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    tags = b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return head + tags + struct.pack(order + "3H", bits, bits, bits) + bytes(12 * bits // 8)


@pytest.fixture
def write(tmp_path):
    def write(content, name="image.png"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


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


PNG = encoded(random_image(40, 50, 3), "PNG")
JPEG = encoded(random_image(40, 50, 3), "JPEG")
FILES = {
    "PNG": PNG,
    "JPEG": JPEG,
    "progressive JPEG": encoded(random_image(40, 50, 3), "JPEG", progressive=True),
    "BMP": encoded(random_image(20, 20, 3), "BMP"),
    "TIFF": encoded(random_image(20, 20, 3), "TIFF"),
    "LZW TIFF": encoded(random_image(20, 20, 3), "TIFF", compression="tiff_lzw"),
    "WEBP": encoded(random_image(20, 20, 3), "WEBP"),
    "palette PNG": encoded(
        Image.fromarray(random_image(40, 50, 3)).convert("P"), "PNG", transparency=b"\xff"
    ),
}


class TestDamage:
    @settings(fast, max_examples=300)
    @given(st.sampled_from(sorted(FILES)), st.floats(0, 1))
    @example("PNG", 1.0)
    @example("PNG", 0.0)
    @example("JPEG", 1.0)
    def test_a_cut_file_is_refused_or_whole(self, write, kind, share):
        content = FILES[kind]
        whole = decode(write(content, "whole"), 3)
        cut = write(content[: round(share * len(content))], "cut")
        try:
            image = decode(cut, 3)
        except UnreadableImageError as error:
            message = str(error)
        else:
            np.testing.assert_array_equal(image, whole)
            return
        assert message.startswith(f"{cut} is ")
        assert "\n" not in message

    @pytest.mark.parametrize("kind", sorted(FILES))
    def test_a_file_cut_in_its_data_is_called_truncated_or_damaged(self, write, kind):
        content = FILES[kind]
        path = write(content[: len(content) * 2 // 3])
        with pytest.raises(UnreadableImageError, match=r"truncated or damaged|damaged in its"):
            decode(path, 3)

    def test_a_cut_jpeg_is_truncated_though_its_header_is_whole(self, write):
        path = write(JPEG[: len(JPEG) * 2 // 3], "cut.jpg")
        assert probe(path) == ImageHeader(40, 50, 3)
        with pytest.raises(UnreadableImageError, match=r"cut\.jpg is truncated or damaged: image"):
            decode(path, 3)

    @settings(fast, max_examples=200)
    @given(
        st.sampled_from(sorted(FILES)),
        st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1),
    )
    def test_changed_bytes_never_escape_as_another_error(self, write, kind, changes):
        content = bytearray(FILES[kind])
        for share, value in changes:
            content[int(share**3 * len(content))] = value  # mostly in the header
        path = write(content)
        try:
            image = decode(path, 3)
        except UnreadableImageError:
            return
        assert image.ndim == 3

    def test_a_changed_bit_in_a_png_is_noticed(self, write):
        content = bytearray(PNG)
        content[len(content) // 2] ^= 1
        with pytest.raises(UnreadableImageError, match="is truncated or damaged"):
            decode(write(content), 3)

    @pytest.mark.parametrize("content", [b"text", b"\0" * 500, b"GIF89a", b"%!PS-Adobe-3.0"])
    def test_no_image(self, write, content):
        with pytest.raises(UnreadableImageError, match=r"image\.png is not an image"):
            probe(write(content))

    def test_formats_that_are_not_listed_reach_no_decoder(self, write):
        path = write(encoded(random_image(4, 4), "GIF"))
        with pytest.raises(UnreadableImageError, match="PNG, JPEG, BMP, TIFF, WEBP of 8"):
            decode(path, 3)

    def test_empty(self, write):
        with pytest.raises(UnreadableImageError, match=r"image\.png is empty"):
            decode(write(b""), 3)

    def test_errors_of_another_kind_name_the_file(self, write, monkeypatch):
        def fail(*_args, **_options):
            raise ZeroDivisionError

        path = write(PNG)
        monkeypatch.setattr(Image.Image, "convert", fail)
        with pytest.raises(UnreadableImageError, match=r"image\.png .*: ZeroDivisionError"):
            decode(path, 3)

    def test_running_out_of_memory_is_not_the_files_fault(self, write, monkeypatch):
        def fail(*_args, **_options):
            raise MemoryError

        path = write(PNG)
        monkeypatch.setattr(Image.Image, "convert", fail)
        with pytest.raises(MemoryError):
            decode(path, 3)

    def test_pillow_is_never_told_to_load_truncated_images(self, write):
        decode(write(PNG), 3)
        assert PillowFile.LOAD_TRUNCATED_IMAGES is False


class TestFileSystem:
    def test_missing(self, tmp_path):
        with pytest.raises(UnreadableImageError, match=r"none\.png is not a file"):
            probe(tmp_path / "none.png")

    def test_a_link_that_leads_nowhere(self, tmp_path):
        (tmp_path / "a.png").symlink_to("none.png")
        with pytest.raises(UnreadableImageError, match=r"a\.png is not a file, or a link"):
            probe(list_images(tmp_path)[0].path)

    @pytest.mark.timeout(20)
    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes there")
    def test_a_named_pipe_is_not_opened(self, tmp_path):
        os.mkfifo(tmp_path / "a.png")
        with pytest.raises(UnreadableImageError, match="is not a file"):
            probe(tmp_path / "a.png")

    def test_no_permission(self, write, monkeypatch):
        # Tests may run as root, whom no file system refuses.
        def refuse(path, **_options):
            raise PermissionError(13, "Permission denied", str(path))

        path = write(PNG)
        monkeypatch.setattr(Image, "open", refuse)
        with pytest.raises(UnreadableImageError, match=r"image\.png cannot be read: Permission"):
            probe(path)

    def test_files_are_closed(self, write):
        # The tests fail on a ResourceWarning; Windows would refuse to remove the file.
        path = write(FILES["TIFF"])
        decode(path, 3)
        probe(path)
        open_files = Path("/proc/self/fd")
        if open_files.exists():
            assert path not in [link.resolve() for link in open_files.iterdir()]


class TestBombs:
    @pytest.mark.parametrize(
        ("width", "height"),
        [
            (11_586, 11_585),  # just too many pixels in all, of which Pillow warns
            (16_384, 8_193),
            (16_000, 16_000),  # Pillow refuses
            (16_384, 16_384),
            (2**31 - 1, 2**31 - 1),
            (16_385, 1),  # Pillow does not mind
            (1, 16_385),
        ],
    )
    @pytest.mark.parametrize("read", [probe, lambda path: decode(path, 1)], ids=["probe", "decode"])
    def test_are_refused(self, write, width, height, read):
        path = write(png(width, height, 1, 0, bytes(1000)))
        with pytest.raises(UnreadableImageError, match=r"image\.png is too large") as info:
            read(path)
        assert str(info.value).endswith("at most 16384 pixels a side and 134217728 in all")
        assert "\n" not in str(info.value)

    @pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (16_384, 8_192)])
    def test_the_largest_images_are_none_though_pillow_warns(self, write, width, height):
        path = write(png(width, height, 1, 0, bytes(1000)))
        assert probe(path) == ImageHeader(height, width, 1)

    def test_an_image_beyond_pillows_limit_is_read(self, write):
        data = bytes(10_000 * (1 + 9_000 // 8))
        assert decode(write(png(9_000, 10_000, 1, 0, data)), 1).shape == (10_000, 9_000, 1)

    def test_the_longest_side_is_read(self, write):
        path = write(png(16_384, 1, 1, 0, bytes(1 + 16_384 // 8)))
        assert decode(path, 1).shape == (1, 16_384, 1)

    def test_the_check_holds_where_pillows_is_switched_off(self, write, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with pytest.raises(
            UnreadableImageError, match=r"16385×16385 pixels .* at most 16384 pixels a"
        ):
            probe(write(png(16_385, 16_385, 1, 0, b"")))

    def test_huge_files(self, write, monkeypatch):
        monkeypatch.setattr(headers, "_MAX_BYTES", 1000)
        with pytest.raises(UnreadableImageError, match=r"is too large: .* bytes, at most 1000"):
            probe(write(PNG))


class TestWarnings:
    def test_do_not_leak(self, write, recwarn):
        # An EXIF block that ends early: Pillow warns of it, the pixels are whole.
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\0\0\0\xff\0\0\0"
        content = bytearray(JPEG)
        content[2:2] = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        path = write(content, "image.jpg")
        assert decode(path, 3).shape == (40, 50, 3)
        assert not recwarn.list


@pytest.fixture
def files(tmp_path):
    """Writes PNG files and lists them: `files(name=array_or_bytes)`."""

    def files(**contents):
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else encoded(content, "PNG")
            (tmp_path / f"{name}.png").write_bytes(data)
        return list_images(tmp_path)

    return files


class TestCommonInput:
    def test_all_gray(self, files):
        found = files(a=random_image(5, 7), b=random_image(5, 7))
        assert common_input(found) == ImageHeader(5, 7, 1)

    def test_one_in_colour(self, files):
        found = files(a=random_image(5, 7), b=random_image(5, 7, 3), c=random_image(5, 7))
        assert common_input(found) == ImageHeader(5, 7, 3)

    def test_different_sizes(self, files):
        found = files(
            a=random_image(5, 7),
            b=random_image(8, 9),
            c=random_image(6, 6),
            d=random_image(8, 9),
            e=random_image(8, 9),
            f=random_image(6, 6),
        )
        message = (
            r"3 of 8×9 pixels \(height×width\) \(like b\.png\) and "
            r"2 of 6×6 pixels \(height×width\) \(like c\.png\)"
        )
        with pytest.raises(InputError, match=message):
            common_input(found)

    def test_unreadable(self, files):
        found = files(a=b"text", b=random_image(5, 7))
        with pytest.raises(UnreadableImageError, match=r"a\.png .*--skip-unreadable leaves it out"):
            common_input(found)
        assert common_input(found, skip_unreadable=True) == ImageHeader(5, 7, 1)

    def test_none_readable(self, files):
        with pytest.raises(InputError, match="none of the 2 images can be read"):
            common_input(files(a=b"text", b=b""), skip_unreadable=True)

    def test_pixels_are_not_read(self, files):
        found = files(a=PNG[:100])
        assert common_input(found) == ImageHeader(40, 50, 3)


class TestLoadImages:
    INPUT = ImageInput(5, 7, 3)

    def test_in_order(self, files):
        found = files(a=random_image(5, 7, 3), b=random_image(5, 7, 3, seed=1))
        loaded = list(load_images(found, self.INPUT, skip_unreadable=False, on_skip=None))
        assert [file for file, _ in loaded] == found
        for file, image in loaded:
            np.testing.assert_array_equal(image, np.array(Image.open(file.path)))

    def test_one_at_a_time(self, files):
        found = files(a=random_image(5, 7, 3), b=b"text")
        loaded = load_images(found, self.INPUT)
        assert next(loaded)[0].name == "a.png"
        with pytest.raises(UnreadableImageError):
            next(loaded)

    def test_an_unreadable_image_ends_it_with_advice(self, files):
        found = files(a=b"text", b=random_image(5, 7, 3))
        with pytest.raises(UnreadableImageError, match=r"a\.png .*; --skip-unreadable leaves it o"):
            list(load_images(found, self.INPUT))

    def test_unreadable_images_can_be_skipped(self, files):
        whole = encoded(random_image(5, 7, 3), "PNG")
        found = files(a=whole[:-30], b=whole, c=b"text")
        skipped = []
        loaded = load_images(
            found,
            self.INPUT,
            skip_unreadable=True,
            on_skip=lambda file, reason: skipped.append((file.name, reason)),
        )
        assert [file.name for file, _ in loaded] == ["b.png"]
        assert [name for name, _ in skipped] == ["a.png", "c.png"]
        assert "a.png is truncated or damaged" in skipped[0][1]

    def test_all_skipped(self, files):
        with pytest.raises(InputError, match="none of the 1 images can be read"):
            list(load_images(files(a=b"text"), self.INPUT, skip_unreadable=True))

    @pytest.mark.parametrize("skip", [True, False])
    def test_a_wrong_size_is_never_skipped(self, files, skip):
        found = files(a=random_image(7, 5, 3))
        message = r"a\.png is 7×5 pixels .*, the detector takes 5×7 pixels"
        with pytest.raises(InputError, match=message):
            list(load_images(found, self.INPUT, skip_unreadable=skip))

    @pytest.mark.parametrize("skip", [True, False])
    def test_colour_for_a_gray_detector_is_never_skipped(self, files, skip):
        found = files(a=random_image(5, 7, 3))
        with pytest.raises(InputError, match="the detector takes gray"):
            list(load_images(found, ImageInput(5, 7, 1), skip_unreadable=skip))


def test_importing_loads_no_pillow():
    code = (
        "import sys, numpy.random; before = set(sys.modules); import vadexport.images\n"
        "import vadexport.images.colouring, vadexport.images.generated\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - sys.stdlib_module_names - {'numpy'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["vadexport"]


def test_a_label_travels_with_its_image(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(random_image(5, 7), "PNG"))
    file = ImageFile(path, "x/a.png", label=True)
    assert [loaded for loaded, _ in load_images([file], ImageInput(5, 7, 1))] == [file]
