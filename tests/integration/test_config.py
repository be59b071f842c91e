import json
import re
import shutil
import tomllib

import pytest

from vadexport.artifact import open_artifact


@pytest.fixture
def place(checkpoint, images, tmp_path, monkeypatch):
    """A folder with a detector and images, which the commands run in."""
    shutil.copyfile(checkpoint, tmp_path / "d.safetensors")
    (tmp_path / "images").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_build_verify(vadexport, place):
    (place / "line").mkdir()
    made = vadexport("init", "d.safetensors", "-o", "line/vadexport.toml")
    assert (made.status, made.err) == (0, "")
    assert made.out == (
        "line/vadexport.toml: written; next: vadexport build --config line/vadexport.toml\n"
    )
    built = vadexport("build", "--config", "line/vadexport.toml", "-q")
    assert built.status == 0, built.err
    assert str(open_artifact(place / "line" / "artifact").manifest.target) == "openvino:fp32"
    wanting = vadexport("verify", "--config", "line/vadexport.toml")
    assert wanting.status == 2
    assert "missing --images: give it, or images of [verify]" in wanting.err
    text = (place / "line" / "vadexport.toml").read_text(encoding="utf-8")
    changed = text.replace('# images = "images/test"', 'images = "../images"')
    changed = changed.replace("# max_drift = 0.001 ", "max_drift = 0.5 ")
    assert changed.count("\n") == text.count("\n")
    (place / "line" / "vadexport.toml").write_text(changed, encoding="utf-8")
    words = ("verify", "--config", "line/vadexport.toml", "--rounds", "0", "--json")
    verified = vadexport(*words)
    assert verified.status == 0, verified.err
    (found,) = json.loads(verified.out)
    assert len(found["parity"]["images"]) == 16
    assert limit_of(found) == 0.5
    (stricter,) = json.loads(vadexport(*words, "--max-drift", "0.25").out)
    assert limit_of(stricter) == 0.25


def limit_of(found):
    """The number in the line that says which drift was allowed."""
    (line,) = [each["line"] for each in found["parity"]["checks"] if each["name"] == "drift"]
    return float(re.search(r"limit ([\d.e-]+)", line)[1])


def test_a_build_from_a_file_gives_the_bytes_of_one_without(vadexport, place):
    assert vadexport("init", "d.safetensors").status == 0
    words = ("--target", "onnxruntime:fp32", "--calibration", "images/good", "-q")
    assert vadexport("build", "--config", "vadexport.toml", *words).status == 0
    assert vadexport("build", "d.safetensors", "-o", "other", *words).status == 0
    for name in ("manifest.json", "model.onnx"):
        assert (place / "artifact" / name).read_bytes() == (place / "other" / name).read_bytes()


def test_the_size_that_a_file_says_is_the_graphs(vadexport, place):
    words = ("init", "d.safetensors", "--image-size", "120x100", "--json")
    told = json.loads(vadexport(*words).out)
    assert told["written"] == "vadexport.toml"
    assert told["input"]["height"] == 120
    held = tomllib.loads((place / "vadexport.toml").read_text(encoding="utf-8"))
    assert held["source"] == {"location": "d.safetensors", "image_size": [120, 100]}
    built = vadexport(
        *("build", "--config", "vadexport.toml", "--target", "onnxruntime:fp32"),
        *("--input-layout", "float-nchw", "--batch", "2", "-q"),
    )
    assert built.status == 0, built.err
    image_input = open_artifact(place / "artifact").manifest.image_input
    assert image_input.shape == (2, 1, 120, 100)


def test_init_replaces_nothing_unasked(vadexport, place):
    (place / "vadexport.toml").write_text("mine")
    refused = vadexport("init", "d.safetensors")
    assert refused.status == 2
    assert refused.err == (
        "vadexport: error: vadexport.toml is there already: --force replaces it, -o names another\n"
    )
    assert (place / "vadexport.toml").read_text() == "mine"
    assert vadexport("init", "d.safetensors", "--force").status == 0
    assert "location" in (place / "vadexport.toml").read_text()
    assert sorted(path.name for path in place.iterdir()) == [
        "d.safetensors",
        "images",
        "vadexport.toml",
    ]


def test_init_of_what_is_no_detector_writes_nothing(vadexport, place):
    (place / "bad.safetensors").write_bytes(b"")
    for words in (["bad.safetensors"], ["nowhere"], ["d.safetensors", "--camera", "gray"]):
        refused = vadexport("init", *words)
        assert refused.status == 2
        assert len(refused.err.splitlines()) == 1
    assert not (place / "vadexport.toml").exists()


def test_init_into_a_folder_that_is_not_there(vadexport, place):
    refused = vadexport("init", "d.safetensors", "-o", "nowhere/vadexport.toml")
    assert refused.status == 2
    assert "cannot write nowhere/vadexport.toml: No such file or directory" in refused.err
    assert not (place / "nowhere").exists()


@pytest.mark.parametrize("name", ['a "b"\\c.safetensors', "line\nfeed\t.safetensors", "ä €.x"])
def test_names_that_toml_must_escape(vadexport, place, name):
    (place / "d.safetensors").rename(place / name)
    assert vadexport("init", name).status == 0
    refused = vadexport("build", "--config", "vadexport.toml", "--target", "openvino:int8")
    assert "openvino:int8 needs normal images" in refused.err  # the source was found, and read
    assert refused.status == 2


def test_a_name_that_is_no_unicode(vadexport, place):
    (place / "d.safetensors").rename(place / "\udcff.safetensors")
    refused = vadexport("init", "\udcff.safetensors")
    assert refused.status == 2
    assert len(refused.err.splitlines()) == 1
    assert not (place / "vadexport.toml").exists()


def test_inspect_says_all(vadexport, checkpoint, plain):
    shown = dict(
        line.split(None, 1)
        for line in vadexport("inspect", checkpoint, "--image-size", "50x60").out.splitlines()
    )
    assert shown["source"] == checkpoint.name
    assert shown["kind"] == "native"
    assert shown["code"] == "none has run"
    assert shown["family"] == "patchcore"
    assert shown["parameters"] == f"{sum(each.numel() for each in plain.parameters()):,}"
    assert shown["input"] == "uint8, 50×60 pixels, gray"
    assert shown["preprocessing"].startswith("resize to 96×96, bilinear antialiased")
    assert shown["threshold"].startswith(f"raw score {plain.thresholds.image:.4f}")
    assert "openvino:int8" in shown["targets"]


def test_init_has_help_with_an_example(vadexport):
    shown = vadexport("init", "--help")
    assert shown.status == 0
    assert "vadexport init detector.safetensors" in shown.out
