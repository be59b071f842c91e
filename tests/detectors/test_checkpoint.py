import errno
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.detectors.checkpoints import assert_loads_or_refuses, assert_refused, contents, on_files
from vadexport.detectors import checkpoint
from vadexport.detectors.checkpoint import load_detector, save_detector
from vadexport.errors import InputError


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
