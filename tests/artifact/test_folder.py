import hashlib
import json
import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vadexport.artifact import (
    artifact_around,
    find_artifacts,
    open_artifact,
    read_manifest,
    write_manifest,
)
from vadexport.errors import InputError


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


class TestWriting:
    def test_counts_every_file_but_manifest_and_report(self, artifact, manifest):
        (artifact / "report").mkdir()
        (artifact / "report" / "build.json").write_text("{}")
        write_manifest(artifact, manifest)
        data = (artifact / "weights" / "model.bin").read_bytes()
        assert manifest_of(artifact)["files"] == {
            "model.xml": {"sha256": hashlib.sha256(b"<net/>").hexdigest(), "size": 6},
            "weights/model.bin": {"sha256": hashlib.sha256(data).hexdigest(), "size": 256},
        }

    def test_the_same_files_give_the_same_bytes_anywhere(self, artifact, manifest, tmp_path):
        copy = tmp_path / "elsewhere" / "copy"
        shutil.copytree(artifact, copy)
        os.utime(copy / "model.xml", (0, 0))
        write_manifest(copy, manifest)
        assert (copy / "manifest.json").read_bytes() == (artifact / "manifest.json").read_bytes()

    def test_holds_no_path_and_no_host(self, artifact):
        text = (artifact / "manifest.json").read_text()
        for word in (str(artifact.parent), str(Path.cwd()), str(Path.home()), platform.node()):
            assert word not in text


class TestOpening:
    def test_an_untouched_artifact(self, artifact):
        opened = open_artifact(artifact)
        assert opened.folder == artifact
        assert sorted(opened.manifest.files) == ["model.xml", "weights/model.bin"]
        assert opened.manifest == read_manifest(artifact)

    def test_its_report_may_change(self, artifact):
        (artifact / "report").mkdir()
        (artifact / "report" / "index.html").write_text("new")
        open_artifact(artifact)

    @given(place=st.integers(0, 255), bit=st.integers(0, 7))
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_a_single_changed_bit_is_named(self, artifact, place, bit):
        path = artifact / "weights" / "model.bin"
        data = bytearray(range(256))
        data[place] ^= 1 << bit
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"weights/model\.bin was changed after it was built"):
            open_artifact(artifact)

    @pytest.mark.parametrize("data", [b"", b"<net/>\n", b"<net"])
    def test_a_changed_size_is_named(self, artifact, data):
        (artifact / "model.xml").write_bytes(data)
        with pytest.raises(InputError, match=r"model\.xml was changed after it was built"):
            open_artifact(artifact)

    @pytest.mark.parametrize("name", ["model.xml", "weights/model.bin"])
    def test_a_missing_file_is_named(self, artifact, name):
        (artifact / name).unlink()
        with pytest.raises(InputError, match=f"{name} is in the manifest, but missing"):
            open_artifact(artifact)

    @pytest.mark.parametrize("name", ["extra.bin", "weights/extra.bin", "reports/x", ".hidden"])
    def test_an_extra_file_is_named(self, artifact, name):
        (artifact / name).parent.mkdir(exist_ok=True)
        (artifact / name).touch()
        with pytest.raises(InputError, match=f"{name} is not in the manifest"):
            open_artifact(artifact)

    def test_a_folder_in_place_of_a_file(self, artifact):
        (artifact / "model.xml").unlink()
        (artifact / "model.xml").mkdir()
        with pytest.raises(InputError, match=r"model\.xml is in the manifest, but missing"):
            open_artifact(artifact)

    def test_a_link_to_the_very_same_bytes_is_refused(self, artifact, tmp_path):
        (artifact / "model.xml").rename(tmp_path / "outside.xml")
        (artifact / "model.xml").symlink_to(tmp_path / "outside.xml")
        with pytest.raises(InputError, match=r"model\.xml"):
            open_artifact(artifact)

    def test_a_link_that_leads_nowhere_is_named(self, artifact, tmp_path):
        (artifact / "extra.bin").symlink_to(tmp_path / "none")
        with pytest.raises(InputError, match=r"extra\.bin is not in the manifest"):
            open_artifact(artifact)

    def test_an_extra_link_to_a_folder_is_named(self, artifact, tmp_path):
        (tmp_path / "outside").mkdir()
        (artifact / "extra").symlink_to(tmp_path / "outside")
        with pytest.raises(InputError, match="extra is not in the manifest"):
            open_artifact(artifact)

    def test_a_folder_that_became_a_link_is_named(self, artifact, tmp_path):
        (artifact / "weights").rename(tmp_path / "outside")
        (artifact / "weights").symlink_to(tmp_path / "outside")
        with pytest.raises(InputError, match="weights"):
            open_artifact(artifact)

    def test_a_named_pipe_is_named_and_not_read(self, artifact):
        (artifact / "model.xml").unlink()
        os.mkfifo(artifact / "model.xml")
        with pytest.raises(InputError, match=r"model\.xml"):
            open_artifact(artifact)

    def test_a_manifest_that_names_files_outside(self, artifact):
        entry = read_manifest(artifact).files["model.xml"]
        outside = replace(read_manifest(artifact), files={"../outside": entry})
        (artifact / "manifest.json").write_text(outside.to_json())
        with pytest.raises(InputError, match=r"outside the artifact: '\.\./outside'"):
            open_artifact(artifact)


class TestReadingTheManifest:
    def test_a_folder_that_is_missing(self, tmp_path):
        with pytest.raises(InputError, match="none does not exist"):
            read_manifest(tmp_path / "none")

    def test_a_folder_without_one(self, tmp_path):
        with pytest.raises(InputError, match=r"is no vadexport artifact: it has no manifest\.json"):
            read_manifest(tmp_path)

    def test_a_file_in_place_of_the_folder(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="file is no folder"):
            read_manifest(tmp_path / "file")

    def test_a_folder_in_place_of_the_file(self, tmp_path):
        (tmp_path / "manifest.json").mkdir()
        with pytest.raises(InputError, match=r"cannot read .*manifest\.json"):
            read_manifest(tmp_path)

    def test_bytes_that_are_no_text(self, artifact):
        (artifact / "manifest.json").write_bytes(b"\xff\xfe{}")
        with pytest.raises(InputError, match=r"cannot read .*manifest\.json"):
            read_manifest(artifact)

    def test_a_huge_one_is_not_read(self, artifact):
        with (artifact / "manifest.json").open("wb") as file:
            file.truncate(2**34)  # sparse
        with pytest.raises(InputError, match="larger than a manifest can be"):
            read_manifest(artifact)

    def test_what_is_wrong_in_it_comes_with_the_folder(self, artifact):
        (artifact / "manifest.json").write_text("{")
        with pytest.raises(InputError, match=rf"{artifact}: manifest\.json is no JSON"):
            read_manifest(artifact)


class TestFinding:
    def test_a_single_artifact(self, artifact):
        assert find_artifacts(artifact) == [artifact]

    def test_those_of_a_build_by_name(self, artifact, tmp_path):
        build = tmp_path / "build"
        for name in ("openvino-int8", "onnxruntime-fp32"):
            shutil.copytree(artifact, build / name)
        (build / "notes.txt").touch()
        (build / "empty").mkdir()
        assert find_artifacts(build) == [build / "onnxruntime-fp32", build / "openvino-int8"]

    def test_none(self, tmp_path):
        (tmp_path / "deep" / "deeper").mkdir(parents=True)
        (tmp_path / "deep" / "deeper" / "manifest.json").touch()
        with pytest.raises(InputError, match=r"has no manifest\.json, nor has a folder in it"):
            find_artifacts(tmp_path)

    def test_no_folder(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="file is no folder"):
            find_artifacts(tmp_path / "file")
        with pytest.raises(InputError, match="none does not exist"):
            find_artifacts(tmp_path / "none")


class TestReportsInside:
    @pytest.mark.parametrize("inside", [".", "new", "new/er", "reports", "new/report"])
    def test_where_the_manifest_names_all_files(self, artifact, inside):
        assert artifact_around(artifact / inside) == artifact.resolve()

    @pytest.mark.parametrize("inside", ["report", "report/second", "..", "../beside", "new/../.."])
    def test_where_it_does_not(self, artifact, inside):
        assert artifact_around(artifact / inside) is None

    def test_through_a_link(self, artifact, tmp_path):
        (tmp_path / "link").symlink_to(artifact)
        assert artifact_around(tmp_path / "link" / "new") == artifact.resolve()
        assert artifact_around(tmp_path / "link" / "report") is None
        (tmp_path / "circle").symlink_to(tmp_path / "circle")
        assert artifact_around(tmp_path / "circle" / "new") is None

    def test_a_manifest_of_something_else(self, tmp_path):
        (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
        assert artifact_around(tmp_path / "new") is None
