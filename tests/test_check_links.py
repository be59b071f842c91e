"""The dead-link check catches what it is for, and lets good documents pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "check_links.py"

GOOD = """\
# A title: `code`, and more

[guide](docs/guide.md#second-part), [picture ![p](docs/p.png)](docs/), [there][ref],
[here](#a-title-code-and-more), <a href="docs/guide.md">too</a>, [twice](docs/guide.md#part-1),
[out](https://example.org/a_(b)?c#d), [underlined](docs/guide.md#under-lined),
[named](docs/guide.md#by-hand), `[not a link](nowhere.md)`

[ref]: docs/guide.md "Title"

```md
[not a link either](nowhere.md)
```
"""
GUIDE = """\
# Guide

## Part
## Part
## [Second](p.png) part ##

Under lined
-----------
<a id="by-hand"></a> [up](../README.md)
"""


@pytest.fixture
def documents(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/p.png").touch()
    (tmp_path / "docs/guide.md").write_text(GUIDE)
    (tmp_path / "README.md").write_text(GOOD)
    return tmp_path


def check(root):
    run = subprocess.run(
        [sys.executable, SCRIPT, "--root", root],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not run.stderr
    return run.returncode, run.stdout


def test_good_documents_pass(documents):
    status, output = check(documents)
    assert (status, "2 documents, 0 dead" in output) == (0, True), output


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](gone.md)", "no such file: 'gone.md'"),
        ("![a](docs/gone.png)", "no such file: 'docs/gone.png'"),
        ("[![a](docs/gone.png)](docs/guide.md)", "no such file: 'docs/gone.png'"),
        ("[a]()", "no such file: ''"),
        ("[a]: gone.md", "no such file: 'gone.md'"),
        ('<img width="9" src="gone.png">', "no such file: 'gone.png'"),
        ("[a](docs/guide.md#gone)", "no such heading: docs/guide.md#gone"),
        ("[a](#gone)", "no such heading: #gone"),
        ("[a](docs/guide.md#part-2)", "no such heading: docs/guide.md#part-2"),
        ("[a](../../../etc)", "lies outside the repository: ../../../etc"),
        ("[a](https:/example.org)", "malformed address: https:/example.org"),
        ("[a](htp://example.org)", "malformed address: htp://example.org"),
    ],
)
def test_dead_link_is_named_with_its_line(documents, text, problem):
    with (documents / "README.md").open("a") as readme:
        readme.write(f"\n{text}\n")
    line = len(GOOD.splitlines()) + 2
    status, output = check(documents)
    assert status == 1
    assert f"README.md:{line}: {problem}\n" in output


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("$ vadexport frobnicate x", "no such command: vadexport frobnicate"),
        (".venv/bin/vadexport frobnicate", "no such command: vadexport frobnicate"),
        ("X=1 vadexport build a \\\n --nonsense 3", "no such option: vadexport build --nonsense"),
        ("vadexport build a -o b | grep --frobnicate", None),
        ("vadexport build --help", None),
        ("vadexport --version", None),
        ("vadexport COMMAND --help", None),
        ("it's what vadexport prints", None),
    ],
)
def test_command_that_does_not_exist_is_named(documents, text, problem):
    pytest.importorskip("vadexport.cli.main", reason="the command line is not there yet")
    (documents / "README.md").write_text(f"# T\n\n```console\n{text}\n```\n")
    status, output = check(documents)
    assert status == (1 if problem else 0), output
    assert problem is None or f"README.md:4: {problem}\n" in output
