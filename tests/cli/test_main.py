import re
import tomllib
from pathlib import Path

import pytest

from vadexport.backends.registry import get_backend
from vadexport.cli.main import _REQUIRED
from vadexport.targets import PRECISIONS

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]


@pytest.fixture
def without(tmp_path):
    """The environment in which a module is not installed."""

    def hide(name):
        code = f"import sys; sys.modules[{name!r}] = None"
        (tmp_path / "sitecustomize.py").write_text(code)
        return {"PYTHONPATH": str(tmp_path)}

    return hide


@pytest.mark.parametrize("module", ["onnxsim", "torch", "PIL"])
def test_a_required_package_that_is_missing(run, without, checkpoint, images, tmp_path, module):
    words = ["build", checkpoint, "-o", tmp_path / "a", "--calibration", images / "good"]
    done = run(*words, **without(module))
    package = {"PIL": "pillow"}.get(module, module)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"vadexport: error: {package} is not installed here: pip install vadexport"
    )
    assert not (tmp_path / "a").exists()


def test_a_missing_backend_that_vadexport_always_brings(run, without, artifact, images):
    done = run("predict", artifact, images / "good", **without("onnxruntime"))
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].endswith(
        "onnxruntime is not installed here: pip install vadexport"
    )


def test_another_missing_module_is_a_defect(run, without, checkpoint):
    done = run("inspect", checkpoint, **without("vadexport.sources.registry"))
    assert done.returncode == 70
    assert "please report it" in done.stderr


def test_required_packages_are_those_of_the_project():
    declared = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}
    assert set(_REQUIRED.values()) == declared - {"click"}  # main itself needs it


def test_extras_that_errors_name_exist():
    extras = {get_backend(name).EXTRA for name in PRECISIONS} - {None}
    assert extras == {"openvino", "tensorrt", "tensorrt-rtx"}
    assert extras <= set(PROJECT["optional-dependencies"])


def test_help_names_every_exit_status(run):
    shown = run("--help").stdout
    numbers = re.findall(r"(?:^|  )(\d+) ", shown.split("Exit status:")[1].split("Options:")[0])
    assert numbers == ["0", "1", "2", "3", "4", "70", "130"]
