import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist

from vadexport import contract
from vadexport.contract import ImageInput
from vadexport.detectors import patchcore
from vadexport.detectors.base import normal_thresholds
from vadexport.detectors.coreset import coreset_indices, projected
from vadexport.detectors.patchcore import PatchCoreConfig, fit
from vadexport.errors import InputError

GRAY = ImageInput(96, 96, 1)


def patches_of(detector, images):
    """Patches in float64, [N, h, w, D]: the features are the detector's, all else is not."""
    with torch.inference_mode():
        features = detector.network(detector.preprocessing(torch.from_numpy(np.stack(images))))
    levels = []
    for level in features:
        array = level.double().numpy()
        pooled = ndimage.uniform_filter(array, size=(1, 1, 3, 3), mode="constant")
        levels.append(upsampled(pooled, features[0].shape[2:]))
    return np.concatenate(levels, axis=1).transpose(0, 2, 3, 1)


def upsampled(array, size):
    for axis, target in zip((2, 3), size, strict=True):
        source = array.shape[axis]
        at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, source - 1)
        weight = np.expand_dims(at - low, tuple(range(1, 4 - axis)))
        array = np.take(array, low, axis) * (1 - weight) + np.take(array, high, axis) * weight
    return array


def reweighted(patch, bank, count):
    """Equation 7 of the paper for the patch that is farthest from the bank."""
    distances = np.linalg.norm(bank - patch, axis=1)
    nearest = distances.argmin()
    around = np.argsort(np.linalg.norm(bank - bank[nearest], axis=1), kind="stable")[:count]
    weight = 1 - np.exp(distances[nearest]) / np.exp(distances[around]).sum()
    return weight * distances[nearest]


def reference(detector, images):
    """Raw scores [N] and maps [N, h, w], float64 throughout."""
    patches = patches_of(detector, images)
    count, rows, columns, width = patches.shape
    bank = detector.memory_bank.double().numpy()
    scores, maps = [], []
    for each in patches.reshape(count, -1, width):
        distances = cdist(each, bank).min(axis=1)
        worst = distances.argmax()
        neighbours = detector.method.neighbours
        worst_patch = each[worst]
        scores.append(reweighted(worst_patch, bank, neighbours) if neighbours else distances[worst])
        coarse = distances.reshape(1, 1, rows, columns)
        maps.append(upsampled(coarse, detector.preprocessing.config.size)[0, 0])
    sigma = detector.method.blur_sigma
    radius = math.ceil(4 * sigma)
    blurred = [ndimage.gaussian_filter(m, sigma, mode="mirror", radius=radius) for m in maps]
    return np.array(scores), np.array(blurred)


def distance_error(detector, patches, smallest, eps):
    """How far a float32 distance may be off: ‖x‖² + ‖m‖² − 2x·m cancels."""
    width = patches.shape[-1]
    norms = (patches**2).sum(axis=-1).max() + detector.memory_bank.square().sum(1).max().item()
    return 4 * math.sqrt(width) * eps * norms / (2 * smallest)


def outputs_of(detector, images):
    with torch.inference_mode():
        outputs = detector(torch.from_numpy(np.stack(images)))
    return {name: value.numpy() for name, value in outputs.items()}


@pytest.fixture(params=["plain", "resizing"])
def case(request, crops, coloured):
    """A detector and images that it was not fitted on."""
    images = {"plain": crops, "resizing": coloured}[request.param][:5]
    unseen = [np.ascontiguousarray(255 - image[::-1]) for image in images]
    return request.getfixturevalue(request.param), unseen


class TestScore:
    def test_scores_and_maps_are_those_of_brute_force_in_float64(self, case, float32_eps):
        detector, images = case
        outputs = outputs_of(detector, images)
        scores, maps = reference(detector, images)
        patches = patches_of(detector, images)
        error = distance_error(detector, patches, maps.min(), float32_eps)
        assert error < 1e-3 * np.ptp(maps)  # else this test says nothing
        np.testing.assert_allclose(outputs["anomaly_map"][:, 0], maps, rtol=0, atol=2 * error)
        np.testing.assert_allclose(outputs["raw_score"], scores, rtol=0, atol=2 * error)

    def test_outputs_are_those_of_the_contract(self, case):
        detector, images = case
        outputs = outputs_of(detector, images)
        assert tuple(outputs) == contract.OUTPUT_NAMES
        size = detector.preprocessing.config.size
        for name, dtype, shape in [
            ("pred_score", np.float32, (5,)),
            ("raw_score", np.float32, (5,)),
            ("pred_label", bool, (5,)),
            ("anomaly_map", np.float32, (5, 1, *size)),
            ("pred_mask", bool, (5, 1, *size)),
        ]:
            assert outputs[name].dtype == dtype
            assert outputs[name].shape == shape

    def test_pred_score_and_decisions_follow_the_thresholds(self, case):
        detector, images = case
        outputs = outputs_of(detector, images)
        limits = detector.thresholds
        raw = outputs["raw_score"].astype(np.float64)
        expected = (raw - limits.image) / (limits.maximum - limits.minimum) + 0.5
        np.testing.assert_allclose(outputs["pred_score"], expected.clip(0, 1), rtol=1e-5)
        np.testing.assert_array_equal(outputs["pred_label"], raw > limits.image)
        np.testing.assert_array_equal(outputs["pred_mask"], outputs["anomaly_map"] > limits.pixel)

    def test_an_image_scores_alike_alone_and_among_others(self, case, float32_eps):
        detector, images = case
        together = outputs_of(detector, images)
        for number, image in enumerate(images):
            alone = outputs_of(detector, [image])
            for name in ("raw_score", "anomaly_map"):
                found, wanted = alone[name][0], together[name][number]
                np.testing.assert_allclose(found, wanted, rtol=1e3 * float32_eps)

    def test_a_score_at_the_threshold_is_normal(self, plain):
        limit = torch.tensor([plain.thresholds.image])
        next_above = torch.nextafter(limit, torch.tensor(torch.inf))
        scores = torch.cat([limit, next_above])
        labels = plain.postprocess(scores, torch.zeros(2, 1, 1, 1))["pred_label"]
        assert labels.tolist() == [False, True]

    def test_a_patch_of_the_bank_has_distance_zero(self, plain, float32_eps):
        bank = plain.memory_bank
        distances, index = patchcore.nearest_neighbour(bank[None], bank)
        norms = bank.square().sum(1).max().item()
        rounding = 4 * math.sqrt(bank.shape[1]) * float32_eps * norms
        assert distances.max().item() <= math.sqrt(rounding)
        assert index[0].tolist() == list(range(len(bank)))

    def test_neighbours_of_a_row_start_with_itself(self, resizing):
        table = resizing.neighbour_table
        bank = resizing.memory_bank.double()
        assert table.shape == (len(bank), 4)
        assert table[:, 0].tolist() == list(range(len(bank)))
        exact = torch.cdist(bank, bank, compute_mode="donot_use_mm_for_euclid_dist")
        expected = exact.topk(4, largest=False).values
        torch.testing.assert_close(exact.gather(1, table), expected, rtol=1e-5, atol=0)


class TestThresholds:
    @pytest.fixture
    def two_alike(self, crops):
        """The same image twice, then one that differs; every patch is kept."""
        images = [crops[0], crops[0], np.ascontiguousarray(255 - crops[5])]
        return images, fit(images, PatchCoreConfig(coreset_ratio=1.0), GRAY)

    def test_an_image_is_judged_by_the_others_alone(self, two_alike, float32_eps):
        images, detector = two_alike
        patches = patches_of(detector, images).reshape(3, -1, detector.memory_bank.shape[1])
        expected = []
        for number, own in enumerate(patches):
            others = np.concatenate([p for n, p in enumerate(patches) if n != number])
            expected.append(cdist(own, others).min(axis=1).max())
        assert expected[:2] == [0, 0]
        error = distance_error(detector, patches, 1.0, float32_eps)
        found = detector.normal_scores.double().numpy()
        assert (found[:2] ** 2 <= 2 * error).all()
        assert found[2] == pytest.approx(expected[2], abs=error)
        assert found[2] > 10 * found[:2].max()

    def test_every_image_is_judged_so(self, crops, float32_eps):
        detector = fit(crops[:5], PatchCoreConfig(coreset_ratio=1.0), GRAY)
        patches = patches_of(detector, crops[:5])
        patches = patches.reshape(5, -1, patches.shape[-1])
        for number, own in enumerate(patches):
            others = np.concatenate([p for n, p in enumerate(patches) if n != number])
            expected = cdist(own, others).min(axis=1).max()
            error = distance_error(detector, patches, expected, float32_eps)
            assert detector.normal_scores[number].item() == pytest.approx(expected, abs=error)

    def test_reweighted_scores_take_neighbours_among_the_others_rows(self, crops, float32_eps):
        config = PatchCoreConfig(coreset_ratio=1.0, neighbours=5)
        detector = fit(crops[:4], config, GRAY)
        patches = patches_of(detector, crops[:4])
        patches = patches.reshape(4, -1, patches.shape[-1])
        for number, own in enumerate(patches):
            others = np.concatenate([p for n, p in enumerate(patches) if n != number])
            nearest = cdist(own, others).min(axis=1)
            expected = reweighted(own[nearest.argmax()], others, 5)
            error = distance_error(detector, patches, nearest.max(), float32_eps)
            assert detector.normal_scores[number].item() == pytest.approx(expected, abs=2 * error)

    def test_an_image_is_judged_by_the_others_alone_among_thinned_out_patches(
        self, crops, monkeypatch, float32_eps
    ):
        monkeypatch.setattr(patchcore, "MAX_PATCHES", 5 * 40)
        detector = fit(crops[:5], PatchCoreConfig(coreset_ratio=1.0), GRAY)
        patches = patches_of(detector, crops[:5])
        patches = patches.reshape(5, -1, patches.shape[-1])
        bank = detector.memory_bank.double().numpy()
        owners = cdist(bank, np.concatenate(patches)).argmin(axis=1) // patches.shape[1]
        for number, own in enumerate(patches):
            expected = cdist(own, bank[owners != number]).min(axis=1).max()
            error = distance_error(detector, patches, expected, float32_eps)
            assert detector.normal_scores[number].item() == pytest.approx(expected, abs=error)

    def test_with_many_images_a_fifth_is_held_out_together(self, crops, float32_eps):
        detector = fit(crops[:7], PatchCoreConfig(coreset_ratio=1.0), GRAY)
        patches = patches_of(detector, crops[:7])
        patches = patches.reshape(7, -1, patches.shape[-1])
        for number, own in enumerate(patches):
            others = np.concatenate([p for n, p in enumerate(patches) if n % 5 != number % 5])
            expected = cdist(own, others).min(axis=1).max()
            error = distance_error(detector, patches, expected, float32_eps)
            assert detector.normal_scores[number].item() == pytest.approx(expected, abs=error)

    def test_held_out_images_meet_a_coreset_chosen_without_them(self, crops, float32_eps):
        # The bank of all images without one image's rows has holes where that image's rows stood
        # for those of others: that is no bank a new image meets.
        detector = fit(crops[:4], PatchCoreConfig(coreset_ratio=0.1), GRAY)
        patches = patches_of(detector, crops[:4])
        patches = patches.reshape(4, -1, patches.shape[-1])
        with torch.inference_mode():
            # The very bits that it was fitted on: rounding may change which row is farthest.
            own = [detector.preprocessing(torch.from_numpy(crop)[None]) for crop in crops[:4]]
            embedded = [detector.embed(detector.network(x))[0].flatten(1).T for x in own]
        points = projected(torch.cat(embedded), seed=0)
        numbers = np.arange(4 * 144).reshape(4, 144)
        rows = patches.reshape(4 * 144, -1)
        for number, own in enumerate(patches):
            others = np.delete(numbers, number, axis=0).ravel()
            chosen = others[coreset_indices(points[others], 43).numpy()]
            expected = cdist(own, rows[chosen]).min(axis=1).max()
            error = distance_error(detector, patches, expected, float32_eps)
            assert detector.normal_scores[number].item() == pytest.approx(expected, abs=error)

    def test_limits_come_from_the_quantile_of_the_normal_scores(self, crops):
        config = PatchCoreConfig(coreset_ratio=0.05)
        detector = fit(crops, config, GRAY, quantile=0.8)
        scores = detector.normal_scores.double().numpy()
        limits = detector.thresholds
        assert limits.image == float(np.float32(np.quantile(scores, 0.8)))
        assert (limits.minimum, limits.maximum) == (scores.min(), scores.max())
        assert limits.rule == "0.8 quantile of 12 normal images"
        assert (scores > limits.image).sum() == 3

    def test_are_float32_numbers(self):
        scores = torch.tensor([0.1, 0.2, 0.7])
        limits = normal_thresholds(scores, scores / 3, 0.35)
        for value in (limits.image, limits.pixel, limits.minimum, limits.maximum):
            assert float(np.float32(value)) == value

    def test_of_quantile_one_no_normal_image_is_anomalous(self):
        scores = torch.rand(9, generator=torch.Generator().manual_seed(0))
        limits = normal_thresholds(scores, scores, 1.0)
        assert limits.image == limits.maximum == scores.max().item()


class TestFit:
    def test_one_normal_image_will_do(self, crops):
        detector = fit(crops[:1], PatchCoreConfig(coreset_ratio=1.0), GRAY)
        seen, unseen = (outputs_of(detector, [crops[number]]) for number in (0, 6))
        assert seen["raw_score"] == detector.normal_scores.numpy()
        assert (seen["pred_score"], seen["pred_label"]) == (0.5, False)
        assert (unseen["pred_score"], unseen["pred_label"]) == (1.0, True)
        assert np.isfinite(unseen["anomaly_map"]).all()
        rule = "0.95 quantile of 1 normal image, which trained it too"
        assert detector.thresholds.rule == rule

    def test_no_image_is_an_error(self):
        with pytest.raises(InputError, match="at least one normal image"):
            fit([], PatchCoreConfig(), GRAY)

    def test_is_deterministic(self, crops, plain):
        again = fit(crops, PatchCoreConfig(coreset_ratio=0.05), GRAY)
        assert torch.equal(again.memory_bank, plain.memory_bank)
        assert torch.equal(again.normal_scores, plain.normal_scores)
        assert again.thresholds == plain.thresholds

    @pytest.mark.parametrize(("ratio", "rows"), [(1e-9, 1), (0.01, 17), (0.1, 172), (1.0, 1728)])
    def test_the_bank_keeps_the_fraction_asked_for(self, crops, ratio, rows):
        detector = fit(crops, PatchCoreConfig(coreset_ratio=ratio), GRAY)
        assert detector.memory_bank.shape == (rows, 40 + 112)
        assert len(detector.normal_scores) == 12
        assert detector.normal_scores.isfinite().all()

    def test_rows_of_the_bank_are_patches_of_the_images(self, crops, plain):
        patches = patches_of(plain, crops).reshape(-1, 152)
        distances = cdist(plain.memory_bank.double().numpy(), patches)
        scale = np.abs(patches).max()
        assert distances.min(axis=1).max() < 1e-5 * scale
        assert len(np.unique(distances.argmin(axis=1))) == len(plain.memory_bank)

    def test_many_patches_are_thinned_out_evenly_over_the_images(self, crops, monkeypatch):
        monkeypatch.setattr(patchcore, "MAX_PATCHES", 200)
        detector = fit(crops, PatchCoreConfig(coreset_ratio=1.0), GRAY)
        patches = patches_of(detector, crops).reshape(-1, 152)
        owners = cdist(detector.memory_bank.double().numpy(), patches).argmin(axis=1)
        assert len(np.unique(owners)) == 12 * 16
        assert np.bincount(owners // 144).tolist() == [16] * 12
        again = fit(crops, PatchCoreConfig(coreset_ratio=1.0), GRAY)
        assert torch.equal(again.memory_bank, detector.memory_bank)
        other = fit(crops, PatchCoreConfig(coreset_ratio=1.0, seed=1), GRAY)
        assert not torch.equal(other.memory_bank, detector.memory_bank)

    def test_more_images_than_patches_allowed_still_give_one_each(self, crops, monkeypatch):
        monkeypatch.setattr(patchcore, "MAX_PATCHES", 5)
        detector = fit(crops, PatchCoreConfig(coreset_ratio=1.0), GRAY)
        assert len(detector.memory_bank) == 12

    def test_progress_tells_each_step_to_its_end(self, crops):
        told = {}
        config = PatchCoreConfig(coreset_ratio=0.05)

        def progress(step, *counts):
            told.setdefault(step, []).append(counts)

        fit(crops[:3], config, GRAY, progress=progress)
        assert list(told) == ["features", "coreset", "threshold"]
        assert told["features"] == told["threshold"] == [(1, 3), (2, 3), (3, 3)]
        # The bank of all three images has 21 rows, each of those without one has 14.
        assert told["coreset"][-1] == (63, 63)
        assert {(21, 63), (35, 63), (49, 63)} <= set(told["coreset"])
        assert told["coreset"] == sorted(set(told["coreset"]))

    def test_does_not_write_to_its_images(self, crops):
        kept = [image.copy() for image in crops[:2]]
        fit(crops[:2], PatchCoreConfig(), GRAY)
        for image, copy in zip(crops, kept, strict=False):
            np.testing.assert_array_equal(image, copy)

    def test_features_that_are_not_finite_name_the_image(self, crops, monkeypatch):
        real = patchcore.PatchCore.network
        calls = []

        def broken(self, x):
            calls.append(1)
            features = real(self, x)
            return (features[0] * (torch.nan if len(calls) == 2 else 1), *features[1:])

        monkeypatch.setattr(patchcore.PatchCore, "network", broken)
        with pytest.raises(InputError, match="image 2 are not finite"):
            fit(crops[:3], PatchCoreConfig(), GRAY)

    def test_too_few_rows_for_the_neighbours_say_so(self, crops):
        with pytest.raises(InputError, match=r"by 9 neighbours.*has 5: raise the coreset ratio"):
            fit(crops[:4], PatchCoreConfig(neighbours=9), GRAY)

    def test_just_enough_rows_for_the_neighbours_do(self, crops):
        detector = fit(crops[:4], PatchCoreConfig(neighbours=5), GRAY)
        assert detector.neighbour_table.shape == (5, 5)
        assert detector.normal_scores.isfinite().all()


class TestConfig:
    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"coreset_ratio": 0}, "coreset ratio"),
            ({"coreset_ratio": -0.1}, "coreset ratio"),
            ({"coreset_ratio": 1.01}, "coreset ratio"),
            ({"coreset_ratio": math.nan}, "coreset ratio"),
            ({"neighbours": -1}, "neighbours, not -1"),
            ({"neighbours": 101}, "neighbours, not 101"),
            ({"blur_sigma": 0}, "sigma"),
            ({"blur_sigma": 65}, "sigma"),
            ({"blur_sigma": math.nan}, "sigma"),
        ],
    )
    def test_values_out_of_range_are_refused(self, wrong, words):
        with pytest.raises(InputError, match=words):
            PatchCoreConfig(**wrong)

    def test_one_neighbour_is_refused_for_it_would_weight_every_score_with_zero(self):
        with pytest.raises(InputError, match=r"0 or 2 … 100 neighbours, not 1$"):
            PatchCoreConfig(neighbours=1)

    @pytest.mark.parametrize("levels", [(), (7,), (2, 5)])
    def test_levels_that_the_backbone_lacks_are_refused(self, crops, levels):
        with pytest.raises(InputError, match="levels of this backbone"):
            fit(crops[:1], PatchCoreConfig(levels=levels), GRAY)

    @pytest.mark.parametrize("size", [(16, 96), (96, 16)])
    def test_images_too_small_for_the_blur_are_refused(self, crops, size):
        with pytest.raises(InputError, match=r"too small for a blur of 4\.0"):
            fit(crops[:1], PatchCoreConfig(), GRAY, size=size)

    def test_the_smallest_size_that_the_blur_takes(self, crops):
        detector = fit(crops[:2], PatchCoreConfig(), GRAY, size=(17, 96))
        assert outputs_of(detector, crops[:1])["anomaly_map"].shape == (1, 1, 17, 96)

    def test_levels_need_not_ascend(self, crops):
        detector = fit(crops[:2], PatchCoreConfig(levels=(3, 2)), GRAY)
        assert detector.memory_bank.shape[1] == 112 + 40
        scores, _ = reference(detector, crops[4:6])
        found = outputs_of(detector, crops[4:6])["raw_score"]
        np.testing.assert_allclose(found, scores, rtol=1e-4)
