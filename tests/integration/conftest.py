import json
import sys
from types import SimpleNamespace

import pytest

from vadexport.cli.main import main
from vadexport.detectors.checkpoint import save_detector
from vadexport.images.colouring import save_png


@pytest.fixture
def vadexport(monkeypatch, capfd):
    """Run a command line in this process; gives its exit status, output and error output."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["vadexport", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return SimpleNamespace(status=ended.value.code, out=out, err=err)

    return run


@pytest.fixture(scope="session")
def images(crops, tmp_path_factory):
    """Twelve normal images, and four of them with a bright scratch, in labelled folders."""
    root = tmp_path_factory.mktemp("images")
    (root / "good").mkdir()
    (root / "scratch").mkdir()
    for number, crop in enumerate(crops):
        save_png(crop, root / "good" / f"{number}.png")
        if number < 4:
            scratched = crop.copy()
            scratched[40:44, 10:80] = 255
            save_png(scratched, root / "scratch" / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def checkpoint(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "detector.safetensors"
    save_detector(plain, path)
    return path


@pytest.fixture(scope="session")
def artifacts(checkpoint, images, tmp_path_factory):
    """A build of every target, by the command's own pipeline."""
    from vadexport.building import BuildOptions, build
    from vadexport.listening import Listener
    from vadexport.targets import all_targets

    folder = tmp_path_factory.mktemp("build") / "artifacts"
    options = BuildOptions(checkpoint, folder, tuple(all_targets()), str(images / "good"))
    result = build(options, Listener())
    assert [str(one.error) for one in result.targets if one.error] == []
    return folder


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
