from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadexport.reporting.junit import junit_xml
from vadexport.verification.limits import Check, Limits
from vadexport.verification.result import Diagnosis


def suite(v):
    return ET.fromstring(junit_xml(v)).find("testsuite")


def test_one_case_a_check_and_one_a_limit_that_was_not_checked(make):
    v = make.verification(limits=Limits(max_drift=1.0, min_speedup=3.0, max_map_drift=0.1))
    found = suite(v)
    cases = {case.get("name"): case for case in found.iter("testcase")}
    assert list(cases)[:3] == ["finite", "drift", "speedup"]
    (skipped,) = [case for case in cases.values() if case.find("skipped") is not None]
    assert skipped.get("name") == "map"
    said = "largest difference of a map, of the maps' mean range: the detector gives no map"
    assert skipped.find("skipped").get("message") == said
    assert found.attrib | {"name": ""} == {
        "name": "",
        "tests": "4",
        "failures": "0",
        "errors": "0",
        "skipped": "1",
    }
    assert all(case.get("classname") == "vadexport.openvino:int8" for case in cases.values())


def test_a_check_that_fell_short_is_a_failure_that_says_why(make):
    line = "largest drift 2, limit 1 <&>"
    found = suite(make.verification(checks=(Check("drift", held=False, line=line),)))
    (case,) = [each for each in found.iter("testcase") if each.get("name") == "drift"]
    assert case.find("failure").get("message") == line
    assert found.get("failures") == "1"


def test_a_limit_has_one_name_judged_or_not(make):
    named = {
        "max_drift": "drift",
        "max_flips": "flips",
        "min_spearman": "spearman",
        "max_map_drift": "map",
        "min_auroc_delta": "auroc",
        "min_speedup": "speedup",
        "max_latency_ms": "latency",
        "max_size_mb": "size",
        "max_memory_mb": "memory",
    }
    limits = Limits(**dict.fromkeys(named, 1.0))
    judged = tuple(Check(name, held=True, line="held") for name in named.values())
    for checks in (judged, ()):
        cases = suite(make.verification(limits=limits, checks=checks)).iter("testcase")
        assert sorted(case.get("name") for case in cases) == sorted(named.values())


def test_the_diagnosis_stands_where_parity_fell_short_and_nowhere_else(make):
    names = ("drift", "repeat", "preprocessing", "size", "memory", "latency", "speedup")
    checks = tuple(Check(name, held=False, line="short") for name in names)
    checks += (Check("flips", held=False, line="cannot be judged", judged=False),)
    diagnosis = Diagnosis("quantised", ("it begins at quantised",), ())
    cases = suite(make.verification(checks=checks, diagnosis=diagnosis)).iter("testcase")
    told = [case.get("name") for case in cases if case.find("failure").text is not None]
    assert told == ["drift", "repeat", "preprocessing"]


def test_says_what_was_verified_and_warned_of(make):
    found = suite(make.verification(warnings=("one", "two"), proven_on="graph"))
    properties = {one.get("name"): one.get("value") for one in found.iter("property")}
    assert properties == {
        "artifact": "artifact",
        "reference": "detector.safetensors",
        "images": "4",
        "drift_unit": "0.5",
        "proven_on": "graph",
        "manifest_sha256": 64 * "a",
        "reference_sha256": 64 * "d",
    }
    assert found.find("system-err").text == "one\ntwo"


@given(name=st.text(st.characters(codec=None), max_size=30))
def test_any_name_of_a_file_gives_xml_that_can_be_read(make, name):
    v = make.verification(source_name=name, warnings=(name,))
    text = junit_xml(v)
    text.encode()
    assert ET.fromstring(text).tag == "testsuites"


@pytest.mark.parametrize("sign", ["\x00", "\x1b", "\ufffe", "\udcff"])
def test_what_xml_cannot_hold_is_replaced(make, sign):
    properties = suite(make.verification(source_name=f"a{sign}b")).iter("property")
    assert "a\ufffdb" in [one.get("value") for one in properties]
