import json
import time

import pytest

from vadexport.cli.doctor import _note
from vadexport.targets import all_targets


@pytest.fixture
def broken(tmp_path):
    """Put packages in front of the real ones: their import runs the given code."""

    def put(**packages):
        for name, code in packages.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(code)
        return str(tmp_path)

    return put


def test_a_package_that_works_and_one_that_does_not(run, broken):
    begin = time.monotonic()
    done = run("doctor", PYTHONPATH=broken(jinja2="raise ImportError('its library\\nis too old')"))
    assert time.monotonic() - begin < 30
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(":  ", 1) for line in done.stdout.splitlines() if ":  " in line)
    assert (
        lines["HTML reports"]
        .strip()
        .startswith("broken: import of jinja2 failed: ImportError: its library (log: ")
    )
    assert lines["fit, build, verify"].strip().startswith("torch 2.")
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    for precision in ("fp32", "int8", "auto"):
        assert "works, onnxruntime " in rows[f"onnxruntime:{precision}"]


def test_what_no_gpu_here_can_run(run):
    found = json.loads(run("doctor", "--json").stdout)["targets"]
    rows = {line.split()[0]: line for line in run("doctor").stdout.splitlines()}
    for name in ("onnxruntime:fp16@cuda", "tensorrt-rtx:fp16", "tensorrt:fp16"):
        target, said = found[name], rows[name].removeprefix(name).strip()
        if target["status"] == "missing":
            assert said == f"missing: {target['reason']}"
            assert not target["runs"]
        elif not target["runs"]:
            assert said.endswith(target["device"])
            assert "NVIDIA GPU" in target["device"] or "pip install" in target["device"]
            if not name.startswith("tensorrt:"):  # which builds on the GPU alone
                assert said.startswith(f"builds, {name.partition(':')[0]} {target['version']}; ")
    assert found["openvino:fp32"]["device"] is None


@pytest.mark.parametrize("saturates", [True, False])
def test_what_int8_is_on_this_processor(saturates):
    noted = {str(each) for each in all_targets() if _note(each, saturates=saturates)}
    assert noted == ({"openvino:int8", "openvino:auto"} if saturates else set())


def test_a_backend_that_crashes(run, broken):
    path = broken(openvino="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    found = json.loads(run("doctor", "--json", PYTHONPATH=path).stdout)
    crashed = found["targets"]["openvino:fp32"]
    assert crashed.pop("reason").startswith("import of openvino crashed (SIGSEGV)")
    expected = {"version": None, "runs": False, "device": None, "note": None}
    assert crashed == {"status": "broken", **expected}
    works = found["targets"]["onnxruntime:fp32"]
    assert works.pop("version")[0].isdigit()
    assert works == {"status": "works", "reason": None, "runs": True, "device": None, "note": None}


def test_a_package_that_is_not_there(run, tmp_path):
    # As an import of None in sys.modules: found by no one.
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['jinja2'] = None")
    found = json.loads(run("doctor", "--json", PYTHONPATH=str(tmp_path)).stdout)
    assert found["packages"]["jinja2"] == {
        "status": "missing",
        "version": None,
        "reason": "jinja2 is not installed here: pip install 'vadexport[report]'",
    }
    shown = run("doctor", PYTHONPATH=str(tmp_path)).stdout
    assert "jinja2 is not installed here: pip install 'vadexport[report]'" in shown
