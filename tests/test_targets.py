from itertools import chain

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vadexport.errors import InputError
from vadexport.targets import COMPUTE_CAPABILITIES, PRECISIONS, Target, all_targets

ORDERED_GENERATIONS = [
    "+".join(each for number, each in enumerate(COMPUTE_CAPABILITIES) if chosen >> number & 1)
    for chosen in range(2 ** len(COMPUTE_CAPABILITIES))
]
VALID = [
    *(
        Target(backend, p)
        for backend in ("openvino", "onnxruntime")
        for p in ("fp32", "int8", "auto")
    ),
    Target("openvino", "int8", "avx2"),
    *(Target("onnxruntime", p, "cuda") for p in ("fp32", "fp16", "int8")),
    *(Target("tensorrt", p) for p in ("fp32", "fp16", "int8", "auto")),
    *(
        Target("tensorrt-rtx", p, device)
        for p in ("fp32", "fp16", "int8", "auto")
        for device in ORDERED_GENERATIONS
    ),
]


@given(target=st.sampled_from(VALID))
def test_what_is_written_is_read_again(target):
    assert Target.parse(str(target)) == target


def test_all_targets_are_those_of_the_table_and_those_of_devices():
    written = [f"{b}:{p}" for b, precisions in PRECISIONS.items() for p in precisions]
    known = [str(target) for target in all_targets()]
    assert [name for name in known if "@" not in name] == written
    assert [name for name in known if "@" in name] == [
        "openvino:int8@avx2",
        *(f"onnxruntime:{precision}@cuda" for precision in ("fp32", "fp16", "int8")),
    ]
    assert set(all_targets()) < set(VALID)


def test_folders_of_a_build_are_distinct_plain_names():
    folders = [target.folder for target in VALID]
    assert len(set(folders)) == len(folders)
    assert all(set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for folder in folders)


def test_those_on_a_gpu():
    on_gpu = {str(target) for target in all_targets() if target.on_gpu}
    on_processor = {
        f"{backend}:{precision}"
        for backend in ("openvino", "onnxruntime")
        for precision in ("fp32", "int8", "auto")
    }
    on_processor.add("openvino:int8@avx2")
    assert on_gpu == set(map(str, all_targets())) - on_processor
    assert Target.parse("tensorrt-rtx:auto@sm86").on_gpu


def test_those_whose_layers_a_search_chooses():
    mixed = {str(target) for target in VALID if target.mixed}
    assert mixed == {"openvino:auto", "onnxruntime:auto"}
    assert not Target.parse("tensorrt:auto").mixed  # one precision for all layers
    assert Target.parse("openvino:auto").folder == "openvino-auto"


class TestGenerations:
    @given(generations=st.lists(st.sampled_from(COMPUTE_CAPABILITIES), min_size=1, unique=True))
    def test_stand_in_their_own_order_however_they_are_given(self, generations):
        found = Target.parse(f"tensorrt-rtx:fp16@{'+'.join(generations)}")
        numbers = [int(each.removeprefix("sm")) for each in found.device.split("+")]
        assert numbers == sorted(int(each.removeprefix("sm")) for each in generations)

    @pytest.mark.parametrize(
        ("device", "fault"),
        [
            ("sm87", "names sm87"),
            ("sm86+sm90", "names sm90"),
            ("cuda", "names cuda"),
            ("sm86+sm89+sm86", "names a GPU generation twice"),
            ("sm86+", "names "),
            ("+sm86", "names "),
            ("+", "names "),
            ("86", "names 86"),
        ],
    )
    def test_that_are_not_known_or_named_twice(self, device, fault):
        with pytest.raises(InputError) as caught:
            Target.parse(f"tensorrt-rtx:int8@{device}")
        text = str(caught.value)
        assert text.startswith(f"target 'tensorrt-rtx:int8@{device}' {fault}:")
        assert ", ".join(COMPUTE_CAPABILITIES) in text
        assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "openvino:fp32@cuda",
        "openvino:int8@sm86",
        "onnxruntime:fp32@sm86",
        "onnxruntime:fp32@cpu",
        "onnxruntime:fp16",
        "onnxruntime:auto@cuda",
        "openvino:auto@cuda",
        "tensorrt-rtx:bf16",
    ],
)
def test_a_device_or_precision_that_the_backend_does_not_have(text):
    with pytest.raises(InputError, match=f"unknown target '{text}'; known targets: openvino:fp32"):
        Target.parse(text)


@pytest.mark.parametrize("text", ["tensorrt:fp16@sm86", "tensorrt:auto@sm86", "tensorrt:fp9@cuda"])
def test_tensorrt_builds_for_the_gpu_at_hand(text):
    with pytest.raises(InputError, match=r"builds for the GPU at hand.*tensorrt-rtx:"):
        Target.parse(text)


@given(
    st.text(max_size=30)
    | st.tuples(
        st.sampled_from([*PRECISIONS, "x"]),
        st.sampled_from(["", *chain(*PRECISIONS.values()), "auto"]),
        st.text(alphabet="@+smcuda01689", max_size=12),
    ).map("{0[0]}:{0[1]}{0[2]}".format)
)
@example("openvino")
@example("openvino:")
@example(":int8")
@example("openvino:int8 ")
@example("openvino:int8\n")
@example(" openvino:int8")
@example("OpenVINO:int8")
@example("openvino:INT8")
@example("openvino:int8:int8")
@example("openvino:fp16")
@example("openvino:int8@")
@example("tensorrt-rtx:fp16@")
@example("tensorrt-rtx:fp16@SM86")
@example("tensorrt-rtx:fp16@sm86,sm89")
@example("tensorrt")
def test_anything_else_is_refused_in_one_line_that_names_it(text):
    line = ""
    try:
        found = Target.parse(text)
    except InputError as error:
        line = str(error)
    else:
        assert found in VALID
        assert sorted(str(found)) == sorted(text)
    assert (repr(text) in line) == bool(line)
    assert len(line.splitlines()) <= 1


def test_a_typing_error_and_an_unknown_target_are_told_apart():
    with pytest.raises(InputError, match=r"not of the form backend:precision\[@device\]"):
        Target.parse("openvino/int8")
    with pytest.raises(InputError, match="unknown target 'openvino:fp64'"):
        Target.parse("openvino:fp64")
