import hashlib
import shutil

import numpy as np
import pytest

from vadexport.images import UnreadableImageError, digest_of_all, image_digest
from vadexport.images.colouring import save_png


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    save_png(np.arange(48, dtype=np.uint8).reshape(6, 8), path)
    return path


def test_is_the_start_of_the_sha256_of_the_bytes(picture):
    assert image_digest(picture) == hashlib.sha256(picture.read_bytes()).hexdigest()[:16]


def test_a_copy_has_the_same_digest_whatever_its_name(picture, tmp_path):
    copy = shutil.copyfile(picture, tmp_path / "other.jpg")
    assert image_digest(copy) == image_digest(picture)


def test_another_image_has_another_digest(picture, tmp_path):
    other = tmp_path / "b.png"
    save_png(np.arange(1, 49, dtype=np.uint8).reshape(6, 8), other)
    assert image_digest(other) != image_digest(picture)


@pytest.mark.parametrize("name", ["none.png", "."])
def test_what_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(UnreadableImageError, match=f"{tmp_path / name} cannot be read"):
        image_digest(tmp_path / name)


def test_the_digest_of_all_is_of_every_image_whatever_the_order():
    found = digest_of_all(["b", "a", "a"])
    assert found == hashlib.sha256(b"aab").hexdigest()
    assert found == digest_of_all(["a", "b", "a"]) != digest_of_all(["a", "b"])
