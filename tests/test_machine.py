import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    assert machine.load_average() is None
    assert machine.processors() == {
        "processors": os.cpu_count(),
        "affinity": None,
        "governor": None,
    }
