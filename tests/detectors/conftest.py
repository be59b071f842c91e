import pytest

from vadexport.detectors.checkpoint import save_detector


@pytest.fixture
def saved(resizing, tmp_path):
    path = tmp_path / "detector.safetensors"
    save_detector(resizing, path)
    return path


@pytest.fixture(scope="module")
def whole(resizing, tmp_path_factory):
    """A good file that no test changes."""
    path = tmp_path_factory.mktemp("whole") / "detector.safetensors"
    save_detector(resizing, path)
    return path
