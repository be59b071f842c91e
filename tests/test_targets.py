import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vadexport.errors import InputError
from vadexport.targets import PRECISIONS, Target, all_targets


@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_what_is_written_is_read_again(target):
    assert Target.parse(str(target)) == target


def test_all_targets_are_those_of_the_table():
    written = [f"{b}:{p}" for b, precisions in PRECISIONS.items() for p in precisions]
    assert [str(target) for target in all_targets()] == written
    assert "openvino:int8" in written


def test_folders_of_a_build_are_distinct_plain_names():
    folders = [target.folder for target in all_targets()]
    assert len(set(folders)) == len(folders)
    assert all(set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for folder in folders)


@given(st.text(max_size=30))
@example("openvino")
@example("openvino:")
@example(":int8")
@example("openvino:int8 ")
@example("openvino:int8\n")
@example(" openvino:int8")
@example("OpenVINO:int8")
@example("openvino:INT8")
@example("openvino:int8:int8")
@example("openvino:int8@sm86")
@example("openvino:fp16")
@example("tensorrt:fp32")
@example("tensorrt-rtx:fp16@sm86")
@example("tensorrt")
def test_anything_else_is_refused_in_one_line_that_lists_the_targets(text):
    if text in map(str, all_targets()):
        return
    with pytest.raises(InputError, match="openvino:int8, onnxruntime:fp32") as caught:
        Target.parse(text)
    assert repr(text) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_typing_error_and_an_unknown_target_are_told_apart():
    with pytest.raises(InputError, match="not of the form backend:precision"):
        Target.parse("openvino/int8")
    with pytest.raises(InputError, match="unknown target 'openvino:fp64'"):
        Target.parse("openvino:fp64")


@pytest.mark.parametrize("text", ["tensorrt-rtx:fp16@sm86", "tensorrt:fp16", "tensorrt"])
def test_tensorrt_is_not_here_yet(text):
    with pytest.raises(InputError, match=r"TensorRT targets .* not available in this version yet"):
        Target.parse(text)
    with pytest.raises(InputError, match="not of the form"):
        Target.parse(f"x{text}@")
