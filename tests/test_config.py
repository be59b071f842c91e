import re
import time
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.config import Config, SourceChoices, config_text, location_in, read_config
from vadexport.config.choices import CAMERAS, INTERPOLATIONS
from vadexport.config.reading import LAYOUTS, MAX_BYTES, SCHEMA
from vadexport.config.writing import toml_value
from vadexport.contract import Layout
from vadexport.detectors.steps import CenterCrop, Interpolation, Normalise, Resize, SwapChannels
from vadexport.errors import InputError
from vadexport.images import list_images
from vadexport.images.colouring import save_png
from vadexport.sources import SourceSpec
from vadexport.sources.spec import Camera
from vadexport.targets import Target
from vadexport.verification.limits import Limits

WHOLE = """
[source]
location = "models/d.onnx"
model = "Patchcore"
image_size = [480, 640]
camera = "gray"
outputs = "score=s,map=m"
threshold = 3
pixel_threshold = -0.5
[source.preprocess]
resize = [256, 320]
interpolation = "bicubic"
antialias = false
crop = [224, 224]
mean = [0.5, 0.25, 0]
std = [1, 0.5, 0.25]
colour_order = "bgr"
[calibration]
images = "train"
[build]
output = "out"
targets = ["openvino:int8", "onnxruntime:fp32"]
batch = "dynamic"
input_layout = "float-nchw"
threads = 3
[verify]
images = "/abs/test"
[limits]
max_drift = 1e-3
max_flips = 0
max_map_drift = 0.5
min_speedup = 2
max_latency_ms = 7.5
"""


@pytest.fixture
def read(tmp_path):
    """Read a text as a file in a folder of its own."""

    def read(text):
        path = tmp_path / "vadexport.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_config(path)

    return read


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


# --- what a file says ------------------------------------------------------------------------


def test_every_key(read, tmp_path):
    found = read(WHOLE)
    assert found.source.spec() == SourceSpec(
        location=str(tmp_path / "models" / "d.onnx"),
        model="Patchcore",
        image_size=(480, 640),
        camera="gray",
        steps=(
            Resize((256, 320), "bicubic", antialias=False),
            CenterCrop((224, 224)),
            SwapChannels(),
            Normalise((0.5, 0.25, 0.0), (1.0, 0.5, 0.25)),
        ),
        outputs="score=s,map=m",
        threshold=3.0,
        pixel_threshold=-0.5,
    )
    assert found.calibration == str(tmp_path / "train")
    assert found.verify == "/abs/test"
    assert found.build.output == tmp_path / "out"
    assert found.build.targets == (Target("openvino", "int8"), Target("onnxruntime", "fp32"))
    assert found.build.batch == "dynamic"
    assert found.build.input_layout == "float-nchw"
    assert found.build.threads == 3
    assert found.limits == {
        "max_drift": 1e-3,
        "max_flips": 0,
        "max_map_drift": 0.5,
        "min_speedup": 2,
        "max_latency_ms": 7.5,
    }


def test_that_text_names_every_key_there_is():
    content = tomllib.loads(WHOLE)
    preprocess = content["source"].pop("preprocess")
    held = {**content, "source.preprocess": preprocess}
    assert {name: set(table) for name, table in held.items()} == {
        name: set(table) for name, table in SCHEMA.items()
    }


def test_names_are_those_of_the_parts_that_take_them():
    assert get_args(Camera) == CAMERAS
    assert get_args(Interpolation) == INTERPOLATIONS
    assert get_args(Layout) == LAYOUTS
    assert set(SCHEMA["limits"]) <= {each.name for each in fields(Limits)}


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "[build]\n[limits]\n", b"\xef\xbb\xbf[build]\r\n"]
)
def test_a_file_that_leaves_all_open(read, text):
    assert read(text) == Config()


def test_the_shorter_side_and_a_fixed_batch(read):
    found = read("source.preprocess.resize = 256\nbuild.batch = 8\n")
    assert found.source.resize == 256
    assert found.build.batch == 8


@pytest.mark.parametrize("side", [[3, 5], 7])
def test_what_interpolates_nothing_is_not_antialiased(side):
    size = tuple(side) if isinstance(side, list) else side
    (step,) = SourceChoices("d", resize=size, interpolation="nearest").spec().steps
    assert step == Resize(size, "nearest", antialias=False)


def test_defaults_of_a_resize():
    assert SourceChoices("d", resize=(3, 4)).spec().steps == (
        Resize((3, 4), "bilinear", antialias=True),
    )
    assert SourceChoices("d").spec() == SourceSpec("d")
    assert SourceChoices("d", bgr=False).spec() == SourceSpec("d")


# --- paths -----------------------------------------------------------------------------------


def test_relative_paths_start_from_the_files_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    Path("sub/vadexport.toml").write_text(
        'source.location = "../d"\ncalibration.images = "*.png"\nverify.images = "/x/*.png"\n'
        'build.output = "out"\n'
    )
    found = read_config(Path("sub/vadexport.toml"))
    assert found.source.location == "sub/../d"
    assert found.calibration == "sub/*.png"
    assert found.verify == "/x/*.png"
    assert found.build.output == Path("sub/out")


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    folder = tmp_path / "line[1]"
    (folder / "train").mkdir(parents=True)
    save_png(np.zeros((4, 4, 1), np.uint8), folder / "train" / "a.png")
    for images in ("train", "train/*.png"):
        (folder / "vadexport.toml").write_text(f'calibration.images = "{images}"')
        (found,) = list_images(read_config(folder / "vadexport.toml").calibration)
        assert found.path == folder / "train" / "a.png"


def test_locations_written_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/er")
    (tmp_path / "d.ckpt").write_text("here")
    (tmp_path / "latest.ckpt").symlink_to("d.ckpt")
    for folder in (Path(), Path("deep"), Path("link")):
        inside = location_in(folder, "latest.ckpt")
        assert Path(inside).name == "latest.ckpt"
        assert not Path(inside).is_absolute()
        assert (folder / inside).read_text() == "here"
    assert location_in(Path("deep"), str(tmp_path / "d.ckpt")) == str(tmp_path / "d.ckpt")
    assert location_in(Path("deep"), "python:a.b:c") == "python:a.b:c"


# --- what is refused -------------------------------------------------------------------------


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
        ("limits", "max_latency_ms = '1'", "a number above 0", "'1'"),
        ("build", "batch = 0", BATCH, "0"),
        ("build", "batch = 1025", BATCH, "1025"),
        ("build", "batch = true", BATCH, "true"),
        ("build", "threads = 1.0", "a whole number from 1 to 4096", "1.0"),
        ("build", f"threads = {'9' * 4000}", "a whole number from 1 to 4096", "a huge number"),
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
        ("[bild]", "unknown table [bild]; did you mean build?"),
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
    ],
)
def test_wrong_tables_and_targets(refused, text, said):
    assert refused(text).startswith(said)


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


# --- what is written -------------------------------------------------------------------------

# TOML holds Unicode, which lone surrogates are not.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
FLOATS = st.floats(-1e30, 1e30)
SIZES = st.tuples(st.integers(1, 16384), st.integers(1, 16384))


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text):
    line = f"a = {toml_value(text)}"
    assert line.isprintable()
    assert tomllib.loads(line) == {"a": text}


@settings(max_examples=100, deadline=None)
@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_comes_back(number):
    assert tomllib.loads(f"a = {toml_value(number)}")["a"] == number


@pytest.mark.parametrize("text", ["\udcff", "a\ud800b"])
def test_names_that_are_no_unicode(text):
    with pytest.raises(InputError, match="no Unicode text"):
        toml_value(text)


@st.composite
def choices(draw):
    maybe = lambda strategy: draw(st.none() | strategy)  # noqa: E731
    resize = maybe(SIZES | st.integers(1, 16384))
    normalises = draw(st.booleans())
    three = st.tuples(FLOATS, FLOATS, FLOATS)
    above = st.floats(1e-6, 1e30)
    return SourceChoices(
        location=draw(TEXTS.filter(lambda text: "\0" not in text).map("/{}".format)),
        model=maybe(TEXTS.filter(lambda text: "\0" not in text)),
        image_size=maybe(SIZES),
        camera=maybe(st.sampled_from(CAMERAS)),
        resize=resize,
        interpolation=maybe(st.sampled_from(INTERPOLATIONS)) if resize else None,
        antialias=maybe(st.booleans()) if resize else None,
        crop=maybe(SIZES),
        mean=draw(three) if normalises else None,
        std=draw(st.tuples(above, above, above)) if normalises else None,
        bgr=maybe(st.booleans()),
        outputs=maybe(TEXTS.filter(lambda text: "\0" not in text)),
        threshold=maybe(FLOATS),
        pixel_threshold=maybe(FLOATS),
    )


@settings(max_examples=100, deadline=None)
@given(made=choices(), facts=st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_all_choices_come_back(tmp_path_factory, made, facts):
    path = tmp_path_factory.getbasetemp() / "written.toml"
    text = config_text(
        "vadexport.toml", made, SourceChoices(image_size=(3, 4)), facts, preprocesses=False
    )
    path.write_text(text, encoding="utf-8")
    found = read_config(path)
    # A path may come back without what means nothing in it, such as a slash at its end.
    assert Path(found.source.location) == Path(made.location)
    assert replace(found.source, location=None) == replace(made, location=None)
    assert found.build.targets == (Target("openvino", "fp32"),)
    assert found.build.output == path.parent / "artifact"
    assert (found.build.batch, found.build.input_layout) == (1, "nhwc")


def test_every_example_in_the_comments_is_one_the_reader_takes(read):
    text = config_text(
        "v.toml", SourceChoices("d"), SourceChoices(camera="gray"), {}, preprocesses=False
    )
    live = re.sub(r"^# (\[?[a-z_.]+(\]| = ))", r"\1", text, flags=re.MULTILINE)
    found = tomllib.loads(live)
    assert set(found) == {"source", "calibration", "build", "verify", "limits"}
    assert set(found["source"]["preprocess"]) == set(SCHEMA["source.preprocess"])
    for table in ("calibration", "build", "verify", "limits"):
        assert set(found[table]) == set(SCHEMA[table])
    assert read(live).source.camera == "gray"


def test_commands_in_the_comments_say_what_may_run_code():
    trusted = SourceChoices("a.ckpt", trust_pickle=True)
    shown = config_text("my file.toml", trusted, SourceChoices(), {}, preprocesses=False)
    assert "#   vadexport build --config 'my file.toml' --trust-pickle\n" in shown
    code = config_text(
        "v.toml", SourceChoices("python:a.b:c"), SourceChoices(), {}, preprocesses=False
    )
    assert "#   vadexport build python:a.b:c --config v.toml\n" in code
    assert "#   vadexport verify --reference python:a.b:c --config v.toml\n" in code
    assert "location" not in tomllib.loads(code)["source"]


def test_the_example_of_preprocessing_is_for_those_that_bring_none():
    def text(choices, *, preprocesses):
        return config_text("v", choices, SourceChoices(), {}, preprocesses=preprocesses)

    bare = SourceChoices("d")
    assert "# [source.preprocess]" in text(bare, preprocesses=False)
    assert "[source.preprocess]" not in text(bare, preprocesses=True)
    given = text(replace(bare, crop=(3, 4)), preprocesses=False)
    assert "# [source.preprocess]" not in given
    assert tomllib.loads(given)["source"]["preprocess"] == {"crop": [3, 4]}


# --- flags before the file -------------------------------------------------------------------


def test_choices_go_before_others_one_by_one():
    stored = SourceChoices("file", resize=(2, 2), antialias=True, bgr=True, threshold=1.0)
    flags = SourceChoices(antialias=False, threshold=0.0, trust_pickle=True)
    assert flags.over(stored) == SourceChoices(
        "file", resize=(2, 2), antialias=False, bgr=True, threshold=0.0, trust_pickle=True
    )
    assert SourceChoices().over(stored) == stored
    assert flags.over(SourceChoices()) == flags


def test_a_choice_that_needs_another():
    with pytest.raises(InputError, match=r"^--no-antialias means nothing without --resize"):
        SourceChoices("d", antialias=False).spec()
    with pytest.raises(InputError, match=r"^--mean means nothing without --std"):
        SourceChoices("d", mean=(0.0, 0.0, 0.0)).spec()
    with pytest.raises(InputError, match="name a source"):
        SourceChoices().spec()
