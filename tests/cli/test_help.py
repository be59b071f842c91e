import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "scipy", "safetensors", "PIL"}
CODE = """
import sys
from vadexport.cli.main import main
try:
    main()
finally:
    print(*sorted(sys.modules), sep="\\n", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    ["", "fit", "build", "verify", "bench", "evaluate", "predict", "inspect", "init", "doctor"],
)
def test_help_waits_for_nothing_heavy(command):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *command.split(), "--help"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert "Usage: vadexport" in done.stdout
    assert "Example" in done.stdout
    assert ("--search-minutes" in done.stdout) == (command == "build")
    loaded = set(done.stderr.split())
    assert "vadexport.cli.main" in loaded
    assert not loaded & HEAVY
