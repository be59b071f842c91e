import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from vadexport.artifact import file_digest, open_artifact, written_atomically
from vadexport.errors import InputError

HOLD = """
import sys
from pathlib import Path
from vadexport.artifact import written_atomically
with written_atomically(Path(sys.argv[1])) as staging:
    (staging.result / "half").write_text("written")
    (staging.work / "scratch").write_text("written")
    print("ready", flush=True)
    sys.stdin.readline()
"""
DIE_BETWEEN_RENAMES = """
import os, signal, sys
from pathlib import Path
from vadexport.artifact import written_atomically
rename = Path.rename
def dying(self, target):
    if self.name == "result":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = dying
with written_atomically(Path(sys.argv[1])) as staging:
    (staging.result / "new").write_text("written")
"""


def start(code, destination):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(destination)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )


@contextmanager
def writer(destination):
    """Another process in the middle of writing."""
    with start(HOLD, destination) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def assert_untouched(artifact, before):
    """The artifact is as it was, and nothing lies beside it."""
    assert tree(artifact) == before
    open_artifact(artifact)
    assert [path.name for path in artifact.parent.iterdir()] == [artifact.name]


@pytest.fixture
def before(artifact):
    return tree(artifact)


def test_file_digest_is_sha256_of_a_file_of_any_size(tmp_path):
    for size in (0, 1, 3_000_000):
        data = os.urandom(size)
        (tmp_path / "file").write_bytes(data)
        assert file_digest(tmp_path / "file") == hashlib.sha256(data).hexdigest()


class TestWritten:
    def test_what_was_staged_is_there(self, tmp_path):
        destination = tmp_path / "new" / "artifact"
        with written_atomically(destination) as staging:
            assert list(staging.result.iterdir()) == list(staging.work.iterdir()) == []
            assert staging.result.stat().st_dev == tmp_path.stat().st_dev
            (staging.result / "model").write_text("whole")
            (staging.work / "scratch").write_text("gone")
            assert not destination.exists()
        assert tree(destination) == {"model": b"whole"}
        assert [path.name for path in destination.parent.iterdir()] == ["artifact"]

    def test_takes_the_place_of_an_old_artifact(self, artifact):
        with written_atomically(artifact) as staging:
            (staging.result / "model").write_text("new")
        assert tree(artifact) == {"model": b"new"}
        assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]

    def test_takes_the_place_of_an_old_build(self, artifact, tmp_path):
        build = tmp_path / "build"
        shutil.copytree(artifact, build / "openvino-fp32")
        shutil.copytree(artifact, build / "openvino-int8")
        with written_atomically(build) as staging:
            (staging.result / "model").write_text("new")
        assert tree(build) == {"model": b"new"}

    def test_takes_the_place_of_an_empty_folder(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with written_atomically(tmp_path / "empty") as staging:
            (staging.result / "model").write_text("new")
        assert tree(tmp_path / "empty") == {"model": b"new"}

    def test_a_relative_path_stays_where_it_was_meant(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "elsewhere").mkdir()
        with written_atomically(Path("artifact")) as staging:
            (staging.result / "model").write_text("new")
            monkeypatch.chdir(tmp_path / "elsewhere")
        assert tree(tmp_path / "artifact") == {"model": b"new"}

    @pytest.mark.parametrize("name", ["model.v1.2", "a b", "Größe", ".hidden", "x.lock"])
    def test_any_name_will_do(self, tmp_path, name):
        for text in ("first", "second"):
            with written_atomically(tmp_path / name) as staging:
                (staging.result / "manifest.json").write_text(OURS)
                (staging.result / "model").write_text(text)
        assert (tmp_path / name / "model").read_text() == "second"
        assert [path.name for path in tmp_path.iterdir()] == [name]


OURS = '{"schema_version": 1, "target": "openvino:fp32", "graph": {}, "files": {"model": {}}}'


class TestFailed:
    @pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(3)])
    def test_an_exception_leaves_the_old(self, artifact, before, error):
        def write():
            with written_atomically(artifact) as staging:
                (staging.result / "model").write_text("half")
                raise error

        with pytest.raises(type(error)) as caught:
            write()
        assert caught.value is error
        assert_untouched(artifact, before)

    def test_an_exception_leaves_nothing_where_nothing_was(self, tmp_path):
        with pytest.raises(ValueError, match="bad"), written_atomically(tmp_path / "new"):
            raise ValueError("bad")
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_while_writing(self, artifact, before):
        with (
            pytest.raises(InputError, match=r"cannot write .*artifact: No space left"),
            written_atomically(artifact),
        ):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert_untouched(artifact, before)

    def test_a_full_disk_before_writing(self, artifact, before, monkeypatch):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "mkdir", full)
            with (
                pytest.raises(InputError, match=r"cannot write .*artifact: No space left"),
                written_atomically(artifact),
            ):
                pytest.fail("the block must not run")
        assert_untouched(artifact, before)

    def test_an_exchange_that_fails_is_undone(self, artifact, before, monkeypatch):
        rename = Path.rename

        def failing(self, target):
            if self.name == "result":
                raise OSError(errno.EIO, "Input/output error")
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", failing)
            with (
                pytest.raises(InputError, match="Input/output error"),
                written_atomically(artifact),
            ):
                pass
        assert_untouched(artifact, before)


class TestKilled:
    def test_in_the_middle_leaves_the_old_and_the_next_cleans_up(self, artifact, before):
        with writer(artifact) as process:
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert tree(artifact) == before
        open_artifact(artifact)
        with written_atomically(artifact) as staging:
            assert list(staging.result.iterdir()) == list(staging.work.iterdir()) == []
            (staging.result / "model").write_text("new")
        assert tree(artifact) == {"model": b"new"}
        assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]

    def test_where_nothing_was_leaves_nothing_at_the_destination(self, tmp_path):
        with writer(tmp_path / "new") as process:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (tmp_path / "new").exists()

    def test_between_the_renames_is_restored_by_the_next(self, artifact, before):
        with start(DIE_BETWEEN_RENAMES, artifact) as process:
            assert process.wait() == -signal.SIGKILL
        assert not artifact.exists()
        with pytest.raises(ValueError, match="bad"), written_atomically(artifact):
            raise ValueError("bad")
        assert_untouched(artifact, before)

    def test_between_the_renames_and_then_written(self, artifact):
        with start(DIE_BETWEEN_RENAMES, artifact) as process:
            process.wait()
        with written_atomically(artifact) as staging:
            (staging.result / "model").write_text("new")
        assert tree(artifact) == {"model": b"new"}
        assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]

    def test_after_the_renames_leaves_the_new(self, artifact, tmp_path):
        shutil.copytree(artifact, tmp_path / ".artifact.old")
        with pytest.raises(ValueError, match="bad"), written_atomically(artifact):
            raise ValueError("bad")
        assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]


class TestRefused:
    def test_a_second_writer(self, artifact):
        with writer(artifact) as process:
            with (
                pytest.raises(InputError, match=r"another process is writing .*artifact"),
                written_atomically(artifact),
            ):
                pytest.fail("the block must not run")
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.wait() == 0
        assert tree(artifact) == {"half": b"written"}
        assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]

    def test_a_lock_file_that_its_owner_has_just_removed(self, tmp_path, monkeypatch):
        fcntl = pytest.importorskip("fcntl")
        lock = fcntl.flock

        def late(descriptor, operation):
            (tmp_path / ".artifact.lock").unlink()
            lock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", late)
        with (
            pytest.raises(InputError, match=r"another process is writing .*artifact"),
            written_atomically(tmp_path / "artifact"),
        ):
            pytest.fail("the block must not run")

    def test_writers_of_two_folders_do_not_meet(self, tmp_path):
        with writer(tmp_path / "one"), written_atomically(tmp_path / "two") as staging:
            (staging.result / "model").write_text("new")
        assert tree(tmp_path / "two") == {"model": b"new"}

    @pytest.mark.parametrize(
        "files",
        [
            {"holiday.jpg": "x"},
            {"sub/holiday.jpg": "x"},
            {"sub/manifest.json": OURS, "holiday.jpg": "x"},
            {"manifest.json": OURS, "model": "x", "my notes.txt": "x"},
            {"a/manifest.json": OURS, "a/model": "x", "a/sub/my notes.txt": "x"},
            {"manifest.json": '{"manifest_version": 3, "name": "a browser extension"}'},
            {"manifest.json": "[]"},
            {"app/manifest.json": '{"short_name": "a web app", "icons": []}'},
        ],
        ids=" ".join,
    )
    def test_a_folder_that_is_not_ours(self, tmp_path, files):
        mine = tmp_path / "mine"
        for name, text in files.items():
            (mine / name).parent.mkdir(parents=True, exist_ok=True)
            (mine / name).write_text(text)
        before = tree(mine)
        with (
            pytest.raises(InputError, match="mine holds something else than a vadexport artifact"),
            written_atomically(mine),
        ):
            pytest.fail("the block must not run")
        assert tree(mine) == before
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_what_is_in_the_way_is_named(self, artifact):
        (artifact / "notes.txt").write_text("mine")
        with (
            pytest.raises(InputError, match=r"\(.*artifact/notes\.txt\)"),
            written_atomically(artifact),
        ):
            pytest.fail("the block must not run")
        assert (artifact / "notes.txt").read_text() == "mine"

    def test_an_artifact_of_another_schema_version_may_be_replaced(self, artifact):
        path = artifact / "manifest.json"
        path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 7'))
        with written_atomically(artifact) as staging:
            (staging.result / "model").write_text("new")
        assert tree(artifact) == {"model": b"new"}

    def test_a_file(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with (
            pytest.raises(InputError, match="file exists and is no folder"),
            written_atomically(tmp_path / "file"),
        ):
            pytest.fail("the block must not run")
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_link(self, artifact, tmp_path):
        (tmp_path / "link").symlink_to(artifact)
        with (
            pytest.raises(InputError, match="link exists and is no folder"),
            written_atomically(tmp_path / "link"),
        ):
            pytest.fail("the block must not run")

    @pytest.mark.parametrize("below", ["new", "deeper/new"])
    def test_a_parent_that_is_a_file(self, tmp_path, below):
        (tmp_path / "file").write_text("mine")
        with (
            pytest.raises(InputError, match=r"cannot write .*(Not a directory|File exists)"),
            written_atomically(tmp_path / "file" / below),
        ):
            pytest.fail("the block must not run")
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_parent_that_cannot_be_written(self, tmp_path, monkeypatch):
        def refused(self, *_, **__):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", refused)
            with (
                pytest.raises(InputError, match=r"cannot write .*new: Permission denied"),
                written_atomically(tmp_path / "new"),
            ):
                pytest.fail("the block must not run")
        assert list(tmp_path.iterdir()) == []
