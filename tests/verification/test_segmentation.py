import gc
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.metrics import roc_auc_score

from vadexport.verification.segmentation import FPR_LIMIT, PixelScores, resized_map

# Few distinct values, so that ties are common, within regions and across their edges.
values = st.integers(0, 6).map(float) | st.floats(-1e3, 1e3, width=32)


@st.composite
def labelled_maps(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    count = draw(st.integers(1, 3))
    maps = [draw(npst.arrays(np.float32, shape, elements=values)) for _ in range(count)]
    return maps, [draw(npst.arrays(np.bool_, shape)) for _ in range(count)]


def gathered(maps, masks):
    pixels = PixelScores()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pixels.add(anomaly_map, mask)
    return pixels


def figures(maps, masks, limit=FPR_LIMIT):
    roc, pro = gathered(maps, masks).curves()
    return roc.area(), pro.area(limit)


# The definition, word by word, one threshold, one region and one pixel at a time.


def regions_of(mask):
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    while left:
        region, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            region.add((y, x))
            around = {(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            left -= around
            front += around
        yield region


def slow_curve(maps, masks):
    regions = [(number, one) for number, mask in enumerate(masks) for one in regions_of(mask)]
    normal = sum(int((~mask).sum()) for mask in masks)
    points = [(0.0, 0.0)]
    for threshold in sorted({float(v) for one in maps for v in one.ravel()}, reverse=True):
        false = sum(int((m[~k] >= threshold).sum()) for m, k in zip(maps, masks, strict=True))
        overlaps = [
            sum(maps[number][pixel] >= threshold for pixel in region) / len(region)
            for number, region in regions
        ]
        points.append((false / normal, sum(overlaps) / len(overlaps)))
    return [*points, (1.0, 1.0)]


def slow_area(points, limit):
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < limit:
            cut = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + cut) / 2
    return area / limit


@given(maps=labelled_maps(), limit=st.sampled_from([0.05, 0.3, 0.5, 1.0]))
@settings(deadline=None)
def test_aupro_is_that_of_the_slow_definition(maps, limit):
    maps, masks = maps
    assume(0 < sum(mask.sum() for mask in masks) < sum(mask.size for mask in masks))
    expected = slow_area(slow_curve(maps, masks), limit)
    assert figures(maps, masks, limit)[1] == pytest.approx(expected, abs=1e-12)


@given(maps=labelled_maps())
@example(maps=([np.ones((2, 3), np.float32)], [np.eye(2, 3, dtype=bool)]))
@settings(deadline=None)
def test_pixel_auroc_is_scikit_learns_ties_and_all(maps):
    maps, masks = maps
    truth = np.concatenate([mask.ravel() for mask in masks])
    assume(truth.any() and not truth.all())
    expected = roc_auc_score(truth, np.concatenate([one.ravel() for one in maps]))
    assert figures(maps, masks)[0] == pytest.approx(expected, abs=1e-12)


@given(maps=labelled_maps(), seed=st.integers(0, 99))
@settings(deadline=None)
def test_the_order_of_images_and_the_scale_of_scores_do_not_matter(maps, seed):
    maps, masks = maps
    assume(0 < sum(mask.sum() for mask in masks) < sum(mask.size for mask in masks))
    order = np.random.default_rng(seed).permutation(len(maps))
    levels = np.unique(maps)
    ranked = [np.searchsorted(levels, maps[n]) for n in order]
    assert figures(ranked, [masks[n] for n in order]) == pytest.approx(
        figures(maps, masks), abs=1e-12
    )


# Four anomaly-free pixels, 1 to 4: each is a quarter of the false positive rate.


def strip(*scores):
    return np.array([scores], np.float32)


def test_the_curve_is_cut_at_the_limit_on_its_slope():
    # Overlap 1/2 at once; the second region ties with an anomaly-free pixel, from 0.25 to 0.5.
    maps = [strip(5, 1, 2, 3, 4, 3)]
    masks = [np.array([[1, 0, 0, 0, 0, 1]], bool)]
    at_limit = 0.5 + 0.5 * (0.3 - 0.25) / (0.5 - 0.25)
    area = 0.25 * 0.5 + 0.05 * (0.5 + at_limit) / 2
    assert figures(maps, masks)[1] == pytest.approx(area / 0.3, abs=1e-15)


def test_what_is_found_beyond_the_limit_counts_nothing():
    mask = np.array([[1, 0, 0, 0, 0]], bool)
    assert figures([strip(2.5, 1, 2, 3, 4)], [mask]) == pytest.approx((0.5, 0.0), abs=1e-15)
    assert figures([strip(9, 1, 2, 3, 4)], [mask]) == (1.0, 1.0)


def test_a_small_region_counts_as_much_as_a_large_one():
    mask = np.array([[1, 0, 1, 1, 1, 0]], bool)
    roc, pro = gathered([strip(9, 5, 9, 1, 1, 5)], [mask]).curves()
    np.testing.assert_allclose(pro.y[pro.x == 0].max(), (1 + 1 / 3) / 2)
    np.testing.assert_allclose(roc.y[roc.x == 0].max(), 2 / 4)


def test_pixels_that_touch_at_a_corner_are_one_region():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0]], bool)
    pixels = gathered([np.arange(8.0).reshape(2, 4)], [mask])
    assert pixels.regions == 2


def test_regions_do_not_go_on_in_the_next_image():
    pixels = gathered([strip(1, 2)] * 2, [np.array([[0, 1]], bool), np.array([[1, 0]], bool)])
    assert pixels.regions == 2


def test_a_normal_image_adds_anomaly_free_pixels():
    mask = np.array([[1, 0]], bool)
    pixels = gathered([strip(2, 1)], [mask])
    assert pixels.curves()[0].area() == 1.0
    pixels.add(strip(3, 3, 0), None)
    # Two of four anomaly-free pixels above the defect's; all thresholds up to 0.3 miss it.
    roc, pro = pixels.curves()
    assert (roc.area(), pro.area(FPR_LIMIT)) == (0.5, 0.0)


@pytest.mark.parametrize("masks", [[], [None], [np.zeros((1, 3), bool)], [np.ones((1, 3), bool)]])
def test_without_pixels_of_both_kinds_there_is_no_curve(masks):
    assert gathered([strip(1, 2, 3)] * len(masks), masks).curves() is None


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="differ in size"):
        PixelScores().add(np.zeros((4, 4)), np.zeros((4, 5), bool))


def test_scores_a_sigmoid_would_merge_are_told_apart():
    maps = [np.array([[1e6, 1e6 + 0.0625]], np.float32)]
    assert figures(maps, [np.array([[0, 1]], bool)]) == (1.0, 1.0)


def test_it_holds_four_bytes_a_pixel():
    count, side = 20, 200
    mask = np.zeros((side, side), bool)
    mask[50:90, 50:90] = True
    rng = np.random.default_rng(0)
    pixels = PixelScores()
    pixels.add(rng.random((side, side)), mask)  # what scipy loads is not counted below
    tracemalloc.start()
    for _ in range(count):
        pixels.add(rng.random((side, side)), mask)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 4.2 * count * side**2


class TestResizedMap:
    @given(
        old=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        new=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    )
    @settings(deadline=None, max_examples=40)
    def test_is_pytorchs_interpolation(self, old, new):
        import torch
        from torch.nn.functional import interpolate

        anomaly_map = np.random.default_rng(0).normal(size=old)
        expected = interpolate(torch.from_numpy(anomaly_map)[None, None], size=new, mode="bilinear")
        found = resized_map(anomaly_map, new)
        np.testing.assert_allclose(found, expected[0, 0].numpy(), rtol=1e-6, atol=1e-6)
        assert found.dtype == np.float32

    def test_of_the_same_size_is_the_map(self):
        anomaly_map = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
        np.testing.assert_array_equal(resized_map(anomaly_map, (5, 7)), anomaly_map)
