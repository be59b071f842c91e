"""Gray images of more than 8 bits, and sets of images of several depths."""

import io
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from vadexport.contract import ImageInput
from vadexport.errors import InputError
from vadexport.images.decoding import common_input, decode, load_images, probe
from vadexport.images.headers import ImageHeader, UnreadableImageError
from vadexport.images.listing import list_images
from vadexport.images.masks import load_mask

fast = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SIDES = st.integers(1, 9)
FORMS = {
    "PNG": {},
    "TIFF": {},
    "LZW TIFF": {"compression": "tiff_lzw"},
    "Deflate TIFF": {"compression": "tiff_adobe_deflate"},
}


def random_pixels(height=5, width=7, seed=0):
    return np.random.default_rng(seed).integers(0, 65536, (height, width)).astype(np.uint16)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(buffer, form.split()[-1], **FORMS.get(form, {}), **options)
    return buffer.getvalue()


def gray_tiff(order, bits, photometric, width, data):
    """An uncompressed TIFF file of one row, of a kind that Pillow does not write."""
    fields = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric}
    fields |= {273: 8 + 2 + 12 * 9 + 4, 277: 1, 278: 1, 279: len(data)}
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(fields))
    tags = [struct.pack(order + "HHIHH", tag, 3, 1, fields[tag], 0) for tag in sorted(fields)]
    return head + b"".join(tags) + bytes(4) + data


@pytest.fixture
def write(tmp_path):
    def write(content, name="image.png"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


class TestDecode:
    @fast
    @given(arrays(np.uint16, st.tuples(SIDES, SIDES)), st.sampled_from(sorted(FORMS)))
    def test_round_trip(self, write, pixels, form):
        path = write(encoded(pixels, form))
        image = decode(path, 1)
        assert image.dtype == np.uint16
        assert image.dtype.isnative
        np.testing.assert_array_equal(image, pixels[:, :, None])
        assert probe(path) == ImageHeader(*pixels.shape, 1, "uint16")

    def test_big_endian_tiff(self, write):
        pixels = random_pixels()
        image = Image.frombytes("I;16B", (7, 5), pixels.astype(">u2").tobytes())
        path = write(encoded(image, "TIFF"))
        assert path.read_bytes().startswith(b"MM")
        assert decode(path, 1).dtype.isnative
        np.testing.assert_array_equal(decode(path, 1)[:, :, 0], pixels)

    def test_tiff_of_12_bits_is_shifted_up(self, write):
        # Two values in three bytes: 0x123, 0xfff.
        path = write(gray_tiff("<", 12, 1, 2, b"\x12\x3f\xff"))
        assert decode(path, 1).ravel().tolist() == [0x1230, 0xFFF0]
        assert probe(path).dtype == "uint16"

    def test_tiff_whose_zero_is_white_is_inverted_as_of_8_bits(self, write):
        values = np.array([0, 1, 65535], "<u2")
        path = write(gray_tiff("<", 16, 0, 3, values.tobytes()))
        assert decode(path, 1).ravel().tolist() == [65535, 65534, 0]
        path = write(gray_tiff("<", 8, 0, 3, b"\x00\x01\xff"))
        assert decode(path, 1).ravel().tolist() == [255, 254, 0]

    def test_a_transparent_value(self, write):
        pixels = random_pixels()
        pixels[pixels == 9] = 8
        path = write(encoded(pixels, transparency=9))
        np.testing.assert_array_equal(decode(path, 1)[:, :, 0], pixels)
        pixels[4, 6] = 9
        with pytest.raises(UnreadableImageError, match="has transparency"):
            decode(write(encoded(pixels, transparency=9)), 1)

    @pytest.mark.parametrize("form", sorted(FORMS))
    def test_a_cut_file_is_refused(self, write, form):
        content = encoded(random_pixels(40, 50), form)
        with pytest.raises(UnreadableImageError, match=r"truncated or damaged|damaged in its"):
            decode(write(content[: len(content) * 2 // 3]), 1)

    def test_signed_numbers_are_refused(self, write):
        content = bytearray(gray_tiff("<", 16, 1, 1, b"\0\0"))
        # The tag of rows a strip, which may be left out, becomes that of the sample format: signed.
        at = content.index(struct.pack("<HHI", 278, 3, 1))
        entry = content[at : at + 12]
        del content[at : at + 12]
        entry[:2], entry[8:10] = struct.pack("<H", 339), struct.pack("<H", 2)
        at = content.index(struct.pack("<HHI", 279, 3, 1)) + 12
        content[at:at] = entry
        with pytest.raises(
            UnreadableImageError, match="more than 8 are read only of unsigned gray"
        ):
            probe(write(bytes(content)))

    def test_masks_may_have_16_bits(self, write):
        mask = np.array([[0, 1], [255, 65535]], np.uint16)
        assert load_mask(write(encoded(mask))).tolist() == [[False, True], [True, True]]


@pytest.fixture
def mixed(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(random_pixels()))
    (tmp_path / "b.png").write_bytes(encoded(random_pixels().astype(np.uint8)))
    return list_images(tmp_path)


class TestSets:
    deep, shallow = ImageInput(5, 7, 1, dtype="uint16"), ImageInput(5, 7, 1)

    def test_of_one_depth(self, mixed):
        assert common_input(mixed[:1]) == ImageHeader(5, 7, 1, "uint16")
        assert common_input(mixed[1:]) == ImageHeader(5, 7, 1, "uint8")

    def test_of_two_depths_name_both(self, mixed):
        with pytest.raises(InputError, match=r"b\.png has 8 bits a channel, a\.png has 16"):
            common_input(mixed)

    def test_dicom_and_png_are_one_set(self, tmp_path, dicom_bytes):
        pixels = random_pixels()
        (tmp_path / "a.png").write_bytes(encoded(pixels))
        (tmp_path / "b.dcm").write_bytes(dicom_bytes(pixels))
        files = list_images(tmp_path)
        assert common_input(files) == ImageHeader(5, 7, 1, "uint16")
        (_, first), (_, second) = load_images(files, self.deep)
        np.testing.assert_array_equal(first, second)

    @pytest.mark.parametrize("skip", [False, True])
    def test_another_depth_than_the_detectors_is_never_skipped(self, mixed, skip):
        with pytest.raises(InputError, match=r"b\.png has 8 .* takes 16: wrong bit depth") as info:
            list(load_images(mixed[1:], self.deep, skip_unreadable=skip))
        assert not isinstance(info.value, UnreadableImageError)
        with pytest.raises(InputError, match=r"a\.png has 16 .* takes 8: wrong bit depth"):
            list(load_images(mixed[:1], self.shallow, skip_unreadable=skip))
        with pytest.raises(InputError, match=r"a\.png has 16 .* takes 8: wrong bit depth"):
            list(load_images(mixed[:1], ImageInput(5, 7, 3), skip_unreadable=skip))
