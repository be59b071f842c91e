import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadexport.calibration import choose_calibration_set
from vadexport.calibration.diversity import spread_out
from vadexport.calibration.sets import MAX_CANDIDATES, MAX_CHECK_IMAGES, MAX_IMAGES
from vadexport.errors import InputError
from vadexport.images import ImageFile

counts = st.integers(1, 300)
seeds = st.integers(0, 2**32 - 1)


def files(count, folder=None):
    from pathlib import Path

    folder = folder or Path("/none")
    return [ImageFile(folder / f"{n}.png", f"{n}.png", None) for n in range(count)]


@given(count=counts, seed=seeds)
def test_where_none_needs_to_calibrate_only_spare_ones_do(count, seed):
    chosen = choose_calibration_set(files(count), calibrates=False, seed=seed)
    assert len(chosen.check) == min(count, MAX_CHECK_IMAGES)
    assert len(chosen.calibrate) == min(max(count - MAX_CHECK_IMAGES, 0), 2 * MAX_CHECK_IMAGES)
    assert chosen.disjoint


@given(count=counts, seed=seeds)
def test_no_image_both_calibrates_and_checks(count, seed):
    images = files(count)
    chosen = choose_calibration_set(images, seed=seed)
    calibrate, check = set(chosen.calibrate), set(chosen.check)
    assert len(calibrate) == len(chosen.calibrate)
    assert len(check) == len(chosen.check)
    assert calibrate | check <= set(images)
    if count >= 4:
        assert not calibrate & check
        assert chosen.disjoint
    else:
        assert chosen.check == chosen.calibrate
        assert not chosen.disjoint


@given(count=counts, seed=seeds)
def test_sizes(count, seed):
    chosen = choose_calibration_set(files(count), seed=seed)
    checks = min(MAX_CHECK_IMAGES, count // 4)
    assert len(chosen.check) == (checks or count)
    assert len(chosen.calibrate) == min(MAX_IMAGES, count - checks)


@given(count=st.integers(30, 300), seed=seeds)
def test_the_seed_decides(count, seed):
    images = files(count)
    chosen = choose_calibration_set(images, seed=seed)
    assert choose_calibration_set(images, seed=seed) == chosen
    assert choose_calibration_set(images, seed=seed + 1).calibrate != chosen.calibrate
    assert chosen.seed == seed


def test_is_spread_over_the_images():
    chosen = choose_calibration_set(files(1000))
    numbers = sorted(int(image.name.removesuffix(".png")) for image in chosen.calibrate)
    assert all(any(low <= n < low + 250 for n in numbers) for low in range(0, 1000, 250))


class TestDiverse:
    """Images described by the cube of their number."""

    def describe(self, candidates):
        numbers = [float(file.name.removesuffix(".png")) for file in candidates]
        return np.array(numbers, np.float32)[:, None] ** 3

    def chosen(self, count, seed=0):
        described = []

        def describe(candidates):
            described.extend(candidates)
            return self.describe(candidates)

        return choose_calibration_set(files(count), seed=seed, describe=describe), described

    @pytest.mark.parametrize("count", [1, 30, 116])
    def test_few_enough_images_are_not_described(self, count):
        chosen, described = self.chosen(count)
        assert described == []
        assert chosen == choose_calibration_set(files(count))

    @given(count=st.integers(117, 600), seed=seeds)
    def test_of_many_the_most_unlike_calibrate(self, count, seed):
        chosen, described = self.chosen(count, seed)
        assert len(described) == min(count - MAX_CHECK_IMAGES, MAX_CANDIDATES)
        assert set(chosen.calibrate) <= set(described)
        assert not set(chosen.check) & set(described)
        assert len(set(chosen.calibrate)) == MAX_IMAGES
        points = self.describe(described)
        assert chosen.calibrate == tuple(described[n] for n in spread_out(points, MAX_IMAGES))
        assert described[points.argmax()] in chosen.calibrate
        assert chosen == self.chosen(count, seed)[0]

    def test_the_seed_decides(self):
        assert self.chosen(600, 1)[0].calibrate != self.chosen(600, 2)[0].calibrate


def test_no_image_is_an_error():
    with pytest.raises(InputError, match="calibration set holds no normal image"):
        choose_calibration_set([])


class TestDigest:
    @pytest.fixture
    def folder(self, tmp_path):
        for number in range(6):
            (tmp_path / f"{number}.png").write_bytes(b"image" * number)
        return tmp_path

    def chosen(self, folder, count=6, seed=0):
        return choose_calibration_set(files(count, folder), seed=seed)

    def test_is_the_sha256_of_the_sorted_digests(self, folder):
        chosen = self.chosen(folder, 3)
        each = sorted(hashlib.sha256(b"image" * n).hexdigest()[:16] for n in range(3))
        assert chosen.entry().sha256 == hashlib.sha256("".join(each).encode()).hexdigest()

    def test_does_not_depend_on_order_and_names(self, folder, tmp_path):
        first = self.chosen(folder, 3)
        second = self.chosen(folder, 3, seed=1)
        third = self.chosen(folder, 3, seed=2)
        assert len({first.calibrate, second.calibrate, third.calibrate}) > 1
        other = tmp_path / "other"
        other.mkdir()
        for number in range(3):
            (other / f"{2 - number}.png").write_bytes(b"image" * number)
        digests = {each.entry().sha256 for each in (first, second, third, self.chosen(other, 3))}
        assert len(digests) == 1

    def test_depends_on_every_calibration_image_and_on_no_check_image(self, folder):
        chosen = self.chosen(folder)
        before = chosen.entry().sha256
        for image in chosen.check:
            image.path.write_bytes(b"changed")
        assert chosen.entry().sha256 == before
        for image in chosen.calibrate:
            data = image.path.read_bytes()
            image.path.write_bytes(data + b"!")
            assert chosen.entry().sha256 != before
            image.path.write_bytes(data)

    def test_counts_every_copy_of_an_image(self, folder):
        (folder / "1.png").write_bytes((folder / "0.png").read_bytes())
        assert self.chosen(folder, 2).entry().sha256 != self.chosen(folder, 1).entry().sha256

    def test_an_image_that_is_gone_is_named(self, folder):
        chosen = self.chosen(folder)
        chosen.calibrate[0].path.unlink()
        with pytest.raises(InputError, match=chosen.calibrate[0].name):
            chosen.entry()
