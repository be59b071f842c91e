import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.config import Config, read_config
from vadexport.config.choices import CAMERAS, INTERPOLATIONS
from vadexport.config.reading import LAYOUTS, MAX_BYTES, SCHEMA
from vadexport.config.writing import toml_value
from vadexport.errors import InputError


@pytest.fixture
def refused(read, tmp_path):
    """The line of error, from behind the file's name."""

    def refused(text):
        with pytest.raises(InputError) as caught:
            read(text)
        line = str(caught.value)
        assert "\n" not in line
        return line.removeprefix(str(tmp_path / "vadexport.toml")).lstrip(": ")

    return refused


TEXT = "a text that is not empty"
SIZE = "height and width from 1 to 16384, such as [480, 640]"
RESIZE = "height and width, such as [256, 256], or the shorter side, from 1 to 16384"
BATCH = 'a whole number from 1 to 1024, or "dynamic"'
TARGETS = 'a list of targets, such as ["openvino:fp32"]'


@pytest.mark.parametrize(
    ("table", "line", "wanted", "shown"),
    [
        ("source", "location = ''", TEXT, "''"),
        ("source", r'location = "a\u0000"', TEXT, r"'a\x00'"),
        ("calibration", "images = ['a']", TEXT, "['a']"),
        ("verify", "images = {a = 1}", TEXT, "a table"),
        ("source", "camera = 'bgr'", '"rgb" or "gray" or "gray16"', "'bgr'"),
        ("source", "image_size = 256", SIZE, "256"),
        ("source", "image_size = [0, 1]", SIZE, "[0, 1]"),
        ("source", "image_size = [1, 16385]", SIZE, "[1, 16385]"),
        ("source.preprocess", "resize = [1.0, 2]", RESIZE, "[1.0, 2]"),
        ("source.preprocess", "resize = 0", RESIZE, "0"),
        ("source.preprocess", "crop = [1]", SIZE, "[1]"),
        ("source.preprocess", "antialias = 1", "true or false", "1"),
        (
            *("source.preprocess", "std = [1, 1, 0]"),
            *("three numbers above 0, such as [0.485, 0.456, 0.406]", "[1, 1, 0]"),
        ),
        (
            *("source.preprocess", "mean = [0, nan, 0]"),
            *("three numbers, such as [0.485, 0.456, 0.406]", "[0, nan, 0]"),
        ),
        ("source", "threshold = nan", "a number", "nan"),
        ("source", "threshold = 1e39", "a number", "1e+39"),
        ("source", "threshold = true", "a number", "true"),
        ("source", "threshold = 2024-01-01", "a number", "a date or time"),
        ("limits", "max_drift = nan", "a number of at least 0", "nan"),
        ("limits", "max_drift = inf", "a number of at least 0", "inf"),
        ("limits", f"max_drift = '{'y' * 50}'", "a number of at least 0", f"'{'y' * 38}…"),
        ("limits", "max_map_drift = -1", "a number of at least 0", "-1"),
        ("limits", "max_flips = 1.5", "a number from 0 to 1", "1.5"),
        ("limits", "min_speedup = 0", "a number above 0", "0"),
        ("limits.int8", "max_flips = 2", "a number from 0 to 1", "2"),
        ("limits", "max_latency_ms = '1'", "a number above 0", "'1'"),
        ("build", "batch = 0", BATCH, "0"),
        ("build", "batch = 1025", BATCH, "1025"),
        ("build", "batch = true", BATCH, "true"),
        ("build", "threads = 1.0", "a whole number from 1 to 4096", "1.0"),
        ("build", f"threads = {'9' * 4000}", "a whole number from 1 to 4096", "a huge number"),
        ("build", "search_minutes = 0", "a number above 0", "0"),
        ("build", "search_minutes = '10'", "a number above 0", "'10'"),
        ("build", "no_pass = 'a'", "a list of texts that are not empty", "'a'"),
        ("build", "no_pass = [1]", "a list of texts that are not empty", "[1]"),
        ("build", "approximate = 0", "true, false or a number above 0", "0"),
        ("build", "approximate = 'yes'", "true, false or a number above 0", "'yes'"),
        ("build", "input_layout = 'nchw'", '"nhwc" or "float-nchw"', "'nchw'"),
        ("build", "targets = 'a'", TARGETS, "'a'"),
        ("build", "targets = []", TARGETS, "[]"),
        ("build", "targets = [1]", TARGETS, "[1]"),
    ],
)
def test_a_value_of_another_kind(refused, table, line, wanted, shown):
    key = line.partition(" = ")[0]
    said = refused(f"[{table}]\n{line}")
    assert said == f"[{table}] {key} must be {wanted}, not {shown}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[build]\ntaregts = []", "unknown key 'taregts' in [build]; did you mean targets?"),
        ("[verify]\nzzz = 1", "unknown key 'zzz' in [verify]; known here: images"),
        ("[build.x]", "unknown key 'x' in [build]; known here: output, targets, batch, "),
        ("verify.max_drift = 1", "unknown key 'max_drift' in [verify]: it belongs into [limits]"),
        ("treads = 1", "unknown key 'treads' before any table; did you mean threads?"),
        ("batch = 1", "unknown key 'batch' before any table: it belongs into [build]"),
        ("source.preprocess.meen = 1", "unknown key 'meen' in [source.preprocess]; did you mean"),
        ("[limits.int4]", "unknown key 'int4' in [limits]; did you mean int8?"),
        ("[bild]", "unknown table [bild]; did you mean build?"),
        ("[build.tensorrt]\nfp16 = true", "unknown key 'fp16' in [build.tensorrt]; known here: "),
        ("[x]", "unknown table [x]; known here: source, calibration, build, verify, limits"),
    ],
)
def test_an_unknown_name(refused, text, said):
    assert refused(text).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("source = 1", "[source] must be a table, not 1"),
        ("source.preprocess = []", "[source.preprocess] must be a table, not []"),
        ("[[limits]]", "[limits] must be a table, not [{}]"),
        ("build.targets = ['openvino:fp8']", "[build] targets: unknown target 'openvino:fp8'; "),
        (
            "build.targets = ['openvino:fp32', 'openvino:fp32']",
            "[build] targets: name each target once",
        ),
        ("build.tensorrt = 1", "[build.tensorrt] must be a table, not 1"),
    ],
)
def test_wrong_tables_and_targets(refused, text, said):
    assert refused(text).startswith(said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("level = 6", "tensorrt level 6 is outside 0 … 5"),
        (f"level = 0x{'f' * 5000}", "tensorrt level is a huge number"),
        ("batches = [1, 2]", "tensorrt batches [1, 2] are not three numbers"),
        ("batches = [3, 2, 1]", "tensorrt batches (3, 2, 1) are not smallest"),
        ("tf32 = 'yes'", "tensorrt tf32 'yes' is neither true nor false"),
        ("timing_cache = 1", "tensorrt timing_cache 1 is no path"),
        ("time_limit_s = 0.5", "tensorrt time_limit_s 0.5 is no whole number"),
    ],
)
def test_wrong_settings_of_tensorrt(refused, line, said):
    key = line.partition(" = ")[0]
    told = refused(f"[build.tensorrt]\n{line}")
    assert told.startswith(f"[build.tensorrt] {key}: {said}")


@pytest.mark.parametrize(
    ("line", "needed"),
    [
        ("mean = [0, 0, 0]", "std"),
        ("std = [1, 1, 1]", "mean"),
        ("antialias = true", "resize"),
        ("interpolation = 'nearest'", "resize"),
    ],
)
def test_a_key_that_needs_another(refused, line, needed):
    key = line.partition(" = ")[0]
    said = refused(f"[source.preprocess]\n{line}")
    assert said == f"[source.preprocess] {key} means nothing without {needed}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[build]\nx y = 1", " is not TOML: Expected '=' after a key "),
        ("[build]\n[build]", " is not TOML: Cannot declare ('build',) twice (at line 2, column 7)"),
        (b"# \xff", " is not UTF-8 text (at byte 3)"),
        ("a = " + "9" * 5000, " is no vadexport.toml: a number has too many digits"),
        ("a = " + "[" * 5000, " is no vadexport.toml: its lists are nested too deep"),
        ("#" * (MAX_BYTES + 1), " is no vadexport.toml: it has more than 64 KiB"),
    ],
)
def test_what_is_no_such_file(refused, content, said):
    assert refused(content).startswith(said.strip())


def test_the_line_of_what_is_no_toml(refused):
    assert refused("[build]\nx y = 1").endswith("(at line 2, column 3)")


@pytest.mark.parametrize("value", ["true", "false", "'yes'"])
def test_a_file_cannot_have_itself_trusted(refused, value):
    assert refused(f"source.trust_pickle = {value}") == (
        "[source] trust_pickle is not taken from a file, which could then have its own code run: "
        "give --trust-pickle on the command line"
    )


def test_a_file_cannot_name_code_to_run(refused):
    assert refused("source.location = 'python:os:getcwd'") == (
        "[source] location names code to run, which is not taken from a file: give SOURCE "
        "python:os:getcwd on the command line"
    )


def test_a_file_that_is_as_large_as_may_be(read):
    assert read("#" * MAX_BYTES) == Config()


def test_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match=r"^cannot read .*nowhere: No such file or directory$"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"^cannot read .*: Is a directory$"):
        read_config(tmp_path)
    start = time.monotonic()
    with pytest.raises(InputError, match="more than 64 KiB"):
        read_config(Path("/dev/zero"))
    assert time.monotonic() - start < 10


VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from([*CAMERAS, *LAYOUTS, *INTERPOLATIONS, "dynamic", "openvino:fp32"]),
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
KEYS = st.sampled_from([(table, key) for table, keys in SCHEMA.items() for key in keys])


@settings(max_examples=150, deadline=None)
@given(key=KEYS, value=VALUES)
def test_any_value_is_taken_or_refused_in_words(tmp_path_factory, key, value):
    table, name = key
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(f"[{table}]\n{name} = {written(value)}\n", encoding="utf-8")
    found, line = Config(), ""
    try:
        found = read_config(path)
    except InputError as error:
        line = str(error)
    assert "\n" not in line
    assert (name in line) != (found != Config())


def written(value):
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return toml_value(value)
