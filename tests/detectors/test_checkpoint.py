import errno
import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from vadexport.detectors import checkpoint
from vadexport.detectors.checkpoint import load_detector, save_detector
from vadexport.errors import InputError, VadexportError

on_files = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def saved(resizing, tmp_path):
    path = tmp_path / "detector.safetensors"
    save_detector(resizing, path)
    return path


@pytest.fixture(scope="module")
def whole(resizing, tmp_path_factory):
    """A good file that no test changes."""
    path = tmp_path_factory.mktemp("whole") / "detector.safetensors"
    save_detector(resizing, path)
    return path


def contents(path):
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["vadexport"]), state


def rewrite(path, change):
    """Write `path` again after `change(header, state)`."""
    header, state = contents(path)
    change(header, state)
    save_file(state, path, {"vadexport": json.dumps(header)})


def put(header, place, value):
    *folders, last = place.split(".")
    for folder in folders:
        header = header[folder]
    header[last] = value


def assert_refused(path, words=""):
    """One line that names the file and holds `words`."""
    with pytest.raises(InputError) as caught:
        load_detector(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert str(path) in text
    assert re.search(words, text), text
    return text


def assert_loads_or_refuses(path):
    try:
        load_detector(path)
    except VadexportError as error:
        refusal = str(error)
    else:
        refusal = "none"
    assert len(refusal.splitlines()) == 1


class TestRoundTrip:
    @pytest.mark.parametrize("name", ["plain", "resizing"])
    def test_outputs_are_the_same_bits(self, name, request, crops, coloured, tmp_path):
        detector = request.getfixturevalue(name)
        images = {"plain": crops, "resizing": coloured}[name]
        save_detector(detector, tmp_path / "d.safetensors")
        loaded = load_detector(tmp_path / "d.safetensors")
        image = torch.from_numpy(255 - np.stack(images[:3]))
        with torch.inference_mode():
            expected, found = detector(image), loaded(image)
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)

    def test_what_was_fitted_comes_back(self, resizing, saved):
        loaded = load_detector(saved)
        assert loaded.thresholds == resizing.thresholds
        assert loaded.image_input == resizing.image_input
        assert loaded.method == resizing.method
        assert loaded.preprocessing.config == resizing.preprocessing.config
        assert torch.equal(loaded.normal_scores, resizing.normal_scores)
        assert loaded.describe() == resizing.describe()

    def test_the_digests_of_its_images_come_back(self, saved):
        detector = load_detector(saved)
        detector.fitted_on = ("0123456789abcdef", "fedcba9876543210")
        save_detector(detector, saved)
        assert load_detector(saved).fitted_on == detector.fitted_on

    def test_is_in_evaluation_mode_and_frozen(self, saved):
        loaded = load_detector(saved)
        assert not any(module.training for module in loaded.modules())
        assert not any(parameter.requires_grad for parameter in loaded.parameters())

    def test_an_unfitted_detector_is_refused(self, resizing, tmp_path):
        detector = type(resizing)(resizing.method, resizing.image_input)
        save_detector(detector, tmp_path / "d.safetensors")
        assert_refused(tmp_path / "d.safetensors", "memory_bank .*not fitted")

    def test_the_same_detector_gives_the_same_bytes(self, saved, tmp_path):
        save_detector(load_detector(saved), tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()

    @pytest.mark.parametrize("padding", range(0, 256, 8))
    def test_any_header_length_is_read(self, saved, padding):
        # The file begins with the header's length, a multiple of 8: also with 0x80, as a pickle.
        header, state = contents(saved)
        save_file(state, saved, {"vadexport": json.dumps(header), "padding": "x" * padding})
        load_detector(saved)


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


class TestOtherFiles:
    def test_a_missing_file(self, tmp_path):
        assert_refused(tmp_path / "none.safetensors", "No such file")

    def test_a_folder(self, tmp_path):
        assert_refused(tmp_path, "Is a directory")

    def test_an_empty_file(self, tmp_path):
        path = tmp_path / "empty.safetensors"
        path.touch()
        assert_refused(path, "truncated, damaged or not a safetensors file")

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_a_pickle_is_refused_as_one(self, tmp_path, protocol):
        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps({"weights": list(range(100))}, protocol))
        assert_refused(path, "is a pickle .*can run code.*refused")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_pytorch_checkpoint_is_refused_as_a_pickle(self, tmp_path, zipped):
        path = tmp_path / "model.ckpt"
        torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
        assert_refused(path, "is a pickle .*can run code.*refused")

    def test_a_pickle_is_never_run(self, tmp_path):
        class Malice:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "run",))

        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            path = tmp_path / f"{protocol}.safetensors"
            path.write_bytes(pickle.dumps(Malice(), protocol))
            assert_refused(path)
        assert not (tmp_path / "run").exists()

    def test_another_safetensors_file(self, tmp_path):
        path = tmp_path / "bert.safetensors"
        save_file({"w": torch.ones(3)}, path)
        assert_refused(path, "is a safetensors file, but no detector")
        save_file({"w": torch.ones(3)}, path, {"format": "pt"})
        assert_refused(path, "is a safetensors file, but no detector")

    @given(data=st.binary(max_size=200))
    @on_files
    def test_random_bytes(self, tmp_path, data):
        path = tmp_path / "random.safetensors"
        path.write_bytes(data)
        assert_refused(path)

    @given(part=st.floats(0, 1, exclude_max=True))
    @on_files
    def test_a_truncated_file(self, whole, tmp_path, part):
        path = tmp_path / "d.safetensors"
        data = whole.read_bytes()
        path.write_bytes(data[: int(part * len(data))])
        assert_refused(path, "truncated, damaged")

    @pytest.mark.parametrize("kept", [1, 7, 8, 9, 100, 5000, -1])
    def test_a_file_truncated_at_a_seam(self, whole, tmp_path, kept):
        path = tmp_path / "d.safetensors"
        path.write_bytes(whole.read_bytes()[:kept])
        assert_refused(path, "truncated, damaged")

    def test_a_file_with_something_behind_it(self, whole, tmp_path):
        path = tmp_path / "d.safetensors"
        path.write_bytes(whole.read_bytes() + b"more")
        assert_refused(path, "truncated, damaged")

    @given(place=st.integers(0, 20_000), value=st.integers(0, 255))
    @on_files
    def test_a_changed_byte_of_the_header_is_read_or_refused(self, whole, tmp_path, place, value):
        path = tmp_path / "d.safetensors"
        data = bytearray(whole.read_bytes())
        data[place] = value
        path.write_bytes(data)
        assert_loads_or_refuses(path)


class TestSaving:
    def test_replaces_an_old_file(self, saved):
        other = load_detector(saved)
        other.thresholds = replace(other.thresholds, rule="another")
        save_detector(other, saved)
        assert load_detector(saved).thresholds.rule == "another"
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]
        assert saved.stat().st_mode & 0o777 == 0o644

    @pytest.mark.parametrize("written", [b"", b"half of it"])
    def test_a_full_disk_leaves_the_old_file(self, resizing, saved, monkeypatch, written):
        old = saved.read_bytes()

        def full(_state, path, _metadata):
            with open(path, "wb") as file:  # noqa: PTH123
                file.write(written)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoint, "save_file", full)
        with pytest.raises(InputError, match=f"cannot write {saved}: .*No space left"):
            save_detector(resizing, saved)
        assert saved.read_bytes() == old
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]

    def test_an_interrupt_leaves_the_old_file(self, resizing, saved, monkeypatch):
        old = saved.read_bytes()

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(checkpoint, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_detector(resizing, saved)
        assert saved.read_bytes() == old
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]

    def test_a_missing_folder(self, resizing, tmp_path):
        with pytest.raises(InputError, match=r"cannot write .*none"):
            save_detector(resizing, tmp_path / "none" / "d.safetensors")

    def test_a_folder_in_the_place(self, resizing, tmp_path):
        (tmp_path / "d.safetensors").mkdir()
        with pytest.raises(InputError, match=r"cannot write .*d\.safetensors"):
            save_detector(resizing, tmp_path / "d.safetensors")
        assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]

    def test_a_file_in_place_of_the_folder(self, resizing, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="cannot write"):
            save_detector(resizing, tmp_path / "file" / "d.safetensors")


class TestOldPickles:
    """Protocols 0 and 1 have no mark; only what is no safetensors file is asked for them."""

    @pytest.mark.parametrize("protocol", [0, 1])
    @pytest.mark.parametrize(
        "value",
        [{"state_dict": [1.0, 2.0], "epoch": 3}, [1, 2, 3], Path("x"), 119547037146038801333356],
        ids=["dict", "list", "object", "number"],
    )
    def test_is_named_a_pickle(self, tmp_path, protocol, value):
        path = tmp_path / "model.pt"
        path.write_bytes(pickle.dumps(value, protocol=protocol))
        assert_refused(path, "is a pickle")

    @pytest.mark.parametrize(
        "content",
        [
            b"0.5 is a score",
            b"Name: model",
            b"(see the other file).",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a\x01\x00",
            b"",
            bytes(100),
        ],
    )
    def test_anything_else_is_not(self, tmp_path, content):
        path = tmp_path / "model.pt"
        path.write_bytes(content)
        assert_refused(path, "not a safetensors file")

    def test_a_cut_safetensors_file_is_not(self, saved):
        saved.write_bytes(saved.read_bytes()[:-10])
        assert_refused(saved, "truncated")
