import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from vadexport.contract import ImageInput
from vadexport.detectors.preprocessing import Preprocessing, PreprocessingConfig
from vadexport.detectors.steps import GraphPreprocessing, Resize, in_unit_range
from vadexport.detectors.steps import resize_matrix as step_matrix

EPS = float(np.finfo(np.float32).eps)
sides = st.integers(1, 130)
# PyTorch 2.13's antialiased resize of a contiguous tensor to width 1 repeats the first row.
wide = st.integers(2, 130)


def resize_matrix(source, target):
    return step_matrix(source, target, Resize((target, source)))


class TestResizeMatrix:
    @given(
        height=sides,
        to_height=sides,
        width=sides,
        to_width=wide,
        seed=st.integers(0, 99),
    )
    @example(height=300, to_height=64, width=7, to_width=200, seed=0)
    @settings(deadline=None)
    def test_products_are_pytorchs_antialiased_resize(
        self, height, to_height, width, to_width, seed
    ):
        image = np.random.default_rng(seed).random((1, 2, height, width), dtype=np.float32)
        expected = functional.interpolate(
            torch.from_numpy(image),
            (to_height, to_width),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        rows = resize_matrix(height, to_height).double()
        columns = resize_matrix(width, to_width).double()
        found = rows @ torch.from_numpy(image).double() @ columns.T
        # Values up to one; the resize rounds to float32 after each axis, its sums as they grow.
        assert float((found - expected).abs().max()) <= 4 * EPS

    @pytest.mark.parametrize(
        ("source", "target"), [((60, 90), (31, 40)), ((33, 20), (64, 50)), ((256, 100), (50, 200))]
    )
    def test_products_are_pillows_resize(self, source, target):
        image = np.random.default_rng(1).random(source, dtype=np.float32)
        expected = np.array(
            Image.fromarray(image).resize(target[::-1], Image.Resampling.BILINEAR), np.float64
        )
        rows, columns = (
            resize_matrix(*pair).double().numpy() for pair in zip(source, target, strict=True)
        )
        # Pillow places its weights in float64, PyTorch in float32: off by the place times EPS.
        places = EPS * max(source)
        np.testing.assert_allclose(rows @ image @ columns.T, expected, rtol=0, atol=places)

    @pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
    @pytest.mark.parametrize(("source", "target"), [(513, 300), (97, 300)])
    def test_in_float64_it_would_be_further_from_pytorchs_pixels(self, source, target, mode):
        image = torch.from_numpy(np.random.default_rng(2).random((source, source), np.float32))
        expected = functional.interpolate(
            image[None, None], (target, target), mode=mode, align_corners=False
        )
        exact = torch.eye(source, dtype=torch.float64)[None, None]
        matrices = (
            step_matrix(source, target, Resize((target, target), mode, antialias=False)).double(),
            functional.interpolate(exact, (target, source), mode=mode, align_corners=False)[0, 0],
        )
        ours, further = (
            float((matrix @ image.double() @ matrix.T - expected).abs().max())
            for matrix in matrices
        )
        assert ours <= 4 * EPS
        assert further > 10 * ours

    @given(source=sides, target=sides)
    @settings(deadline=None)
    def test_rows_are_weights(self, source, target):
        matrix = resize_matrix(source, target)
        assert matrix.shape == (target, source)
        assert matrix.dtype == torch.float32
        assert float(matrix.min()) >= 0
        sums = matrix.double().sum(dim=1)
        # Weights are divided by their sum, which is rounded as it grows.
        taps = 2 * max(1, -(-source // target))
        assert float((sums - 1).abs().max()) <= EPS / 2 * (taps + 1)

    @pytest.mark.parametrize(("source", "target"), [(300, 256), (96, 64), (50, 120), (64, 63)])
    def test_rows_differ(self, source, target):
        # A unit matrix laid out as [1, S, S, 1] is resized to the first row everywhere, see above.
        matrix = resize_matrix(source, target)
        assert len(matrix.unique(dim=0)) == target
        centres = matrix.double() @ torch.arange(source, dtype=torch.float64)
        assert bool((centres.diff() > 0).all())

    def test_of_equal_sizes_is_the_unit_matrix(self):
        assert torch.equal(resize_matrix(37, 37), torch.eye(37))


class TestGraphPreprocessing:
    @given(
        source=st.tuples(sides, sides),
        target=st.tuples(sides, wide),
        channels=st.sampled_from([1, 3]),
        count=st.integers(1, 3),
        seed=st.integers(0, 99),
    )
    @example(source=(96, 96), target=(64, 64), channels=1, count=1, seed=0)
    @example(source=(300, 300), target=(256, 256), channels=3, count=2, seed=0)
    @settings(deadline=None)
    def test_gives_the_references_values(self, source, target, channels, count, seed):
        config = PreprocessingConfig(target, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        shape = (count, *source, channels)
        image = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))
        expected = Preprocessing(config)(image)
        found = GraphPreprocessing(config.steps, ImageInput(*source, channels))(image)
        assert found.shape == expected.shape == (count, 3, *target)
        assert found.dtype == torch.float32
        # The reference takes its weights from positions in float32: off by the side times ε.
        error = 2 * (max(source) + max(target)) * EPS / min(config.std)
        assert float((found - expected).abs().max()) <= error

    @pytest.mark.parametrize("channels", [1, 3])
    def test_gives_the_references_bits_where_nothing_is_resized(self, channels):
        config = PreprocessingConfig((40, 56), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        image = torch.randint(0, 256, (2, 40, 56, channels), dtype=torch.uint8)
        found = GraphPreprocessing(config.steps, ImageInput(40, 56, channels))(image)
        assert torch.equal(found, Preprocessing(config)(image))


class TestBitDepth:
    CONFIG = PreprocessingConfig((24, 40), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    @pytest.mark.parametrize("size", [(24, 40), (33, 57)])
    def test_16_bits_of_8_bit_values_are_what_8_bits_are(self, size):
        image = torch.randint(0, 256, (2, *size, 1))
        shallow, deep = image.to(torch.uint8), (image * 257).to(torch.uint16)
        for preprocessing in (
            Preprocessing(self.CONFIG),
            GraphPreprocessing(self.CONFIG.steps, ImageInput(*size, 1, dtype="uint16")),
        ):
            torch.testing.assert_close(
                preprocessing(deep), preprocessing(shallow), rtol=0, atol=4 * EPS / 0.224
            )

    def test_the_graph_gives_the_references_bits(self):
        image = torch.randint(0, 65536, (2, 24, 40, 1)).to(torch.uint16)
        found = GraphPreprocessing(self.CONFIG.steps, ImageInput(24, 40, 1, dtype="uint16"))(image)
        assert torch.equal(found, Preprocessing(self.CONFIG)(image))

    def test_every_16_bit_value_stays_apart_from_the_next(self):
        values = torch.arange(65536).to(torch.uint16).view(1, 256, 256, 1)
        found = in_unit_range(values)
        assert float(found.min()) == 0.0
        assert float(found.max()) == 1.0
        assert bool((found.flatten().diff() > 0).all())


class TestReference:
    def test_scales_and_normalises_each_channel(self):
        config = PreprocessingConfig((1, 1), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
        image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
        found = Preprocessing(config)(image).flatten()
        torch.testing.assert_close(found, torch.tensor([-0.2, 0.0, 0.35]), rtol=1e-6, atol=1e-7)

    def test_a_gray_image_is_three_equal_channels(self):
        config = PreprocessingConfig((5, 7), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        gray = torch.randint(0, 256, (1, 9, 8, 1), dtype=torch.uint8)
        found, wanted = (
            Preprocessing(config)(gray),
            Preprocessing(config)(gray.expand(-1, -1, -1, 3)),
        )
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)

    def test_resizes_with_antialiasing(self):
        stripes = np.zeros((64, 64, 1), np.uint8)
        stripes[:, ::2] = 255
        config = PreprocessingConfig((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        found = Preprocessing(config)(torch.from_numpy(stripes)[None])
        assert float((found - 0.5).abs().max()) < 0.04  # the two outer columns see an edge
        assert float((found[..., 1:-1] - 0.5).abs().max()) < 1e-6
