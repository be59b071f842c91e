import pytest

from vadexport.config import read_config


@pytest.fixture
def read(tmp_path):
    """Read a text as a file in a folder of its own."""

    def read(text):
        path = tmp_path / "vadexport.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_config(path)

    return read
