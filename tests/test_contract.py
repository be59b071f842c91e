import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.contract import ImageInput, join_outputs
from vadexport.errors import InputError

inputs = st.builds(
    ImageInput,
    height=st.integers(1, 16384),
    width=st.integers(1, 16384),
    channels=st.sampled_from([1, 3]),
    batch=st.none() | st.integers(1, 1024),
) | st.builds(
    ImageInput,
    height=st.integers(1, 16384),
    width=st.integers(1, 16384),
    channels=st.just(1),
    dtype=st.just("uint16"),
)


class TestBatches:
    @given(count=st.integers(1, 30), batch=st.none() | st.integers(1, 12))
    def test_joined_outputs_are_those_of_each_image(self, count, batch):
        images = np.arange(count * 2, dtype=np.uint8).reshape(count, 1, 2, 1)
        calls = list(ImageInput(1, 2, 1, batch).batches(images))
        assert all(len(call) == (batch or count) for call, _ in calls)
        parts = [({"raw_score": call[:, 0, 0, 0], "map": call}, kept) for call, kept in calls]
        joined = join_outputs(parts)
        np.testing.assert_array_equal(joined["raw_score"], images[:, 0, 0, 0])
        np.testing.assert_array_equal(joined["map"], images)

    @given(count=st.integers(1, 30), batch=st.integers(1, 12))
    def test_a_static_batch_makes_no_more_calls_than_needed(self, count, batch):
        images = np.zeros((count, 1, 1, 1), np.uint8)
        calls = list(ImageInput(1, 1, 1, batch).batches(images))
        assert len(calls) == -(-count // batch)
        assert [kept for _, kept in calls[:-1]] == [batch] * (len(calls) - 1)

    def test_what_is_filled_up_repeats_the_last_image(self):
        images = np.array([1, 2, 3], np.uint8).reshape(3, 1, 1, 1)
        *_, (last, kept) = ImageInput(1, 1, 1, 5).batches(images)
        assert kept == 3
        assert last.ravel().tolist() == [1, 2, 3, 3, 3]

    def test_a_dynamic_batch_is_one_call(self):
        images = np.zeros((7, 1, 1, 1), np.uint8)
        ((call, kept),) = ImageInput(1, 1, 1, None).batches(images)
        assert call is images
        assert kept == 7


class TestCheck:
    rgb = ImageInput(4, 6, 3)
    gray = ImageInput(4, 6, 1)

    @pytest.mark.parametrize(
        ("image_input", "shape"),
        [
            (rgb, (4, 6, 3)),
            (rgb, (1, 4, 6, 3)),
            (rgb, (5, 4, 6, 3)),
            (gray, (4, 6)),
            (gray, (4, 6, 1)),
            (gray, (2, 4, 6, 1)),
        ],
    )
    def test_missing_axes_are_added(self, image_input, shape):
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        checked = image_input.check(image)
        assert checked.shape[1:] == (4, 6, image_input.channels)
        np.testing.assert_array_equal(checked.ravel(), image.ravel())

    @pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.float32, np.float64, bool, object])
    def test_another_dtype_is_refused_by_name(self, dtype):
        with pytest.raises(InputError, match=f"uint8, not {np.dtype(dtype)}"):
            self.rgb.check(np.zeros((4, 6, 3), dtype))

    def test_another_bit_depth_is_called_so(self):
        deep = ImageInput(4, 6, 1, dtype="uint16")
        with pytest.raises(InputError, match=r"are uint16, not uint8 \(wrong bit depth\)"):
            deep.check(np.zeros((4, 6), np.uint8))
        with pytest.raises(InputError, match=r"are uint8, not uint16 \(wrong bit depth\)"):
            self.gray.check(np.zeros((4, 6), np.uint16))
        with pytest.raises(InputError, match=r"are uint16, not float32$"):
            deep.check(np.zeros((4, 6), np.float32))

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_16_bits_in_any_byte_order(self, order):
        image = np.arange(24, dtype=f"{order}u2").reshape(4, 6) * 256
        checked = ImageInput(4, 6, 1, dtype="uint16").check(image)
        assert checked.dtype.isnative
        assert checked.shape == (1, 4, 6, 1)
        np.testing.assert_array_equal(checked[0, :, :, 0], image)

    @pytest.mark.parametrize(
        ("shape", "words"),
        [
            ((6, 4, 3), "6×4×3"),
            ((3, 4, 6), "3×4×6"),
            ((4, 6, 4), "4×6×4"),
            ((4, 6), "4×6×1"),
            ((1, 3, 4, 6), "3×4×6"),
            ((1, 1, 4, 6, 3), "1×4×6×3"),
        ],
    )
    def test_another_size_is_refused_with_both_sizes(self, shape, words):
        with pytest.raises(InputError, match=f"image is {words}, the detector takes 4×6×3"):
            self.rgb.check(np.zeros(shape, np.uint8))

    @pytest.mark.parametrize("shape", [(), (24,)])
    def test_what_is_no_image_at_all_is_refused(self, shape):
        with pytest.raises(InputError, match="the detector takes 4×6×3"):
            self.rgb.check(np.zeros(shape, np.uint8))


class TestImageInput:
    @given(image_input=inputs)
    @settings(max_examples=50)
    def test_json_round_trip(self, image_input):
        assert ImageInput.from_json(json.loads(json.dumps(image_input.to_json()))) == image_input

    @pytest.mark.parametrize(
        ("sizes", "words"),
        [
            ((0, 5, 3, 1), "image size 0x5"),
            ((5, -1, 3, 1), "image size 5x-1"),
            ((5, 16385, 3, 1), "outside 1 … 16384"),
            ((5, 5, 2, 1), "1 or 3 channels, not 2"),
            ((5, 5, 4, 1), "not 4"),
            ((5, 5, 3, 0), "batch size 0"),
            ((5, 5, 3, 1025), "outside 1 … 1024"),
        ],
    )
    def test_sizes_out_of_range_are_refused(self, sizes, words):
        with pytest.raises(InputError, match=words):
            ImageInput(*sizes)

    def test_colour_has_8_bits(self):
        with pytest.raises(InputError, match="uint16 images are gray"):
            ImageInput(5, 5, 3, dtype="uint16")

    @pytest.mark.parametrize("dtype", ["float32", "int8", "", 8, None, ["uint8"], {}])
    def test_another_dtype_is_refused(self, dtype):
        with pytest.raises(InputError, match="images are uint8 or uint16, not"):
            ImageInput.from_json({**ImageInput(4, 6, 1).to_json(), "dtype": dtype})

    @pytest.mark.parametrize("key", ["height", "width", "channels", "batch", "dtype"])
    def test_a_missing_field_is_named(self, key):
        value = ImageInput(4, 6, 3).to_json()
        del value[key]
        with pytest.raises(InputError, match=key):
            ImageInput.from_json(value)

    @pytest.mark.parametrize("wrong", ["4", 4.0, True, [4]])
    @pytest.mark.parametrize("key", ["height", "width", "channels", "batch"])
    def test_a_field_of_another_type_is_refused(self, key, wrong):
        value = {**ImageInput(4, 6, 3).to_json(), key: wrong}
        with pytest.raises(InputError, match="whole numbers"):
            ImageInput.from_json(value)

    @pytest.mark.parametrize("value", [None, 5, "image", [], [1, 2]])
    def test_something_else_is_refused(self, value):
        with pytest.raises(InputError, match="the image input lacks"):
            ImageInput.from_json(value)
