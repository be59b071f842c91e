import os
import subprocess
import sys

import pytest

HEAVY = [
    *("torch", "onnx", "matplotlib", "PIL", "openvino", "onnxruntime", "scipy", "click"),
    *("tensorrt", "tensorrt_rtx", "cuda.bindings", "pynvml"),
]


def loaded_by(statement):
    """Modules that a fresh interpreter has loaded after `statement`."""
    code = f"import sys; {statement}; print(*sorted(sys.modules), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def runtime():
    return loaded_by("import vadexport.runtime; vadexport.runtime.load")


@pytest.mark.parametrize("name", HEAVY)
def test_the_runtime_loads_nothing_heavy(runtime, name):
    assert "vadexport.runtime.loading" in runtime
    assert "numpy" in runtime
    assert name not in runtime


@pytest.mark.parametrize(
    ("backend", "allowed"),
    [
        ("openvino", "openvino"),
        ("onnxruntime", "onnxruntime"),
        ("tensorrt-rtx", "tensorrt_rtx"),
    ],
)
def test_a_backend_loads_its_package_when_it_is_used_and_no_other(backend, allowed):
    pytest.importorskip(allowed)
    start = f"from vadexport.backends.registry import get_backend; b = get_backend('{backend}')"
    assert not loaded_by(start) & set(HEAVY)
    assert loaded_by(f"{start}; b.version()") & set(HEAVY) == {allowed}


def test_no_openvino_telemetry_is_loaded():
    start = "from vadexport.backends.registry import get_backend"
    code = f"{start}; get_backend('openvino').version()"
    absent = "sys.modules['openvino_telemetry'] is None or sys.exit('loaded')"
    assert "openvino" in loaded_by(f"{code}; {absent}")


def test_onnx_runtime_is_told_to_report_nothing_before_it_is_loaded():
    code = "from vadexport.backends.registry import get_backend; get_backend('onnxruntime').version"
    off = "import os; os.environ.get('ORT_DISABLE_TELEMETRY') == '1' or sys.exit('on')"
    assert "onnxruntime" not in loaded_by(code)
    assert "onnxruntime" in loaded_by(f"{code}(); {off}")
