from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vadexport.errors import InputError
from vadexport.sources.outputs import OutputMap, find_outputs, leaves_of

N, H, W = 2, 5, 7
SCORE, MAP = torch.arange(2.0), torch.rand(N, 1, H, W)
Pair = namedtuple("Pair", ["pred_score", "anomaly_map"])  # noqa: PYI024 - what models return

NAMES = st.text("abcxyz_./:0123456789", min_size=1).filter(lambda name: name == name.strip())


@dataclass
class Batch:
    pred_score: torch.Tensor
    pred_label: torch.Tensor
    anomaly_map: torch.Tensor
    pred_mask: torch.Tensor | None = None


@pytest.mark.parametrize(
    ("found", "score", "anomaly_map"),
    [
        (SCORE, "0", None),
        (MAP, None, "0"),
        (MAP[:, 0], None, "0"),
        (SCORE[:, None], "0", None),
        ((SCORE, MAP), "0", "1"),
        ([MAP, SCORE], "1", "0"),
        ({"score": SCORE, "map": MAP}, "score", "map"),
        (Pair(SCORE, MAP), "pred_score", "anomaly_map"),
        (Batch(SCORE, SCORE > 0.5, MAP, MAP > 0.5), "pred_score", "anomaly_map"),
        (Batch(SCORE, SCORE > 0.5, MAP), "pred_score", "anomaly_map"),
        ((None, {"x": [SCORE, "text"]}, Pair(None, MAP)), "1.x.0", "2.anomaly_map"),
        ({"pred_score": SCORE, "logit": SCORE, "anomaly_map": MAP, "features": MAP},
         "pred_score", "anomaly_map"),
        ((SCORE, torch.rand(N, 3, H, W), torch.rand(N, 16)), "0", None),
    ],
)  # fmt: skip
def test_score_and_map_are_found_in_any_structure(found, score, anomaly_map):
    assert find_outputs(leaves_of(found), N) == OutputMap(score, anomaly_map)


@pytest.mark.parametrize("value", [SCORE, SCORE[:, None], SCORE[:, None, None, None]])
def test_scores_are_flat(value):
    scores = OutputMap("0", None).scores((value.double(),), N)
    assert scores.raw_score.dtype == torch.float32
    assert scores.raw_score.tolist() == [0, 1]
    assert scores.anomaly_map is None


def test_a_map_alone_is_scored_by_its_maximum():
    scores = OutputMap(None, "0").scores(MAP[:, 0], N)
    assert scores.anomaly_map.shape == (N, 1, H, W)
    assert torch.equal(scores.raw_score, MAP.flatten(1).max(1).values)


def test_several_candidates_are_listed_with_their_shapes():
    with pytest.raises(InputError, match=r"a and b may each be the score.*a float32 \[2\].*"
                       r"b float32 \[2, 1\].*--outputs") as caught:  # fmt: skip
        find_outputs(leaves_of({"a": SCORE, "b": SCORE[:, None]}), N)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="may each be the map"):
        find_outputs(leaves_of([SCORE, MAP, MAP]), N)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.tensor(1.0), "one entry an image"),
        (torch.rand(H, W), "one entry an image"),
        (torch.rand(N, 3, H, W), "no score and no map"),
        (torch.ones(N, dtype=torch.int64), "no score and no map"),
        ("text", "gives none"),
        (None, "gives none"),
    ],
)
def test_neither_score_nor_map(found, message):
    with pytest.raises(InputError, match=message):
        find_outputs(leaves_of(found), N)


@given(NAMES, NAMES)
def test_what_is_written_is_read(score, anomaly_map):
    for made in (OutputMap(score, anomaly_map), OutputMap(score, None), OutputMap(None, score)):
        assert OutputMap.parse(str(made)) == made


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        found = OutputMap.parse(text)
    except InputError as error:
        assert "score=NAME,map=NAME" in str(error)  # noqa: PT017 - either is right
    else:
        assert found.score or found.map


@pytest.mark.parametrize("text", ["", "score", "score=", "score=a,score=b", "mask=a", "score=a,"])
def test_what_names_no_outputs_is_refused(text):
    with pytest.raises(InputError, match="score=NAME,map=NAME"):
        OutputMap.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score=2", "no output is '2'; there are 0 float32"),
        ("score=1", r"'1' is no score: for 2 images it is float32 \[2, 1, 5, 7\]"),
        ("map=0", r"'0' is no map: for 2 images it is float32 \[2\]"),
    ],
)
def test_named_outputs_are_checked(text, message):
    with pytest.raises(InputError, match=message):
        OutputMap.parse(text).check(leaves_of((SCORE, MAP)), N)


def test_an_output_that_is_missing_later():
    with pytest.raises(InputError, match="for some images"):
        OutputMap("a", None).scores({}, N)


#: Shapes for three images that are neither score nor map, whatever h and w are.
OTHERS = st.sampled_from([(), (3, 4), (3, 2, 5, 5), (5, 5), (3, 1, 1, 8), (3, 8, 1)])


@given(
    st.permutations(["score", "map", "other"]),
    st.sampled_from([(3,), (3, 1)]),
    st.integers(2, 6),
    st.integers(2, 6),
    OTHERS,
    st.booleans(),
)
def test_order_and_sizes_do_not_matter(order, score, height, width, other, is_flat):
    shapes = {"score": score, "other": other}
    shapes["map"] = (3, height, width) if is_flat else (3, 1, height, width)
    leaves = leaves_of([torch.rand(shapes[name]) for name in order])
    found = find_outputs(leaves, 3)
    assert found == OutputMap(str(order.index("score")), str(order.index("map")))
