import io
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate

from vadexport.errors import MissingPackageError
from vadexport.images import headers
from vadexport.images.decoding import decode, probe
from vadexport.images.headers import ImageHeader, UnreadableImageError
from vadexport.images.listing import list_images

fast = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SIDES = st.integers(1, 9)
UNCOMPRESSED = [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]


def random_pixels(height=5, width=7, stored=12, seed=0):
    return np.random.default_rng(seed).integers(0, 2**stored, (height, width)).astype(np.uint16)


@pytest.fixture
def write(tmp_path, dicom_bytes):
    """Writes a DICOM file of some pixels, or of bytes as they are."""

    def write(content, *args, **elements):
        if isinstance(content, np.ndarray):
            content = dicom_bytes(content, *args, **elements)
        path = tmp_path / "image.dcm"
        path.write_bytes(content)
        return path

    return write


class TestPixels:
    @fast
    @given(st.data(), st.integers(9, 16), st.sampled_from(UNCOMPRESSED))
    def test_of_9_to_16_bits_fill_16(self, write, data, stored, syntax):
        shape = data.draw(st.tuples(SIDES, SIDES))
        pixels = data.draw(arrays(np.uint16, shape, elements=st.integers(0, 2**stored - 1)))
        path = write(pixels, stored, syntax)
        image = decode(path, 1)
        assert image.dtype == np.uint16
        np.testing.assert_array_equal(image[:, :, 0], pixels << (16 - stored))
        assert probe(path) == ImageHeader(*pixels.shape, 1, "uint16")

    @fast
    @given(st.data(), st.integers(1, 8), st.sampled_from([np.uint8, np.uint16]))
    def test_of_up_to_8_bits_fill_8(self, write, data, stored, dtype):
        shape = data.draw(st.tuples(SIDES, SIDES))
        pixels = data.draw(arrays(dtype, shape, elements=st.integers(0, 2**stored - 1)))
        path = write(pixels, stored)
        image = decode(path, 1)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image[:, :, 0], pixels << (8 - stored))
        assert probe(path) == ImageHeader(*pixels.shape, 1, "uint8")

    @fast
    @given(st.data(), st.integers(2, 16))
    def test_signed_values_are_moved_up_in_order(self, write, data, stored):
        half = 2 ** (stored - 1)
        dtype = np.int8 if stored <= 8 else np.int16
        pixels = data.draw(arrays(dtype, (3, 4), elements=st.integers(-half, half - 1)))
        image = decode(write(pixels, stored), 1)
        shift = 8 * image.itemsize - stored
        np.testing.assert_array_equal(image[:, :, 0], (pixels.astype(int) + half) << shift)

    def test_monochrome1_is_inverted(self, write):
        pixels = np.array([[0, 1, 4095]], np.uint16)
        path = write(pixels, 12, PhotometricInterpretation="MONOCHROME1")
        assert decode(path, 1).ravel().tolist() == [4095 << 4, 4094 << 4, 0]

    def test_bits_above_those_stored_are_no_pixel(self, write):
        image = decode(write(np.array([[0xF001, 0x0FFF]], np.uint16), 12), 1)
        assert image.ravel().tolist() == [1 << 4, 4095 << 4]

    def test_rescaling_and_windows_are_not_applied(self, write):
        pixels = random_pixels()
        changes = {"RescaleSlope": 2, "RescaleIntercept": -7, "WindowCenter": 9, "WindowWidth": 5}
        image = decode(write(pixels, 12, **changes), 1)
        np.testing.assert_array_equal(image[:, :, 0], pixels << 4)

    def test_run_lengths(self, write, dicom_bytes):
        pixels = random_pixels()
        dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(pixels, 12)))
        dataset.compress(uid.RLELossless)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        np.testing.assert_array_equal(decode(write(buffer.getvalue()), 1)[:, :, 0], pixels << 4)

    def test_jpeg_2000_by_pillow(self, write):
        pixels = random_pixels(20, 30, 16)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG2000", no_jp2=True)
        data = encapsulate([buffer.getvalue()])
        path = write(pixels, syntax=uid.JPEG2000Lossless, PixelData=data)
        np.testing.assert_array_equal(decode(path, 1)[:, :, 0], pixels)

    def test_an_image_that_pillow_finds_larger_than_the_header(self, write):
        buffer = io.BytesIO()
        Image.fromarray(random_pixels(40, 30, 16)).save(buffer, "JPEG2000", no_jp2=True)
        data = encapsulate([buffer.getvalue()])
        path = write(random_pixels(20, 30, 16), syntax=uid.JPEG2000Lossless, PixelData=data)
        with pytest.raises(UnreadableImageError, match=r"image\.dcm is .*damaged"):
            decode(path, 1)

    def test_rgb_detectors_get_three_equal_channels(self, write):
        pixels = random_pixels(stored=8).astype(np.uint8)
        np.testing.assert_array_equal(decode(write(pixels), 3), np.stack([pixels] * 3, axis=-1))


def of_a_device(name):
    """A file that comes with pydicom."""
    return Path(get_testdata_file(name, download=False))


class TestFilesOfDevices:
    @pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
    def test_signed_values(self, name):
        values = pydicom.dcmread(of_a_device(name)).pixel_array
        assert values.dtype == np.int16
        image = decode(of_a_device(name), 1)
        np.testing.assert_array_equal(image[:, :, 0], values.astype(int) + 32768)

    @pytest.mark.parametrize("way", ["RLE", "bigendian", "implicit", "jp2klossless"])
    def test_each_way_of_writing_gives_the_same_pixels(self, way):
        found = decode(of_a_device(f"MR_small_{way}.dcm"), 1)
        np.testing.assert_array_equal(found, decode(of_a_device("MR_small.dcm"), 1))

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("MR_truncated.dcm", "8130 bytes of pixel data, not 8192"),
            ("MR_small_padded.dcm", "8320 bytes of pixel data, not 8192"),
            ("MR_small_jpeg_ls_lossless.dcm", "no decoder of it is installed"),
            ("JPGExtended.dcm", "as no decoder installed here reads it"),
            ("SC_rgb_rle.dcm", "is 'RGB': only gray"),
            ("examples_palette.dcm", "is 'PALETTE COLOR': only gray"),
            ("rtdose.dcm", "holds 15 frames"),
            ("rtdose_1frame.dcm", "has 32 bits allocated"),
            ("image_dfl.dcm", "is a deflated DICOM file"),
            ("test-SR.dcm", "holds no image, or is damaged: it lacks"),
            ("no_meta.dcm", "is not a DICOM file"),
        ],
    )
    def test_refused(self, name, words):
        with pytest.raises(UnreadableImageError, match=words) as info:
            decode(of_a_device(name), 1)
        assert "\n" not in str(info.value)


class TestRefused:
    @pytest.mark.parametrize(
        ("elements", "words"),
        [
            ({"NumberOfFrames": 3}, "holds 3 frames"),
            ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "is 'RGB': only gray"),
            ({"PhotometricInterpretation": "PALETTE COLOR"}, "is 'PALETTE COLOR': only gray"),
            ({"BitsAllocated": 32}, "has 32 bits allocated: DICOM images of 8 and 16 are read"),
            ({"BitsAllocated": 1}, "has 1 bits allocated"),
            ({"BitsStored": 17}, "stores 17 bits"),
            ({"BitsStored": 0}, "stores 0 bits"),
            ({"HighBit": 14}, "stores 12 bits up to number 14 of 16"),
            ({"PixelRepresentation": 2}, "whether its values are signed"),
            ({"Rows": 0}, "has no pixels"),
            ({"Rows": 16385}, "is too large: 16385×7 pixels"),
            ({"Rows": 16384, "Columns": 8193}, "is too large: 16384×8193 pixels"),
            ({"Rows": None}, "holds no image, or is damaged: it lacks Rows"),
            ({"BitsStored": None}, "holds no image, or is damaged: it lacks BitsStored"),
        ],
    )
    @pytest.mark.parametrize("read", [probe, lambda path: decode(path, 1)], ids=["probe", "decode"])
    def test_by_the_header(self, write, elements, words, read):
        with pytest.raises(UnreadableImageError, match=words) as info:
            read(write(random_pixels(), 12, **elements))
        assert "image.dcm" in str(info.value)
        assert "\n" not in str(info.value)

    @pytest.mark.parametrize(("rows", "length"), [(6, 84), (4, 56)])
    def test_pixels_that_do_not_fill_the_size_or_more(self, write, rows, length):
        path = write(random_pixels(), 12, Rows=rows)
        with pytest.raises(UnreadableImageError, match=f"70 bytes of pixel data, not {length}"):
            decode(path, 1)

    def test_no_pixels(self, write):
        path = write(random_pixels(), 12, PixelData=None)
        with pytest.raises(UnreadableImageError, match="has no pixel data"):
            decode(path, 1)

    @pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.MPEG2MPML])
    def test_compression_that_nothing_here_decodes(self, write, syntax):
        path = write(random_pixels(), 12, syntax, PixelData=encapsulate([b"1234"]))
        with pytest.raises(UnreadableImageError, match="no decoder of it is installed") as info:
            decode(path, 1)
        assert syntax.name in str(info.value)
        assert "\n" not in str(info.value)

    def test_text_of_the_file_cannot_begin_another_line(self, write, dicom_bytes):
        content = dicom_bytes(random_pixels(), 12)
        path = write(content.replace(b"MONOCHROME2 ", b"RGB\rdone\x1b[J "))
        with pytest.raises(UnreadableImageError, match="only gray") as info:
            probe(path)
        assert str(info.value).isprintable()

    def test_compressed_nonsense(self, write):
        path = write(random_pixels(), 12, uid.RLELossless, PixelData=encapsulate([b"1234" * 30]))
        with pytest.raises(UnreadableImageError, match=r"is damaged, or .*RLE Lossless") as info:
            decode(path, 1)
        assert "\n" not in str(info.value)

    @pytest.mark.parametrize("read", [probe, lambda path: decode(path, 1)], ids=["probe", "decode"])
    def test_a_deflated_file_is_not_inflated(self, write, read, monkeypatch):
        def fail(*_args, **_options):
            raise AssertionError

        path = write(np.zeros((900, 900), np.uint16), 12, uid.DeflatedExplicitVRLittleEndian)
        monkeypatch.setattr("zlib.decompress", fail)
        with pytest.raises(UnreadableImageError, match="is a deflated DICOM file"):
            read(path)

    def test_an_unknown_encoding(self, write, dicom_bytes):
        content = dicom_bytes(random_pixels(), 12)
        known, unknown = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"
        with pytest.raises(UnreadableImageError, match=r"is encoded as '1\.2\.840"):
            decode(write(content.replace(known, unknown)), 1)

    @pytest.mark.parametrize("content", [b"text", b"\0" * 500, b"\x89PNG\r\n\x1a\n" * 50])
    def test_no_dicom_file(self, write, content):
        with pytest.raises(UnreadableImageError, match="is not a DICOM file"):
            probe(write(content))

    def test_empty_missing_and_huge(self, write, tmp_path, monkeypatch):
        with pytest.raises(UnreadableImageError, match="is empty"):
            probe(write(b""))
        with pytest.raises(UnreadableImageError, match="is not a file"):
            probe(tmp_path / "none.dcm")
        monkeypatch.setattr(headers, "_MAX_BYTES", 300)
        with pytest.raises(UnreadableImageError, match="bytes, at most 300"):
            probe(write(random_pixels()))

    def test_without_pydicom(self, write, monkeypatch):
        path = write(random_pixels())
        monkeypatch.setitem(sys.modules, "pydicom", None)
        with pytest.raises(MissingPackageError, match=r"pydicom is not .*'vadexport\[dicom\]'"):
            probe(path)


class TestDamage:
    @settings(fast, max_examples=200)
    @given(st.floats(0, 1), st.sampled_from(UNCOMPRESSED))
    def test_a_cut_file_is_refused_or_whole(self, write, dicom_bytes, share, syntax):
        pixels = random_pixels(20, 21)
        content = dicom_bytes(pixels, 12, syntax)
        path = write(content[: round(share * len(content))])
        try:
            image = decode(path, 1)
        except UnreadableImageError as error:
            message = str(error)
        else:
            np.testing.assert_array_equal(image[:, :, 0], pixels << 4)
            return
        assert message.startswith(f"{path} ")
        assert "\n" not in message

    @settings(fast, max_examples=300)
    @given(
        st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1),
        st.sampled_from(UNCOMPRESSED),
    )
    def test_changed_bytes_never_escape_as_another_error(self, write, dicom_bytes, changes, syntax):
        content = bytearray(dicom_bytes(random_pixels(), 12, syntax))
        for share, value in changes:
            content[128 + int(share * (len(content) - 128))] = value
        path = write(bytes(content))
        try:
            image = decode(path, 1)
        except UnreadableImageError as error:
            message = str(error)
        else:
            assert image.ndim == 3
            return
        assert "\n" not in message

    def test_a_length_beyond_the_file_takes_no_memory(self, write, dicom_bytes, monkeypatch):
        content = dicom_bytes(random_pixels(), 12)
        head = content.rindex(b"OW") + 4
        path = write(content[:head] + b"\xf0\xff\xff\xff" + content[head + 4 :])
        asked = []
        read = io.BufferedReader.read

        class Watched(io.BufferedReader):
            def read(self, count=-1):
                asked.append(count)
                return read(self, count)

        monkeypatch.setattr(type(path), "open", lambda self, _mode: Watched(io.FileIO(self)))
        # What is there is all of the image; only the length was wrong.
        assert decode(path, 1).shape == (5, 7, 1)
        assert max(asked) <= len(content)


def test_listed_by_suffix_in_any_case(tmp_path):
    for name in ("a.dcm", "b.DICOM", "c.dcmx"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in list_images(tmp_path)] == ["a.dcm", "b.DICOM"]
