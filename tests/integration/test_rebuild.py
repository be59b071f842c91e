"""A build into a folder that holds an earlier one."""

import shutil

import pytest

from tests.integration.refusals import assert_refused

BOTH = ("--target", "openvino:fp32", "--target", "onnxruntime:fp32")


@pytest.fixture
def earlier(artifacts, tmp_path):
    """A build of two targets."""
    folder = tmp_path / "earlier"
    for name in ("openvino-fp32", "onnxruntime-fp32"):
        shutil.copytree(artifacts / name, folder / name)
    return folder


def tree(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_target_that_cannot_be_built_keeps_its_old_artifact(
    vadexport, checkpoint, earlier, monkeypatch
):
    before = tree(earlier / "openvino-fp32")
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    built = vadexport("build", checkpoint, "-o", earlier, *BOTH)
    assert built.status == 3
    assert "openvino-fp32 is still the one of an earlier build" in built.err
    assert tree(earlier / "openvino-fp32") == before
    assert (earlier / "onnxruntime-fp32" / "manifest.json").is_file()


@pytest.mark.parametrize("targets", [BOTH[:2], ("--target", "onnxruntime:fp32")])
def test_artifacts_of_other_targets_are_not_removed(vadexport, checkpoint, earlier, targets):
    before = tree(earlier)
    result = vadexport("build", checkpoint, "-o", earlier, *targets)
    assert_refused(result, 2, "would remove", "onnxruntime-fp32, openvino-fp32")
    assert tree(earlier) == before


def test_normal_images_of_another_size_are_noticed_wherever_they_lie(
    vadexport, checkpoint, images, tmp_path
):
    from PIL import Image

    mixed = tmp_path / "mixed"
    shutil.copytree(images / "good", mixed)
    Image.new("L", (50, 40)).save(mixed / "zzz.png")
    result = vadexport("build", checkpoint, "-o", tmp_path / "a", "--calibration", mixed)
    assert_refused(result, 2, "differ in size")
    for path in mixed.glob("[0-9]*.png"):
        path.unlink()
    result = vadexport("build", checkpoint, "-o", tmp_path / "a", "--calibration", mixed)
    assert_refused(result, 2, "the normal images are 40x50, the detector takes 96x96")
