import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadexport.reporting.json_report import as_text, latency_json, parity_json
from vadexport.verification.parts import Parts
from vadexport.verification.statistics import Interval

WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def refuse(constant):
    raise AssertionError(f"{constant} is not strict JSON")


def read(report):
    text = as_text(report)
    value = json.loads(text, parse_constant=refuse)
    assert value == report
    return value


class TestParity:
    def test_all_of_it(self, make):
        v = make.verification(warnings=("one",))
        found = read(parity_json(v))
        assert found["schema_version"] == 1
        assert (found["target"], found["held"], found["threshold"]) == ("openvino:int8", True, 2.0)
        assert found["artifact_name"] == "artifact"
        assert found["source_name"] == "detector.safetensors"
        assert found["drift_unit"] == 0.5
        assert found["drift_unit_from"] == "the 40 normal images that set its thresholds"
        assert found["figures"]["drift_p95"] == 0.55
        assert found["limits"]["max_drift"] == 1.0
        assert found["limits"]["max_flips"] is None
        assert found["checks"][1] == {
            "name": "drift",
            "held": True,
            "line": "largest drift 0.6, limit 1",
            "judged": True,
        }
        assert found["ladder"] == list(v.ladder)
        assert found["environment"] == v.environment
        assert found["warnings"] == ["one"]

    def test_what_it_is_of(self, make):
        v = make.verification()
        for found in (read(parity_json(v)), read(latency_json(v))):
            assert found["sha256"] == {
                "manifest": 64 * "a",
                "files": {"model.bin": 64 * "b", "model.xml": 64 * "c"},
                "source": 64 * "d",
                "reference": 64 * "d",
                "images": 64 * "e",
            }
            assert found["size_mb"] == pytest.approx(12.345678)

    def test_what_the_search_chose(self, make):
        assert read(parity_json(make.verification()))["search"] is None
        assert read(parity_json(make.verification(search=make.search())))["search"] == {
            "words": "auto: INT8 but for 3 of 5 layers, 1.50 times as fast as float32 when built",
            "shipped": "int8",
            "layers": 5,
            "float_layers": 3,
            "float_type": "fp32",
            "speedup": {"value": 1.5, "low": 1.25, "high": 1.75},
            "finished": True,
        }
        none = make.search(chosen=None, points=(), finished=False)
        found = read(parity_json(make.verification(search=none)))["search"]
        assert (found["shipped"], found["float_layers"], found["speedup"]) == ("fp32", 5, None)

    def test_an_image(self, make):
        images = read(parity_json(make.verification()))["images"]
        assert len(images) == 4
        assert images[3] == {
            "name": "crack/2.png",
            "anomalous": True,
            "reference_raw": 2.1,
            "raw": 1.9,
            "reference_label": True,
            "label": False,
            "map_max": 0.2,
            "map_mean": 0.01,
            "map_range": 1.5,
            "consistent": True,
            "mask_iou": None,
            "map_spearman": None,
            "reference_finite": True,
            "reference_score": None,
            "score": None,
            "drift": pytest.approx(0.4),
            "flipped": True,
            "finite": True,
        }

    @given(
        st.text(st.characters(codec=None), max_size=20),
        st.sampled_from([True, False, None]),
        st.floats(),
        st.floats(),
    )
    def test_any_scores_and_names(self, make, name, anomalous, reference, raw):
        record = make.record(name, reference, raw, anomalous=anomalous)
        (image,) = read(parity_json(make.verification(records=(record,))))["images"]
        assert image["name"] == name
        assert image["anomalous"] is anomalous
        for key, wanted in (("reference_raw", reference), ("raw", raw)):
            np.testing.assert_equal(WORDS.get(image[key], image[key]), wanted)

    def test_not_finite(self, make):
        record = make.record(raw=math.inf, reference=math.nan)
        (image,) = read(parity_json(make.verification(records=(record,))))["images"]
        assert (image["raw"], image["reference_raw"]) == ("Infinity", "NaN")
        assert (image["drift"], image["finite"]) == ("NaN", False)

    def test_types_of_others(self, make):
        environment = {"threads": np.int64(2), "load": np.float32("nan"), "path": {1: (2, {3})}}
        found = read(parity_json(make.verification(environment=environment)))
        assert found["environment"] == {"threads": 2, "load": "NaN", "path": {"1": [2, "{3}"]}}


class TestLatency:
    def test_all_of_it(self, make):
        found = read(latency_json(make.verification()))
        assert found["schema_version"] == 1
        assert found["batch"] == 1
        assert found["artifact"]["samples_ms"] == [5.0, 6.0, 7.0]
        assert found["artifact"]["execution"]["layers"] == {"u8": 52, "f32": 3}
        assert found["reference"]["execution"]["precision"] == "float32"
        assert found["reference"]["median_ms"] == 60.0
        assert found["speedup"] == {
            "name": "openvino:int8",
            "baseline": "reference",
            "ratio": 10.0,
            "low": 9.25,
            "high": 10.5,
            "confidence": 0.95,
        }

    def test_the_floor(self, make):
        assert latency_json(make.verification())["aa_floor"] is None
        given = make.latency()
        again = Interval(1.0, 0.98, 1.01)
        artifact = replace(given.artifact, again=again, again_ms=(5.5, 5.75, 7.0))
        found = read(latency_json(make.verification(latency=replace(given, artifact=artifact))))
        assert found["aa_floor"] == pytest.approx(1 / 0.98)
        assert found["artifact"]["again"] == {"value": 1.0, "low": 0.98, "high": 1.01}
        assert found["artifact"]["again_ms"] == [5.5, 5.75, 7.0]

    def test_samples_of_the_parts(self, make):
        parts = Parts(2.0, 1.5, 6.0, (1.75, 2.0, 2.5), (1.25, 1.5, 1.75))
        latency = replace(make.latency(), parts=parts)
        found = read(latency_json(make.verification(latency=latency)))["parts"]
        assert (found["decoding_ms"], found["inference_ms"]) == (2.0, 4.5)
        assert found["decoding_samples_ms"] == [1.75, 2.0, 2.5]
        assert found["preprocessing_samples_ms"] == [1.25, 1.5, 1.75]

    def test_quantiles_of_too_few_calls(self, make):
        given = make.latency()
        latency = replace(given, artifact=replace(given.artifact, p90_ms=None))
        found = read(latency_json(make.verification(latency=latency)))
        assert (found["artifact"]["p90_ms"], found["artifact"]["p99_ms"]) == (None, None)
        assert found["reference"]["p90_ms"] == pytest.approx(68)

    def test_not_measured(self, make):
        assert latency_json(make.verification(latency=None)) is None
