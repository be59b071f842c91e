import re
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.detectors.checkpoints import (
    assert_loads_or_refuses,
    assert_refused,
    contents,
    on_files,
    put,
    rewrite,
)
from vadexport.detectors.checkpoint import load_detector
from vadexport.errors import VadexportError


class TestHeader:
    @pytest.mark.parametrize(
        "key", ["schema_version", "family", "config", "image_input", "preprocessing", "thresholds"]
    )
    def test_a_missing_entry_is_named(self, saved, key):
        rewrite(saved, lambda header, _: header.pop(key))
        assert_refused(saved, key)

    @pytest.mark.parametrize(
        "place",
        [
            "image_input.height",
            "image_input.batch",
            "preprocessing.size",
            "preprocessing.mean",
            "preprocessing.std",
            "thresholds.image",
            "thresholds.rule",
            "config.levels",
        ],
    )
    def test_a_missing_field_is_named(self, saved, place):
        outer, inner = place.split(".")
        rewrite(saved, lambda header, _: header[outer].pop(inner))
        assert_refused(saved, inner)

    @pytest.mark.parametrize("version", [0, 2, "1", None, [1], {}])
    def test_another_schema_version_is_refused(self, saved, version):
        rewrite(saved, lambda header, _: header.update(schema_version=version))
        assert_refused(saved, f"schema version {re.escape(str(version))}, this vadexport reads 1")

    @pytest.mark.parametrize("family", ["abacus", "", 5, None, ["patchcore"], {"patchcore": 1}])
    def test_an_unknown_family_is_refused(self, saved, family):
        rewrite(saved, lambda header, _: header.update(family=family))
        assert_refused(saved, f"unknown family {re.escape(repr(family))}")

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            ("config", []),
            ("config", "patchcore"),
            ("config", None),
            ("config.surprise", 1),
            ("config.backbone", 5),
            ("config.backbone", ["efficientnet_lite0"]),
            ("config.levels", 2),
            ("config.levels", []),
            ("config.levels", "ab"),
            ("config.levels", [1.5]),
            ("config.levels", [9]),
            ("config.levels", [None]),
            ("config.coreset_ratio", "much"),
            ("config.coreset_ratio", 7),
            ("config.neighbours", "four"),
            ("config.neighbours", 2.5),
            ("config.blur_sigma", "wide"),
            ("config.blur_sigma", float("nan")),
            ("config.blur_sigma", float("inf")),
            ("config.blur_sigma", 40),
            ("image_input", "gray"),
            ("image_input.height", 0),
            ("image_input.height", 2**40),
            ("image_input.height", "88"),
            ("image_input.channels", 4),
            ("preprocessing", None),
            ("preprocessing.size", [64]),
            ("preprocessing.size", [64, "wide"]),
            ("preprocessing.size", [64, float("inf")]),
            ("preprocessing.size", [64, float("nan")]),
            ("preprocessing.size", [0, 0]),
            ("preprocessing.size", [-64, 80]),
            ("preprocessing.size", [2**40, 2**40]),
            ("preprocessing.mean", [0.5]),
            ("preprocessing.mean", ["a", "b", "c"]),
            ("preprocessing.mean", [0.5, 0.5, float("nan")]),
            ("preprocessing.std", [0.2, 0.2]),
            ("preprocessing.std", [0.2, 0.2, 0]),
            ("preprocessing.std", [0.2, 0.2, -1]),
            ("preprocessing.std", [0.2, 0.2, float("nan")]),
            ("preprocessing.std", 1),
            ("thresholds", []),
            ("thresholds.image", "high"),
            ("thresholds.image", None),
            ("thresholds.image", float("nan")),
            ("thresholds.pixel", float("inf")),
            ("thresholds.maximum", float("nan")),
            ("thresholds.image", 1e39),
            ("thresholds.pixel", -1e39),
            ("thresholds.maximum", 10**400),
        ],
        ids=str,
    )
    def test_a_damaged_value_is_refused(self, saved, place, value):
        rewrite(saved, lambda header, _: put(header, place, value))
        assert_refused(saved)

    @pytest.mark.parametrize(
        "name",
        [
            "hf-hub:someone/model",
            "hf_hub:someone/model",
            "local-dir:/tmp/model",
            "timm/resnet18",
            "../resnet18",
            "resnet18\n",
            "resnet 18",
            "",
        ],
    )
    def test_a_backbone_read_from_elsewhere_is_refused(self, saved, name):
        # Refused by its name: without timm, any other name asks for the package instead.
        rewrite(saved, lambda header, _: put(header, "config.backbone", name))
        assert_refused(saved, "is refused: names hold letters")

    def test_a_backbone_that_is_not_here_is_named(self, saved):
        rewrite(saved, lambda header, _: put(header, "config.backbone", "no_such_network"))
        with pytest.raises(VadexportError, match="timm"):
            load_detector(saved)

    @pytest.mark.parametrize(
        "value",
        [
            None,
            "0123456789abcdef",
            {"0123456789abcdef": 1},
            [5],
            [None],
            ["0123456789abcde"],
            ["0123456789abcdef0"],
            ["0123456789ABCDEF"],
            ["0123456789abcdeg"],
            ["0123456789abcdef\n"],
            ["0123456789abcdef", ["0123456789abcdef"]],
        ],
        ids=repr,
    )
    def test_digests_that_are_none_are_refused(self, saved, value):
        rewrite(saved, lambda header, _: header.update(fitted_on=value))
        assert_refused(saved, "digests of its images are damaged")

    def test_no_more_digests_than_a_million_are_read(self, saved):
        rewrite(saved, lambda header, _: header.update(fitted_on=["0" * 16] * 1_000_001))
        assert_refused(saved, "digests of its images are damaged")

    def test_a_checkpoint_from_before_digests_is_read(self, saved):
        rewrite(saved, lambda header, _: header.pop("fitted_on"))
        assert load_detector(saved).fitted_on == ()

    @pytest.mark.parametrize("text", ["", "no JSON", "{", "[" * 100_000, "NaN NaN"])
    def test_what_is_no_json_is_refused(self, saved, text):
        _, state = contents(saved)
        save_file(state, saved, {"vadexport": text})
        assert_refused(saved, "no detector")

    @pytest.mark.parametrize("text", ["[]", "5", "null", '"patchcore"'])
    def test_json_that_is_no_object_is_refused(self, saved, text):
        _, state = contents(saved)
        save_file(state, saved, {"vadexport": text})
        assert_refused(saved, "not an object")

    @given(
        place=st.sampled_from(
            [
                *("schema_version", "family", "config", "image_input", "preprocessing"),
                *("config.backbone", "config.levels", "config.neighbours", "config.blur_sigma"),
                *("image_input.height", "image_input.batch", "preprocessing.size"),
                *("preprocessing.mean", "preprocessing.std", "thresholds", "thresholds.image"),
            ]
        ),
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
            max_leaves=4,
        ),
    )
    @on_files
    def test_any_value_anywhere_is_read_or_refused(self, whole, tmp_path, place, value):
        path = tmp_path / "d.safetensors"
        shutil.copyfile(whole, path)
        rewrite(path, lambda header, _: put(header, place, value))
        assert_loads_or_refuses(path)


class TestWeights:
    @pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize(
        "name", ["memory_bank", "backbone.stem.0.weight", "normal_scores", "backbone.stem.1.bias"]
    )
    def test_numbers_that_are_not_finite_are_named(self, saved, name, wrong):
        rewrite(saved, lambda _, state: state[name].view(-1)[-1:].fill_(wrong))
        assert_refused(saved, f"'{re.escape(name)}' hold NaN or infinity")

    @pytest.mark.parametrize(
        "name", ["memory_bank", "neighbour_table", "backbone.stem.0.weight", "normal_scores"]
    )
    def test_missing_weights_are_named(self, saved, name):
        rewrite(saved, lambda _, state: state.pop(name))
        assert_refused(saved, name)

    def test_extra_weights_are_named(self, saved):
        rewrite(saved, lambda _, state: state.update(surprise=torch.zeros(3)))
        assert_refused(saved, "surprise")

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("backbone.stem.0.weight", (32, 3, 5, 5)),
            ("memory_bank", (50, 63)),
            ("memory_bank", (64,)),
            ("memory_bank", (0, 64)),
            ("neighbour_table", (50, 4)),
            ("neighbour_table", (0,)),
            ("normal_scores", (3, 4)),
        ],
        ids=str,
    )
    def test_wrong_shapes_are_named(self, saved, name, shape):
        def change(_, state):
            state[name] = torch.zeros(shape, dtype=state[name].dtype)

        rewrite(saved, change)
        assert_refused(saved, re.escape(name))

    @pytest.mark.parametrize("index", [-1, 10**6])
    def test_neighbours_outside_the_bank_are_refused(self, saved, index):
        rewrite(saved, lambda _, state: state["neighbour_table"].view(-1)[-1:].fill_(index))
        assert_refused(saved, "neighbour_table")

    @pytest.mark.parametrize(
        ("name", "dtype"),
        [
            ("memory_bank", torch.float8_e4m3fn),
            ("memory_bank", torch.float64),
            ("memory_bank", torch.int64),
            ("neighbour_table", torch.float32),
            ("backbone.stem.0.weight", torch.float16),
        ],
        ids=str,
    )
    def test_wrong_types_are_named(self, saved, name, dtype):
        def change(_, state):
            state[name] = state[name].to(dtype)

        rewrite(saved, change)
        assert_refused(saved, re.escape(name))
