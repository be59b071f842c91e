import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadexport.backends.tensorrt.settings import DEFAULT_SETTINGS, TensorRTSettings
from vadexport.errors import InputError

BATCHES = st.lists(st.integers(1, 1024), min_size=3, max_size=3).map(sorted).map(tuple)
SETTINGS = st.builds(
    TensorRTSettings,
    batches=BATCHES,
    workspace_mb=st.none() | st.integers(1, 1 << 20),
    level=st.none() | st.integers(0, 5),
    tf32=st.booleans(),
    timing_cache=st.none() | st.from_regex(r"[a-z]{1,9}", fullmatch=True).map(Path),
    version_compatible=st.booleans(),
    hardware_compatible=st.booleans(),
    time_limit_s=st.integers(1, 86400),
)


def as_toml(value):
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def as_text(value):
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    return str(value).lower()


@given(settings=SETTINGS)
@pytest.mark.parametrize("written", [as_toml, as_text])
def test_what_is_written_is_read_again(written, settings):
    values = {name: getattr(settings, name) for name in vars(settings)}
    given_values = {name: written(value) for name, value in values.items() if value is not None}
    assert TensorRTSettings.of(given_values) == settings


def test_none_given_are_the_defaults():
    assert TensorRTSettings.of({}) == DEFAULT_SETTINGS == TensorRTSettings()
    assert not DEFAULT_SETTINGS.tf32  # float32 shall mean float32


@given(settings=SETTINGS)
def test_what_shaped_an_engine_is_json_without_paths_and_times(settings):
    found = json.loads(json.dumps(settings.to_json()))
    fields = {field.name for field in dataclasses.fields(TensorRTSettings)}
    assert set(found) == fields - {"timing_cache", "time_limit_s"}
    assert found["batches"] == list(settings.batches)
    assert found["tf32"] is settings.tf32


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("batches", "0:1:2", r"batches (0, 1, 2) are not smallest, usual and largest"),
        ("batches", "4:2:8", r"batches (4, 2, 8) are not smallest, usual and largest"),
        ("batches", "1:9:8", r"batches (1, 9, 8) are not"),
        ("batches", "1:1:1025", "from 1 to 1024"),
        ("batches", "1:2", "'1:2' are not three numbers"),
        ("batches", "8", "'8' are not three numbers"),
        ("batches", "", "'' are not three numbers"),
        ("batches", "1:2:3:4", "are not three numbers"),
        ("batches", [1, 2], "are not three numbers"),
        ("batches", 8, "8 are not three numbers"),
        ("batches", "1:x:3", "'x' is no whole number"),
        ("batches", [1, 2.5, 3], "2.5 is no whole number"),
        ("batches", [1, True, 3], "True is no whole number"),
        ("workspace_mb", 0, "workspace_mb 0 is outside 1 … 1048576"),
        ("workspace_mb", -5, "is outside 1 …"),
        ("workspace_mb", (1 << 20) + 1, "is outside 1 …"),
        ("workspace_mb", "many", "'many' is no whole number"),
        ("workspace_mb", "1e3", "'1e3' is no whole number"),
        ("workspace_mb", 1.0, "1.0 is no whole number"),
        ("level", 6, "level 6 is outside 0 … 5"),
        ("level", -1, "level -1 is outside 0 … 5"),
        ("level", False, "False is no whole number"),
        ("level", None, "None is no whole number"),
        ("level", 1 << 20000, "level is a huge number"),
        ("level", "9" * 5000, "no whole number"),
        ("tf32", "True", "'True' is neither true nor false"),
        ("tf32", 1, "1 is neither true nor false"),
        ("tf32", "", "'' is neither true nor false"),
        ("timing_cache", "", "'' is no path"),
        ("timing_cache", 3, "3 is no path"),
        ("time_limit_s", 0, "time_limit_s 0 is outside 1 … 86400"),
        ("time_limit_s", 86401, "is outside 1 … 86400"),
        ("fp16", True, "unknown tensorrt setting 'fp16'; known: batches, workspace_mb, level"),
        ("", "", "unknown tensorrt setting ''"),
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) else "number",
)
def test_what_is_wrong_is_said_in_one_line(name, value, fault):
    with pytest.raises(InputError) as caught:
        TensorRTSettings.of({name: value})
    text = str(caught.value)
    assert fault in text
    assert "tensorrt" in text
    assert len(text.splitlines()) == 1


@given(
    name=st.sampled_from([field.name for field in dataclasses.fields(TensorRTSettings)]),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.integers() | st.text(max_size=3), max_size=4),
)
def test_any_value_is_taken_or_refused(name, value):
    line = ""
    try:
        found = TensorRTSettings.of({name: value})
    except InputError as error:
        line = str(error)
    else:
        assert isinstance(getattr(found, name), (int, tuple, Path))
    assert (f"tensorrt {name} " in line) == bool(line)
