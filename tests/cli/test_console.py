import json
import sys

import pytest

from vadexport.cli.console import Console, columns
from vadexport.images.colouring import save_png
from vadexport.terminal import printable

#: Clears a terminal, and forges a line of its own.
EVIL = "a\x1b[2J\nb.png"
SHOWN = "a�[2J�b.png"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names that Windows refuses")


@pytest.fixture
def evil(crops, tmp_path):
    """A folder of one good image with an evil name."""
    folder = tmp_path / "images"
    folder.mkdir()
    save_png(crops[0], folder / EVIL)
    return folder


def assert_tame(done):
    for text in (done.stdout, done.stderr):
        assert "\x1b" not in text
        assert "\nb.png" not in text


def test_printable():
    assert printable(f"{EVIL}\x07\udc80ü 1") == f"{SHOWN}��ü 1"


def test_scores_of_an_evil_file(run, artifact, evil):
    done = run("predict", artifact, evil)
    assert done.returncode == 0, done.stderr
    assert_tame(done)
    assert [line.split()[-1] for line in done.stdout.splitlines()] == [SHOWN]


def test_json_keeps_the_name(run, artifact, evil):
    done = run("predict", artifact, evil, "--json")
    assert_tame(done)
    assert json.loads(done.stdout)["image"] == EVIL


def test_warnings_and_errors_about_an_evil_file(run, artifact, evil):
    (evil / f"z{EVIL}").write_bytes(b"no image")
    warned = run("predict", artifact, evil, "--skip-unreadable")
    assert_tame(warned)
    assert "warning: left out: " in warned.stderr
    failed = run("predict", artifact, evil)
    assert_tame(failed)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("vadexport: error: ")
    traced = run("predict", artifact, evil, "-v")
    assert "Traceback" in traced.stderr
    assert "\x1b" not in traced.stderr


def test_wrong_usage_with_an_evil_word(run):
    done = run("predict", "a", "b", f"--{EVIL}")
    assert done.returncode == 2
    assert_tame(done)


def test_facts_about_an_evil_file(run, checkpoint, tmp_path):
    path = tmp_path / EVIL
    path.write_bytes(checkpoint.read_bytes())
    done = run("inspect", path)
    assert done.returncode == 0, done.stderr
    assert_tame(done)
    assert SHOWN in done.stdout


def test_columns_hold_one_line_a_row():
    assert columns([("name", "x"), (EVIL, 1)]) == f"name         x\n{SHOWN}  1"


def test_everything_that_a_console_shows(capfd):
    console = Console()
    console._terminal = True  # draw the bar as well
    console.step(EVIL, 1, 2, EVIL)
    console.step(EVIL, 2, 2, EVIL)
    console.note(EVIL)
    console.result(EVIL)
    out, err = capfd.readouterr()
    assert out == "a�[2J\nb.png\n"  # a result may have several lines
    assert "\x1b[2J" not in err
    assert "\nb.png" not in err
