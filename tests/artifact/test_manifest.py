import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vadexport.artifact import CalibrationEntry, FileEntry, Manifest
from vadexport.contract import OUTPUT_NAMES, ImageInput
from vadexport.errors import InputError
from vadexport.targets import Target
from vadexport.thresholds import Thresholds

texts = st.text(max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
paths = st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5}){0,2}\.[a-z]{3}", fullmatch=True)
digests = st.from_regex("[0-9a-f]{64}", fullmatch=True)
manifests = st.builds(
    Manifest,
    target=st.sampled_from(
        [Target("openvino", "fp32"), Target("tensorrt-rtx", "fp16", "sm86+sm89")]
    ),
    image_input=st.builds(
        ImageInput,
        st.integers(1, 16384),
        st.integers(1, 16384),
        st.sampled_from([1, 3]),
        st.none() | st.integers(1, 1024),
        layout=st.sampled_from(["nhwc", "float-nchw"]),
    ),
    outputs=st.sampled_from([OUTPUT_NAMES, OUTPUT_NAMES[:2], OUTPUT_NAMES[:4]]),
    map_size=st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    source=st.dictionaries(texts, texts),
    options=st.dictionaries(texts, texts | numbers | st.lists(st.integers())),
    thresholds=st.none()
    | st.builds(
        Thresholds,
        *[numbers] * 4,
        rule=texts,
        label_above=st.none() | numbers,
        normalises=st.booleans(),
    ),
    drift_unit=st.floats(1e-9, 1e9),
    drift_unit_from=texts,
    precision=st.dictionaries(texts, texts),
    calibration=st.none()
    | st.builds(
        CalibrationEntry,
        digests,
        st.integers(0),
        st.lists(st.from_regex("[0-9a-f]{16}", fullmatch=True), max_size=3).map(tuple),
    ),
    parity=st.lists(
        st.fixed_dictionaries(
            {"rung": texts, "held": st.booleans(), "spearman": st.none() | numbers}
        )
    ),
    proven_on=st.sampled_from(["artifact", "graph"]),
    tools=st.dictionaries(texts, texts),
    processor=texts,
    files=st.dictionaries(paths, st.builds(FileEntry, digests, st.integers(0))),
)


def _sealed(value):
    """Entries that were changed, with a digest that fits them."""
    del value["manifest_sha256"]
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    whole = {**value, "manifest_sha256": digest}
    return json.dumps(whole, indent=2, sort_keys=True) + "\n"


@given(manifest=manifests)
@settings(deadline=None, max_examples=50)
def test_what_is_written_is_read_again(manifest):
    text = manifest.to_json()
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text).to_json() == text


def test_text_is_json_with_the_contract_in_it(manifest):
    value = json.loads(manifest.to_json())
    assert value["schema_version"] == 1
    assert value["target"] == "openvino:int8"
    assert value["graph"] == {
        "input": {
            "name": "image",
            "dtype": "uint8",
            "camera_dtype": "uint8",
            "layout": "NHWC",
            "height": 300,
            "width": 280,
            "channels": 1,
            "batch": None,
        },
        "outputs": list(OUTPUT_NAMES),
        "map_size": [256, 240],
    }
    assert value["files"] == {"model.xml": {"sha256": "0" * 64, "size": 5}}


def test_order_of_entries_does_not_show(manifest):
    backwards = replace(
        manifest,
        source=dict(reversed(manifest.source.items())),
        tools=dict(reversed(manifest.tools.items())),
    )
    assert backwards.to_json() == manifest.to_json()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_figures_that_are_not_finite_are_never_written(manifest, wrong):
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(manifest, drift_unit=wrong).to_json()


class TestRefused:
    @pytest.mark.parametrize(("old", "new"), [('"image": 1.5', '"image": 1.6'), ("Some", "some")])
    def test_a_changed_entry(self, manifest, old, new):
        text = manifest.to_json()
        assert text.count(old) == 1
        with pytest.raises(InputError, match=r"manifest\.json was changed after it was built"):
            Manifest.from_json(text.replace(old, new))

    @pytest.mark.parametrize(("old", "new"), [("\n", " "), ("1.5", "1.50"), ("S", "\\u0053")])
    def test_the_same_entries_in_another_spelling(self, manifest, old, new):
        text = manifest.to_json()
        assert json.loads(text) == json.loads(text.replace(old, new, 1))
        with pytest.raises(InputError, match=r"manifest\.json was changed after it was built"):
            Manifest.from_json(text.replace(old, new, 1))

    def test_one_without_its_digest(self, manifest):
        value = json.loads(manifest.to_json())
        del value["manifest_sha256"]
        with pytest.raises(InputError, match="was changed after it was built"):
            Manifest.from_json(json.dumps(value))

    @pytest.mark.parametrize(
        "text", ["", "{", "no JSON", "{]", "[" * 100_000, "1" * 5000, '{"a": 1', "\x00"]
    )
    def test_no_json(self, text):
        with pytest.raises(InputError, match=r"manifest\.json is no JSON"):
            Manifest.from_json(text)

    @pytest.mark.parametrize("text", ["[]", "null", "1", '"text"', "{}", '{"target": 1}'])
    def test_json_of_something_else(self, text):
        with pytest.raises(InputError, match="has no schema_version"):
            Manifest.from_json(text)

    @pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
    def test_another_schema_version(self, manifest, version):
        value = {**json.loads(manifest.to_json()), "schema_version": version}
        with pytest.raises(InputError, match=r"has schema version .*, this vadexport reads 1"):
            Manifest.from_json(json.dumps(value))

    @pytest.mark.parametrize(
        "place",
        [
            *("target", "graph", "graph.input", "graph.input.height", "graph.map_size", "source"),
            *("thresholds", "thresholds.image", "thresholds.rule", "drift_unit", "precision"),
            *("drift_unit_from", "calibration", "parity", "tools", "processor", "files"),
            *("files.model~xml.sha256", "files.model~xml.size"),
        ],
    )
    def test_a_missing_entry_is_named(self, manifest, place):
        value = json.loads(manifest.to_json())
        *folders, last = (part.replace("~", ".") for part in place.split("."))
        inner = value
        for folder in folders:
            inner = inner[folder]
        del inner[last]
        with pytest.raises(InputError, match=last):
            Manifest.from_json(_sealed(value))

    @pytest.mark.parametrize(
        "name",
        [
            "../x",
            "a/../../x",
            "..",
            "/etc/passwd",
            "//x",
            "C:\\x",
            "a\\..\\x",
            "",
            ".",
        ],
    )
    def test_a_file_outside_the_artifact(self, manifest, name):
        text = replace(manifest, files={name: FileEntry("0", 1)}).to_json()
        with pytest.raises(InputError, match="names a file outside the artifact"):
            Manifest.from_json(text)

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            ("target", "openvino:int4"),
            ("target", 5),
            ("graph", []),
            ("graph.map_size", [1]),
            ("graph.map_size", ["wide", 1]),
            ("graph.map_size", [float("inf"), 1]),
            ("graph.map_size", 7),
            ("graph.input.channels", 2),
            ("drift_unit", "much"),
            ("drift_unit", None),
            ("thresholds", []),
            ("source", 5),
            ("parity", 5),
            ("tools", "torch"),
            ("files", []),
            ("files.model~xml", []),
            ("files.model~xml.size", "large"),
            ("files.model~xml.size", float("inf")),
            ("files.model~xml.size", -1),
            ("files.model~xml.sha256", "ab"),
            ("drift_unit", 0),
            ("drift_unit", True),
            ("graph.map_size", [0, 4]),
            ("graph.map_size", ["4", 4]),
            ("thresholds.image", "1.5"),
            ("thresholds.rule", 5),
            ("source.name", 5),
            ("tools.torch", None),
            ("processor", ["a"]),
            ("calibration", "none"),
            ("calibration.seed", "0"),
            ("calibration.image_digests", ["x"]),
            ("calibration.sha256", 5),
            ("parity", [5]),
            ("parity", [{"rung": "traced", "held": 1}]),
            ("parity", [{"rung": "traced", "held": True, "drift_max": "1"}]),
        ],
    )
    def test_a_value_of_another_type(self, manifest, place, value):
        whole = json.loads(manifest.to_json())
        *folders, last = (part.replace("~", ".") for part in place.split("."))
        inner = whole
        for folder in folders:
            inner = inner[folder]
        inner[last] = value
        with pytest.raises(InputError):
            Manifest.from_json(_sealed(whole))

    @given(
        key=st.sampled_from(
            [
                *("target", "graph", "source", "thresholds", "drift_unit", "drift_unit_from"),
                *("precision", "calibration", "parity", "tools", "processor", "files"),
            ]
        ),
        wrong=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
            max_leaves=5,
        ),
    )
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_value_is_read_or_refused_in_one_line(self, manifest, key, wrong):
        text = _sealed({**json.loads(manifest.to_json()), key: wrong})
        try:
            Manifest.from_json(text)
        except InputError as error:
            refusal = str(error)
        else:
            refusal = "none"
        assert len(refusal.splitlines()) == 1
