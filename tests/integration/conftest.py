import json
import sys
from types import SimpleNamespace

import pytest

from tests.exports import remembered_exports
from vadexport.cli.main import main


@pytest.fixture
def vadexport(monkeypatch, capfd):
    """Run a command line in this process; gives its exit status, output and error output."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["vadexport", *map(str, words)])
        capfd.readouterr()
        with remembered_exports(), pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return SimpleNamespace(status=ended.value.code, out=out, err=err)

    return run


@pytest.fixture
def tampered(checkpoint, tmp_path):
    """Write the checkpoint again with some tensors and parts of its header changed."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    def change(tensors=None, **header):
        with safe_open(checkpoint, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            old = json.loads(file.metadata()["vadexport"])
        for name, function in (tensors or {}).items():
            state[name] = function(state[name])
        path = tmp_path / "tampered.safetensors"
        save_file(state, path, {"vadexport": json.dumps({**old, **header})})
        return path

    return change
