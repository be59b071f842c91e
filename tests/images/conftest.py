import pytest

from tests.images.files import encoded
from vadexport.images.listing import list_images


@pytest.fixture
def write(tmp_path):
    def write(content, name="image.png"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def files(tmp_path):
    """Writes PNG files and lists them: `files(name=array_or_bytes)`."""

    def files(**contents):
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else encoded(content, "PNG")
            (tmp_path / f"{name}.png").write_bytes(data)
        return list_images(tmp_path)

    return files
