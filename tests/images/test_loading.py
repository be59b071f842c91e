import numpy as np
import pytest
from PIL import Image

from tests.images.files import PNG, encoded, random_image
from vadexport.contract import ImageInput
from vadexport.errors import InputError
from vadexport.images.decoding import common_input, load_images
from vadexport.images.headers import ImageHeader, UnreadableImageError
from vadexport.images.listing import ImageFile


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


def test_a_label_travels_with_its_image(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(random_image(5, 7), "PNG"))
    file = ImageFile(path, "x/a.png", label=True)
    assert [loaded for loaded, _ in load_images([file], ImageInput(5, 7, 1))] == [file]
