import itertools
import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from vadexport.contract import ImageInput
from vadexport.errors import CheckError, InputError
from vadexport.thresholds import Thresholds
from vadexport.verification.parity import compare_images, figures
from vadexport.verification.records import ImageRecord


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


class TestWhileACallRuns:
    """What takes part is in other processes: this one reads and compares in the meantime."""

    def outputs(self, call):
        return {"raw_score": call.reshape(len(call), -1)[:, 0].astype(np.float32)}

    def compare(self, images, infer, watch=None):
        image_input = ImageInput(2, 2, 1)
        return compare_images(self.outputs, {"x": infer}, images, image_input, None, watch)["x"]

    def images(self, count):
        return [(str(n), None, np.full((2, 2, 1), n, np.uint8)) for n in range(count)]

    def test_the_next_image_is_read(self):
        read = threading.Event()

        def images():
            first, second = self.images(2)
            yield first
            read.set()
            yield second

        def infer(call):
            assert read.wait(10)
            return self.outputs(call)

        assert [record.name for record in self.compare(images(), infer)] == ["0", "1"]

    def test_the_image_before_is_compared(self):
        compared, calls = threading.Event(), []

        def infer(call):
            calls.append(call)
            assert len(calls) < 2 or compared.wait(10)
            return self.outputs(call)

        found = self.compare(self.images(2), infer, lambda *_: compared.set())
        assert [record.raw for record in found] == [0, 1]

    def test_order_is_kept_and_nothing_is_lost(self):
        seen = []
        found = self.compare(self.images(40), self.outputs, lambda name, *_: seen.append(name))
        assert [record.name for record in found] == seen == [str(n) for n in range(40)]

    @pytest.mark.parametrize("number", [0, 2])
    def test_what_is_wrong_with_an_image_or_in_watching_it_is_told(self, number):
        def images():
            yield from self.images(number)
            raise InputError("damaged")

        def watch(name, *_):
            if name == str(number):
                raise InputError("disk full")

        with pytest.raises(InputError, match="damaged"):
            self.compare(images(), self.outputs)
        with pytest.raises(InputError, match="disk full"):
            self.compare(self.images(number + 1), self.outputs, watch)


class TestFigures:
    def test_computed_by_hand(self):
        records = [
            record(1.0, 1.5, anomalous=False, map_max=0.2, map_mean=0.1, map_range=1.0),
            record(1.9, 2.1, anomalous=False, map_max=0.4, map_mean=0.2, map_range=2.0),
            record(3.0, 2.0, anomalous=True, map_max=0.6, map_mean=0.3, map_range=3.0),
            record(4.0, 4.0, anomalous=True, map_max=0.0, map_mean=0.0, map_range=2.0),
            record(5.0, 5.1, anomalous=None, map_max=0.0, map_mean=0.0, map_range=2.0),
        ]
        found = figures(records, drift_unit=0.5)
        # Drifts: 1, 0.4, 2, 0, 0.2.
        assert found.images == 5
        assert found.drift_max == pytest.approx(2)
        assert found.drift_mean == pytest.approx(3.6 / 5)
        assert found.drift_median == pytest.approx(0.4)
        assert found.drift_p95 == pytest.approx(1.8)
        # Ranks 1 2 3 4 5 and 1 3 2 4 5.
        assert found.spearman == pytest.approx(1 - 6 * 2 / (5 * 24))
        assert found.flips == 2
        assert found.map_max == pytest.approx(0.6 / 2)
        assert found.map_mean == pytest.approx(0.12 / 2)
        # The image without a label counts for neither; one of four pairs is the wrong way round.
        assert found.auroc_reference == 1
        assert found.auroc == pytest.approx(0.75)
        assert found.not_finite == 0

    def test_of_a_perfect_candidate(self):
        found = figures([record(value, value) for value in (1.0, 2.0, 3.0)], 1.0)
        assert (found.drift_max, found.flips, found.map_max) == (0, 0, 0)
        assert found.spearman == pytest.approx(1)
        assert (found.auroc_reference, found.auroc) == (None, None)

    def test_of_one_image(self):
        found = figures([record(1.0, 1.5, anomalous=True)], 0.25)
        assert (found.drift_max, found.drift_p95, found.spearman) == (2, 2, None)
        assert (found.auroc_reference, found.auroc) == (None, None)

    def test_flat_maps_divide_by_no_zero(self):
        found = figures([record(1.0, 1.0, map_max=0.5, map_mean=0.5, map_range=0.0)], 1.0)
        assert found.map_max == found.map_mean == 0.5

    @pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("field", ["raw", "reference_raw", "map_max"])
    def test_images_that_are_not_finite_are_counted_and_left_out(self, field, wrong):
        records = [record(1.0, 1.25), record(2.0, 2.25), record(3.0, 3.0)]
        bad = replace(record(9.0, 9.0), **{field: wrong})
        found = figures([*records, bad], 1.0)
        clean = figures(records, 1.0)
        assert (found.images, found.not_finite) == (4, 1)
        for name in ("drift_max", "drift_mean", "spearman", "flips", "map_max", "map_mean"):
            assert getattr(found, name) == getattr(clean, name)

    def test_none_that_is_finite_is_an_error_of_the_check(self):
        with pytest.raises(CheckError, match="no image has a finite score"):
            figures([record(1.0, math.nan)], 1.0)

    def test_no_image_is_an_error(self):
        with pytest.raises(InputError, match="no image to compare"):
            figures([], 1.0)

    @pytest.mark.parametrize("unit", [0.0, -1.0, math.nan])
    def test_a_unit_that_is_none_is_an_error(self, unit):
        with pytest.raises(InputError, match="drift has no unit"):
            figures([record(1.0, 1.0)], unit)


LIMITS = Thresholds(image=2.0, pixel=2.0, minimum=1.0, maximum=5.0, rule="given")


def outputs(images, *, offset=0.0, calls=None):
    """A detector whose score is the first pixel, and whose map is the image."""
    if calls is not None:
        calls.append(len(images))
    raw = images[:, 0, 0, 0].astype(np.float32) + np.float32(offset)
    maps = images[..., 0].astype(np.float32)[:, None] + np.float32(offset)
    return {
        "pred_score": np.clip((raw - 2) / 4 + np.float32(0.5), 0, 1),
        "raw_score": raw,
        "pred_label": raw > 2,
        "anomaly_map": maps,
        "pred_mask": maps > 2,
    }


def images_of(*values):
    for number, value in enumerate(values):
        image = np.full((2, 3, 1), value, np.uint8)
        image[0, 1] = value + 10
        yield f"{number}.png", number % 2 == 0, image


class TestCompareImages:
    @pytest.mark.parametrize("batch", [None, 1, 2, 3, 4, 9])
    def test_records_keep_order_names_and_labels(self, batch):
        found = compare_images(
            outputs,
            {"same": outputs, "off": lambda images: outputs(images, offset=0.5)},
            images_of(0, 1, 2, 3, 4),
            ImageInput(2, 3, 1, batch),
            LIMITS,
        )
        assert list(found) == ["same", "off"]
        assert [r.name for r in found["off"]] == [f"{n}.png" for n in range(5)]
        assert [r.anomalous for r in found["off"]] == [True, False, True, False, True]
        assert [r.reference_raw for r in found["off"]] == [0, 1, 2, 3, 4]
        assert [r.raw for r in found["off"]] == [0.5, 1.5, 2.5, 3.5, 4.5]
        assert [r.flipped for r in found["off"]] == [False, False, True, False, False]
        assert [r.flipped for r in found["same"]] == [False] * 5
        for each in found["off"]:
            assert (each.map_max, each.map_mean, each.map_range) == (0.5, 0.5, 10)

    @pytest.mark.parametrize(("batch", "sizes"), [(None, [1] * 5), (1, [1] * 5), (2, [2, 2, 2])])
    def test_both_sides_get_the_same_calls(self, batch, sizes):
        reference, candidate = [], []
        compare_images(
            lambda images: outputs(images, calls=reference),
            {"c": lambda images: outputs(images, calls=candidate)},
            images_of(0, 1, 2, 3, 4),
            ImageInput(2, 3, 1, batch),
            LIMITS,
        )
        assert reference == candidate == sizes

    def test_images_are_read_one_call_at_a_time(self):
        read = itertools.count()
        scored = []

        def images():
            for each in images_of(*range(6)):
                next(read)
                yield each

        def reference(batch):
            scored.append(next(read))
            return outputs(batch)

        compare_images(reference, {}, images(), ImageInput(2, 3, 1, 2), LIMITS)
        assert scored == [2, 5, 8]

    def test_no_image_gives_no_record(self):
        assert compare_images(outputs, {"c": outputs}, [], ImageInput(2, 3, 1), LIMITS) == {"c": []}

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("both", [False, True])
    def test_maps_and_scores_that_are_not_finite_are_noticed(self, wrong, both):
        def broken(images):
            found = outputs(images)
            found["anomaly_map"][0, 0, 1, 1] = wrong
            return found

        found = compare_images(
            broken if both else outputs, {"c": broken}, images_of(1, 2), ImageInput(2, 3, 1), LIMITS
        )
        assert [each.finite for each in found["c"]] == [False, False]

    def test_outputs_that_follow_from_scores_and_maps_are_consistent(self):
        found = compare_images(
            outputs,
            {"c": lambda images: outputs(images, offset=0.3)},
            images_of(*range(9)),
            ImageInput(2, 3, 1),
            LIMITS,
        )
        assert all(each.consistent for each in found["c"])
        assert figures(found["c"], 1.0).inconsistent == 0

    @pytest.mark.parametrize(
        ("name", "sabotage"),
        [
            ("pred_score", lambda value: value + np.float32(1e-5)),
            ("pred_label", np.logical_not),
            ("pred_mask", lambda value: value | (np.arange(6).reshape(2, 3) == 5)),
        ],
    )
    def test_outputs_that_contradict_scores_and_maps_are_noticed(self, name, sabotage):
        def broken(images):
            found = outputs(images)
            return {**found, name: sabotage(found[name])}

        found = compare_images(outputs, {"c": broken}, images_of(1), ImageInput(2, 3, 1), LIMITS)
        assert [each.consistent for each in found["c"]] == [False]
        assert figures(found["c"], 1.0).inconsistent == 1

    @pytest.mark.parametrize("thresholds", [LIMITS, None])
    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("side", ["reference", "artifact"])
    def test_a_normalised_score_that_is_not_finite_is_noticed(self, thresholds, wrong, side):
        def broken(images):
            return {**outputs(images), "pred_score": np.full(len(images), wrong, np.float32)}

        pair = (broken, outputs) if side == "reference" else (outputs, broken)
        (found,) = compare_images(
            pair[0], {"c": pair[1]}, images_of(1), ImageInput(2, 3, 1), thresholds
        )["c"]
        assert not found.finite
        assert found.not_finite_of == side
