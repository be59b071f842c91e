import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vadexport.contract import ImageInput
from vadexport.verification.evidence import weigh
from vadexport.verification.parity import compare_images, figures
from vadexport.verification.records import ImageRecord
from vadexport.verification.statistics import kendall, proportion_interval


class TestProportionInterval:
    @given(total=st.integers(1, 400), data=st.data())
    def test_is_scipys(self, total, data):
        count = data.draw(st.integers(0, total))
        found = proportion_interval(count, total)
        expected = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
        assert found.value == count / total
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)

    @pytest.mark.parametrize("truth", [0.01, 0.1, 0.5])
    @pytest.mark.parametrize("total", [20, 60, 300])
    def test_covers_the_truth_in_at_least_95_percent_of_all_samples(self, truth, total):
        counts = np.arange(total + 1)
        covered = [
            one.low <= truth <= one.high
            for one in (proportion_interval(int(count), total) for count in counts)
        ]
        assert stats.binom.pmf(counts, total, truth)[covered].sum() >= 0.95

    def test_no_flip_among_sixty_images_proves_little(self):
        assert proportion_interval(0, 60).high == pytest.approx(0.0596, abs=1e-4)


class TestKendall:
    @given(pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30))
    def test_is_the_share_of_concordant_pairs_ties_corrected(self, pairs):
        first, second = np.array(pairs, float).T
        signs = np.sign(np.subtract.outer(first, first)) * np.sign(
            np.subtract.outer(second, second)
        )
        norm = np.sqrt(
            np.count_nonzero(np.subtract.outer(first, first))
            * np.count_nonzero(np.subtract.outer(second, second))
        )
        found = kendall(first, second)
        if norm == 0:
            assert found is None
        else:
            assert found == pytest.approx(signs.sum() / norm)

    def test_is_scipys_of_many(self):
        rng = np.random.default_rng(0)
        first = rng.normal(size=3000).round(2)
        second = (first + rng.normal(size=3000)).round(2)
        expected = stats.kendalltau(first, second).statistic
        assert kendall(first, second) == pytest.approx(expected, abs=1e-12)

    def test_of_one_image_there_is_none(self):
        assert kendall(np.ones(1), np.ones(1)) is None


def record(reference, raw, **changes):
    values = {
        "name": "image",
        "anomalous": None,
        "reference_raw": reference,
        "raw": raw,
        "reference_label": reference > 2,
        "label": raw > 2,
        "map_max": 0.0,
        "map_mean": 0.0,
        "map_range": 1.0,
        "consistent": True,
    }
    return ImageRecord(**{**values, **changes})


class TestWeigh:
    def test_computed_by_hand(self):
        records = [
            record(1.0, 1.5, mask_iou=0.5, map_spearman=0.9),
            record(1.9, 2.1, mask_iou=None, map_spearman=None),
            record(3.0, 3.0, mask_iou=1.0, map_spearman=0.7),
            record(float("nan"), 3.0),
        ]
        found = weigh(records, 0.5)
        assert found.drift_quantiles["50"] == pytest.approx(0.4)
        assert found.drift_quantiles["99"] == pytest.approx(0.988)
        assert found.kendall == pytest.approx(1)
        # Decisions on images without finite scores are decisions: as many as the figure counts.
        assert found.flips.value == 2 / 4 == figures(records, 0.5).flips / len(records)
        assert found.auroc is None
        assert found.mask_iou == pytest.approx(0.75)
        assert found.map_spearman == pytest.approx(0.8)

    def test_of_a_detector_without_decisions_and_maps(self):
        found = weigh([record(1.0, 1.0, reference_label=None, label=None)] * 2, 1.0)
        assert (found.flips, found.mask_iou, found.map_spearman) == (None, None, None)


class TestRecords:
    def compare(self, first, second, masks):
        def infer(anomaly_map, mask):
            return lambda call: {
                "raw_score": np.zeros(len(call), np.float32),
                "anomaly_map": anomaly_map[None, None],
                "pred_mask": mask[None, None],
            }

        images = [("image", None, np.zeros((8, 8, 1), np.uint8))]
        found = compare_images(
            infer(first, masks[0]),
            {"x": infer(second, masks[1])},
            images,
            ImageInput(8, 8, 1),
            None,
        )
        return found["x"][0]

    def test_masks_and_ranks(self):
        rng = np.random.default_rng(0)
        first = rng.normal(size=(100, 120)).astype(np.float32)
        second = (first + rng.normal(size=first.shape)).astype(np.float32)
        found = self.compare(first, second, (first > 0, second > 0))
        both, either = (first > 0) & (second > 0), (first > 0) | (second > 0)
        assert found.mask_iou == pytest.approx(both.sum() / either.sum())
        # Of every third pixel, so near to that of all of them.
        assert found.map_spearman == pytest.approx(
            stats.spearmanr(first.ravel(), second.ravel()).statistic, abs=0.03
        )
        assert found.map_spearman == pytest.approx(
            stats.spearmanr(first.ravel()[::3], second.ravel()[::3]).statistic
        )

    def test_two_empty_masks_and_a_constant_map_say_nothing(self):
        flat = np.zeros((8, 8), np.float32)
        found = self.compare(flat, flat, (flat > 0, flat > 0))
        assert (found.mask_iou, found.map_spearman) == (None, None)

    def test_a_map_that_is_not_finite_has_no_ranks(self):
        first = np.arange(64, dtype=np.float32).reshape(8, 8)
        second = first.copy()
        second[0, 0] = np.nan
        assert self.compare(first, second, (first > 1, second > 1)).map_spearman is None
