import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL import ImageFile as PillowFile

from tests.images.files import JPEG, PNG, encoded, png, random_image
from vadexport.images import headers
from vadexport.images.decoding import decode, probe
from vadexport.images.headers import ImageHeader, UnreadableImageError
from vadexport.images.listing import list_images

fast = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


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
