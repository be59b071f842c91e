import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vadexport.errors import InputError
from vadexport.files import written_text, written_whole


@pytest.fixture
def umask():
    """A function that sets the umask for the test."""
    old = os.umask(0o022)
    yield os.umask
    os.umask(old)


def names(folder):
    return [path.name for path in folder.iterdir()]


def interrupted(path):
    with written_text(path) as file:
        file.write("half")
        raise KeyboardInterrupt


class TestRegularFiles:
    def test_appears_when_the_block_ends(self, tmp_path):
        path = tmp_path / "a.txt"
        with written_text(path) as file:
            file.write("ü\n")
            assert not path.exists()
        assert path.read_bytes() == "ü\n".encode()
        assert names(tmp_path) == ["a.txt"]

    def test_a_failed_block_leaves_the_old_file_and_no_other(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with pytest.raises(KeyboardInterrupt):
            interrupted(path)
        assert path.read_text() == "old"
        assert names(tmp_path) == ["a.txt"]

    @pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
    def test_the_mode_is_what_the_umask_leaves(self, tmp_path, umask, mask, mode):
        umask(mask)
        with written_whole(tmp_path / "a") as path:
            save_file({"a": torch.zeros(1)}, path)  # by itself 0600
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode

    def test_the_longest_name(self, tmp_path):
        name = "ü" * 127
        with written_text(tmp_path / name) as file:
            file.write("whole")
        assert names(tmp_path) == [name]

    def test_a_full_disk(self, tmp_path):
        with (
            pytest.raises(InputError, match=r"cannot write .*a\.txt: No space left"),
            written_text(tmp_path / "a.txt"),
        ):
            raise OSError(28, "No space left on device")
        assert names(tmp_path) == []

    def test_a_missing_folder(self, tmp_path):
        path = tmp_path / "none" / "a"
        with pytest.raises(InputError, match="No such file or directory"), written_text(path):
            pass

    def test_a_folder_in_the_place_is_said_before_the_work(self, tmp_path):
        with pytest.raises(InputError, match="folder"), written_text(tmp_path):
            pytest.fail("the block began")

    def test_a_loop_of_links(self, tmp_path):
        (tmp_path / "a").symlink_to("a")
        with pytest.raises(InputError, match="cannot write"), written_text(tmp_path / "a"):
            pass
        assert (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_file_is_replaced(tmp_path, there):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "b.txt", tmp_path / "a.txt"
    if there:
        target.write_text("old")
    link.symlink_to("real/b.txt")
    with written_text(link) as file:
        file.write("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert names(tmp_path / "real") == ["b.txt"]


def test_a_pipe_gets_each_line_at_once(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    lines = []
    got_first = threading.Event()

    def read():
        with path.open() as pipe:
            for line in pipe:
                lines.append(line)
                got_first.set()

    reader = threading.Thread(target=read)
    reader.start()
    with written_text(path) as file:
        file.write("one\n")
        assert got_first.wait(10)
        file.write("two\n")
    reader.join(10)
    assert lines == ["one\n", "two\n"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_pipe_gets_a_whole_file(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    got = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    with written_whole(path) as temporary:
        temporary.write_bytes(b"whole")
    reader.join(10)
    assert got == [b"whole"]
    assert names(tmp_path) == ["pipe"]


CODE = """
import sys
from pathlib import Path
from vadexport.files import written_text, written_whole
print("before", flush=True)
with written_text(Path(sys.argv[1])) as file:
    file.write("in it\\n")
print("between", flush=True)
with written_whole(Path(sys.argv[1])) as path:
    path.write_text("whole\\n")
print("after")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
class TestOwnOutput:
    """Paths that stand for standard output, links to them, and the null device stay."""

    @pytest.fixture(params=["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1", "a link"])
    def name(self, request, tmp_path):
        if request.param != "a link":
            return request.param
        (tmp_path / "link").symlink_to("/dev/stdout")
        return tmp_path / "link"

    @pytest.mark.parametrize("redirected", [True, False])
    def test_is_written_into_in_order(self, name, tmp_path, redirected):
        output = tmp_path / "out.txt"
        command = [sys.executable, "-c", CODE, name]
        with output.open("wb") as file:
            inode = output.stat().st_ino
            stdout = file if redirected else subprocess.PIPE
            done = subprocess.run(command, check=True, stdout=stdout)
        written = output.read_bytes() if redirected else done.stdout
        assert written.split(b"\n") == [b"before", b"in it", b"between", b"whole", b"after", b""]
        assert output.stat().st_ino == inode
        assert Path("/dev/stdout").is_symlink()

    def test_the_null_device(self, tmp_path):
        (tmp_path / "null").symlink_to(os.devnull)
        with written_text(tmp_path / "null") as file:
            file.write(json.dumps({}))
        assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)
        assert (tmp_path / "null").is_symlink()
