import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadexport.detectors.stages import Stage, read_stages
from vadexport.errors import InputError

STAGE = Stage("train", 130, 400, 125, 0.25, "out of time")


def test_what_is_written_is_read_again():
    assert read_stages([STAGE.to_json(), STAGE.to_json()]) == (STAGE, STAGE)
    assert read_stages([]) == ()


def test_words():
    assert STAGE.words == "train: 130 of 400 steps (out of time), best after 125"


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"steps": 1.5},
        {"of": True},
        {"best_step": "1"},
        {"loss": float("nan")},
        {"loss": 1},
        {"name": 5},
        {"ended": None},
        {"more": 1},
    ],
)
def test_a_damaged_stage(wrong):
    with pytest.raises(InputError, match="a stage of its training is damaged"):
        read_stages([{**STAGE.to_json(), **wrong}])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )
)
def test_anything_is_read_or_refused(value):
    try:
        found = read_stages(value)
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either way is right
    else:
        assert found == ()
