import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from PIL import Image

from vadexport.reporting.pictures import colour_scale, exhibit_pictures

MAGENTA, DARK, BRIGHT = [255, 0, 255], [0x44, 0x01, 0x54], [0xFD, 0xE7, 0x25]


def read(uri):
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def pixels(uri):
    return np.asarray(read(uri).convert("RGB")).astype(int)


class TestMaps:
    def test_both_maps_share_a_scale(self, make):
        exhibit = make.exhibit(shift=0.25)
        found = exhibit_pictures(exhibit)
        assert (found.low, found.high) == (0.0, 1.25)
        reference, artifact = pixels(found.reference_map), pixels(found.anomaly_map)
        assert reference[0, 0].tolist() == DARK
        assert artifact[-1, -1].tolist() == BRIGHT
        assert reference[-1, -1].tolist() != BRIGHT
        # Where the artifact's value equals the reference's elsewhere, so does the colour.
        same = np.isclose(exhibit.reference_map, exhibit.anomaly_map[0, 0], atol=1e-3)
        np.testing.assert_allclose(reference[same][0], artifact[0, 0], atol=4)

    def test_smaller_values_than_the_reference_has(self, make):
        found = exhibit_pictures(make.exhibit(shift=-0.5))
        assert (found.low, found.high) == (0.0, 1.0)
        assert pixels(found.anomaly_map)[0, 0].tolist() == DARK

    def test_difference(self, make):
        exhibit = make.exhibit(shift=0)
        changed = exhibit.anomaly_map.copy()
        changed[3, 5] -= 0.5
        found = exhibit_pictures(replace(exhibit, anomaly_map=changed))
        assert found.difference_max == pytest.approx(0.5)
        difference = pixels(found.difference)
        assert difference[3, 5].tolist() == BRIGHT
        assert (difference[:3] == DARK).all()

    def test_not_finite(self, make):
        exhibit = make.exhibit()
        changed = exhibit.anomaly_map.copy()
        changed[0, :3] = np.nan, np.inf, -np.inf
        found = exhibit_pictures(replace(exhibit, anomaly_map=changed))
        assert found.not_finite == 3
        assert found.high == 1.25
        for picture in (found.anomaly_map, found.difference):
            is_magenta = (pixels(picture) == MAGENTA).all(axis=2)
            assert is_magenta[0, :3].all()
            assert is_magenta.sum() == 3
        assert not (pixels(found.reference_map) == MAGENTA).all(axis=2).any()

    def test_nothing_finite(self, make):
        exhibit = make.exhibit()
        nothing = np.full_like(exhibit.reference_map, np.nan)
        found = exhibit_pictures(replace(exhibit, reference_map=nothing, anomaly_map=nothing))
        assert (found.low, found.high, found.difference_max) == (0, 0, 0)
        assert (pixels(found.difference) == MAGENTA).all()

    @settings(max_examples=30)
    @given(arrays(np.float32, (2, 3, 4)))
    def test_any_maps(self, make, maps):
        found = exhibit_pictures(
            replace(make.exhibit(), reference_map=maps[0], anomaly_map=maps[1])
        )
        assert np.isfinite([found.low, found.high, found.difference_max]).all()
        assert found.not_finite == (~np.isfinite(maps).all(axis=0)).sum()


class TestSize:
    def test_long_side(self, make):
        image = np.zeros((900, 1200, 3), np.uint8)
        large = np.zeros((700, 350), np.float32)
        exhibit = replace(make.exhibit(), image=image, reference_map=large, anomaly_map=large)
        found = exhibit_pictures(exhibit)
        assert read(found.image).size == (512, 384)
        assert read(found.reference_map).size == read(found.difference).size == (256, 512)

    def test_small_pictures_stay_as_they_are(self, make):
        exhibit = make.exhibit()
        found = exhibit_pictures(exhibit)
        np.testing.assert_array_equal(pixels(found.image), exhibit.image)
        assert read(found.anomaly_map).size == (32, 24)

    def test_a_map_is_a_byte_a_pixel(self, make):
        assert read(exhibit_pictures(make.exhibit()).reference_map).mode == "P"

    @pytest.mark.parametrize("channels", [1, 3])
    def test_gray(self, make, channels):
        image = np.repeat(make.exhibit().image[:, :, :1], channels, axis=2)
        picture = read(exhibit_pictures(replace(make.exhibit(), image=image)).image)
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), image[:, :, 0])


def test_colour_scale():
    row = pixels(colour_scale())[0]
    assert row.shape == (256, 3)
    assert (row[0].tolist(), row[-1].tolist()) == (DARK, BRIGHT)
