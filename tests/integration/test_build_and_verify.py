"""`build --verify`: both at once."""

import json

import pytest

from tests.integration.refusals import assert_refused

TARGET = ("--target", "onnxruntime:fp32")


def test_what_was_built_is_verified(vadexport, checkpoint, images, tmp_path):
    words = ("build", checkpoint, "-o", tmp_path / "a", *TARGET)
    done = vadexport(*words, "--verify", images)
    assert done.status == 0, done.err
    assert "compiled onnxruntime:fp32" in done.out
    assert "drift unit" in done.out
    assert f"report: {tmp_path / 'a' / 'report' / 'index.html'}" in done.out
    assert (tmp_path / "a" / "report" / "parity.json").is_file()
    found = json.loads(vadexport(*words, "--verify", images, "--json").out)
    assert [one["target"] for one in found["targets"]] == ["onnxruntime:fp32"]
    assert found["targets"][0]["search"] is None
    (verified,) = found["verifications"]
    assert verified["parity"]["held"]
    assert verified["latency"]["speedup"]["ratio"] > 0


def test_images_and_limits_of_the_configuration(vadexport, checkpoint, images, tmp_path):
    config = tmp_path / "vadexport.toml"
    config.write_text(f"""
[source]
location = "{checkpoint}"
[build]
output = "{tmp_path / "a"}"
targets = ["onnxruntime:fp32"]
[verify]
images = "{images}"
[limits]
max_drift = 1e-12
""")
    done = vadexport("build", "--config", config, "--verify")
    assert done.status == 1, done.err
    assert "largest drift" in done.out
    assert "limit 1e-12" in done.out
    assert (tmp_path / "a" / "manifest.json").is_file()


@pytest.mark.parametrize("value", [("no/such/folder",), ()])
def test_images_are_found_before_anything_is_built(vadexport, checkpoint, tmp_path, value):
    done = vadexport("build", checkpoint, "-o", tmp_path / "a", *TARGET, "--verify", *value)
    assert_refused(done, 2, "no/such/folder" if value else "--verify needs IMAGES")
    assert not (tmp_path / "a").exists()


def test_an_artifact_whose_device_is_not_here_stays(vadexport, checkpoint, images, tmp_path):
    target = ("--target", "tensorrt-rtx:fp32@sm86")
    done = vadexport("build", checkpoint, "-o", tmp_path / "a", *target, "--verify", images)
    assert_refused(done, 3, "tensorrt-rtx:fp32@sm86 cannot run here", "--proxy")
    assert (tmp_path / "a" / "manifest.json").is_file()
