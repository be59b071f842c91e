import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vadexport
from vadexport import machine

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says")


@linux
def test_the_processors_are_those_that_linux_tells_of():
    found = machine.processors()
    assert found["processors"] == os.cpu_count()
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [each for each in status if each.startswith("Cpus_allowed_list:")]
    assert found["affinity"] == line.split()[1]


@given(st.sets(st.integers(0, 300), min_size=1))
def test_affinity_is_written_so_that_it_can_be_read_again(numbers):
    again = set()
    for part in machine._as_ranges(sorted(numbers)).split(","):
        first, _, last = part.partition("-")
        again.update(range(int(first), int(last or first) + 1))
    assert again == numbers


@pytest.mark.parametrize(
    ("group", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "max 100000"}, 4.0),
        ("0::/a\n", {"cpu.max": "300000 100000\n", "a/cpu.max": "400000 100000"}, 3.0),
        ("0::/elsewhere\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("0::/\n", {}, None),
        ("", {"cpu.max": "150000 100000\n"}, None),
        (
            "4:cpu,cpuacct:/docker/x\n3:memory:/\n",
            {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        (
            "4:cpu,cpuacct:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            None,
        ),
    ],
)
def test_the_quota_of_a_container(tmp_path, group, files, quota):
    (tmp_path / "own").write_text(group)
    for name, text in files.items():
        (tmp_path / "mounts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mounts" / name).write_text(text)
    assert machine.processor_quota(tmp_path / "mounts", tmp_path / "own") == quota


@pytest.mark.parametrize(("quota", "found"), [(None, 4), (1.5, 2), (0.2, 1), (9.0, 4)])
def test_no_more_processors_are_used_than_the_quota_allows(monkeypatch, quota, found):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(machine, "processor_quota", lambda: quota)
    assert machine.available_processors() == found


def test_governors(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_PROCESSORS", tmp_path)
    assert machine._governor([0, 1]) is None
    for number, name in enumerate(["performance", "powersave", "performance"]):
        (tmp_path / f"cpu{number}/cpufreq").mkdir(parents=True)
        (tmp_path / f"cpu{number}/cpufreq/scaling_governor").write_text(f"{name}\n")
    assert machine._governor([0, 2]) == "performance"
    assert machine._governor([0, 1, 5]) == "performance, powersave"


@linux
def test_the_load_is_that_of_the_last_minute():
    assert machine.load_average() == pytest.approx(os.getloadavg()[0], abs=0.5)


def test_where_the_system_does_not_say(monkeypatch):
    monkeypatch.delattr(os, "getloadavg", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(machine, "processor_quota", lambda: None)
    assert machine.load_average() is None
    assert machine.processors() == {
        "processors": os.cpu_count(),
        "affinity": None,
        "quota": None,
        "governor": None,
    }


def test_versions_are_of_what_is_installed_and_of_vadexport(monkeypatch):
    installed = {"torch": "2.13.0+cpu", "anomalib": "2.7.0", "tensorrt-rtx-cu12": "1.7.1.116"}

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert machine.tool_versions() == {
        "vadexport": vadexport.__version__,
        "torch": "2.13.0",
        "anomalib": "2.7.0",
        "tensorrt-rtx": "1.7.1.116",
    }


def test_versions_are_read_without_importing_what_they_are_of():
    code = (
        "import sys; from vadexport.machine import tool_versions; found = tool_versions(); "
        "print(sorted({'scipy', 'torch', 'timm', 'anomalib', 'openvino'} & sys.modules.keys()), "
        "{'scipy', 'torch'} <= found.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[] True\n", done.stderr
