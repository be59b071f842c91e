import json
import sys
from pathlib import Path

import pytest

from vadexport.errors import InputError
from vadexport.reporting import front_page, latency_json, parity_json, write_reports

pytest.importorskip("jinja2")

ALL = ["index.html", "junit.xml", "latency.json", "parity.json", "summary.md"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writes_all(make, tmp_path):
    v = make.verification()
    folder = tmp_path / "new" / "report"
    assert write_reports(v, folder) == []
    assert names(folder) == ALL
    assert front_page(folder) == folder / "index.html"
    assert json.loads((folder / "parity.json").read_text("utf-8")) == parity_json(v)
    assert json.loads((folder / "latency.json").read_text("utf-8")) == latency_json(v)
    assert (folder / "index.html").read_text("utf-8").startswith("<!doctype html>")


def test_removes_a_stale_latency(make, tmp_path):
    write_reports(make.verification(), tmp_path)
    (tmp_path / "build.json").write_text("{}")
    write_reports(make.verification(latency=None), tmp_path)
    assert names(tmp_path) == ["build.json", *(name for name in ALL if name != "latency.json")]


def test_names_that_are_no_text(make, tmp_path):
    v = make.verification(source_name="a\udcff.pt", records=(make.record("ü\udc80.png"),))
    write_reports(v, tmp_path)
    found = json.loads((tmp_path / "parity.json").read_text("utf-8"))
    assert found["source_name"] == "a\udcff.pt"
    assert found["images"][0]["name"] == "ü\udc80.png"
    assert "ü\\udc80.png" in (tmp_path / "index.html").read_text("utf-8")


def test_without_jinja2(make, tmp_path, monkeypatch):
    write_reports(make.verification(), tmp_path)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    (warning,) = write_reports(make.verification(), tmp_path)
    assert warning == (
        "index.html is not written: jinja2 is not installed here: pip install 'vadexport[report]'"
    )
    # A page of an older verification must not stay beside the new figures.
    assert names(tmp_path) == [name for name in ALL if name != "index.html"]
    assert front_page(tmp_path) == tmp_path / "summary.md"


def test_a_file_in_the_way(make, tmp_path):
    path = tmp_path / "report"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"cannot write the report .*report: File exists"):
        write_reports(make.verification(), path)
    assert path.read_text() == "mine"


def test_a_failed_write_leaves_the_old_file_and_no_other(make, tmp_path, monkeypatch):
    (tmp_path / "parity.json").write_text("old")
    write = Path.write_bytes

    def fill_the_disk(path, data):
        write(path, data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(InputError, match=r"cannot write .*parity\.json: No space left on device"):
        write_reports(make.verification(), tmp_path)
    assert names(tmp_path) == ["parity.json"]
    assert (tmp_path / "parity.json").read_text() == "old"
