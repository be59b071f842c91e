import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.config import SourceChoices, config_text, read_config
from vadexport.config.choices import CAMERAS, INTERPOLATIONS
from vadexport.config.reading import SCHEMA
from vadexport.config.writing import toml_value
from vadexport.errors import InputError
from vadexport.targets import Target

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
    live = re.sub(r"^# (\[?[a-z0-9_.]+(\]| = ))", r"\1", text, flags=re.MULTILINE)
    found = tomllib.loads(live)
    assert set(found) == {"source", "calibration", "build", "verify", "limits"}
    assert set(found["source"]["preprocess"]) == set(SCHEMA["source.preprocess"])
    assert set(found["build"].pop("tensorrt")) < set(SCHEMA["build.tensorrt"])
    assert found["limits"].pop("int8") == {"max_drift": 0.5}
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
