import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vadexport.errors import InputError
from vadexport.images import listing
from vadexport.images.listing import ImageFile, list_images, training_images

fast = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def make(root, *names):
    """Listing never looks into images, so empty files do."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(files):
    return [file.name for file in files]


def labels(files):
    return {file.name: file.label for file in files}


@pytest.fixture
def category(tmp_path):
    return make(
        tmp_path / "bottle",
        "license.txt",
        "train/good/000.png",
        "train/good/001.png",
        "test/good/000.png",
        "test/broken/000.png",
        "ground_truth/broken/000_mask.png",
    )


class TestFolder:
    def test_is_recursive_and_takes_every_image_suffix(self, tmp_path):
        wanted = ["a.PNG", "b.jpg", "c.JPEG", "d.bmp", "e.tif", "f.tiff", "g/h/i.WebP"]
        make(tmp_path, *wanted, "readme.md", "k.png.json", "gif.gif", "png")
        assert names(list_images(tmp_path)) == wanted

    def test_gives_paths_that_exist(self, tmp_path):
        make(tmp_path, "g/a.png")
        assert list_images(str(tmp_path)) == [ImageFile(tmp_path / "g/a.png", "g/a.png", None)]

    def test_order_is_natural(self, tmp_path):
        make(tmp_path, "10.png", "9.png", "b/1.png", "a/2.png", "a/10.png", "a/02.png")
        wanted = ["9.png", "10.png", "a/02.png", "a/2.png", "a/10.png", "b/1.png"]
        assert names(list_images(tmp_path)) == wanted

    def test_leaves_out_hidden_files_and_folders(self, tmp_path):
        make(tmp_path, "a.png", ".b.png", ".cache/c.png", "d/.e/f.png")
        assert names(list_images(tmp_path)) == ["a.png"]

    def test_a_hidden_folder_can_be_named(self, tmp_path):
        assert names(list_images(make(tmp_path / ".cache", "a.png"))) == ["a.png"]

    def test_masks_are_never_images(self, category):
        make(category.parent, "cable/train/good/000.png", "cable/ground_truth/cut/000_mask.png")
        assert not [name for name in names(list_images(category.parent)) if "mask" in name]

    def test_a_name_that_looks_like_a_glob(self, tmp_path):
        make(tmp_path, "a.png")
        assert names(list_images(make(tmp_path / "set[1]", "b.png"))) == ["b.png"]

    def test_the_current_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(make(tmp_path, "a/b.png"))
        assert list_images(".") == [ImageFile(Path("a/b.png"), "a/b.png", None)]

    @pytest.mark.skipif(os.name == "nt", reason="names are always text there")
    def test_a_name_that_is_not_text_can_be_written_to_a_report(self, tmp_path):
        try:
            (tmp_path / os.fsdecode(b"\xff.png")).touch()
        except OSError:
            pytest.skip("this file system takes only text")
        (file,) = list_images(tmp_path)
        assert file.name.encode() == b"\\udcff.png"
        assert file.path.exists()


class TestFolderLabels:
    def test_unknown_without_a_folder_good(self, tmp_path):
        make(tmp_path, "a.png", "bad/b.png", "good.png")
        assert set(labels(list_images(tmp_path)).values()) == {None}

    def test_good_and_all_others(self, tmp_path):
        make(tmp_path, "a.png", "good/b.png", "x/good/y/c.png", "broken/d.png", "goods/e.png")
        assert labels(list_images(tmp_path)) == {
            "a.png": True,
            "broken/d.png": True,
            "good/b.png": False,
            "goods/e.png": True,
            "x/good/y/c.png": False,
        }

    def test_the_given_folder_is_good(self, tmp_path):
        root = make(tmp_path / "good", "a.png", "dusty/b.png")
        assert labels(list_images(root)) == {"a.png": False, "dusty/b.png": False}

    @pytest.mark.parametrize("spec", [".", "dusty/..", "*.png", "**/*.png"])
    def test_the_current_folder_is_good(self, tmp_path, monkeypatch, spec):
        monkeypatch.chdir(make(tmp_path / "good", "a.png", "dusty/b.png"))
        assert labels(list_images(spec))["a.png"] is False

    def test_folders_above_the_given_one_do_not_count(self, tmp_path):
        assert labels(list_images(make(tmp_path / "good/x", "a.png"))) == {"a.png": None}


class TestCategory:
    def test_all(self, category):
        assert labels(list_images(category)) == {
            "test/broken/000.png": True,
            "test/good/000.png": False,
            "train/good/000.png": False,
            "train/good/001.png": False,
        }

    def test_training(self, category):
        make(category, "train/scratched/000.png")
        wanted = {"train/good/000.png": False, "train/good/001.png": False}
        assert labels(training_images(category)) == wanted

    def test_test(self, category):
        wanted = {"test/broken/000.png": True, "test/good/000.png": False}
        assert labels(listing.test_images(category)) == wanted

    def test_test_images_are_labelled_even_if_none_is_normal(self, tmp_path):
        root = make(tmp_path, "train/good/0.png", "test/broken/0.png")
        assert labels(listing.test_images(root)) == {"test/broken/0.png": True}

    @pytest.mark.parametrize("train", ["train/0.png", "train/normal/0.png", "other/0.png"])
    def test_training_without_train_good(self, tmp_path, train):
        root = make(tmp_path, train, "test/good/0.png", "test/broken/0.png")
        with pytest.raises(InputError, match=r"has no folder train/good: give the folder"):
            training_images(root)

    def test_testing_without_test(self, tmp_path):
        with pytest.raises(InputError, match="has no folder test"):
            listing.test_images(make(tmp_path, "train/good/0.png"))

    def test_train_good_without_images(self, tmp_path):
        root = make(tmp_path, "train/good/notes.md", "test/broken/0.png")
        with pytest.raises(InputError, match="train/good: 1 files, none of them an image"):
            training_images(root)

    def test_test_good_may_be_a_link_to_train_good(self, tmp_path):
        root = make(tmp_path, "train/good/0.png", "test/broken/0.png")
        (root / "test/good").symlink_to("../train/good")
        assert "test/good/0.png" in names(listing.test_images(root))


class TestTrainingAndTestOfOther:
    def test_a_folder(self, tmp_path):
        root = make(tmp_path, "good/0.png", "broken/1.png")
        assert names(training_images(root)) == ["good/0.png"]
        assert names(listing.test_images(root)) == ["broken/1.png", "good/0.png"]

    def test_unlabelled_images_train(self, tmp_path):
        assert names(training_images(make(tmp_path, "0.png", "x/1.png"))) == ["0.png", "x/1.png"]

    def test_a_folder_that_happens_to_be_named_test(self, tmp_path):
        root = make(tmp_path, "0.png", "test/1.png")
        assert names(training_images(root)) == ["0.png", "test/1.png"]
        assert names(listing.test_images(root)) == ["0.png", "test/1.png"]

    def test_all_anomalous(self, tmp_path):
        make(tmp_path, "0.png")
        (tmp_path / "list.txt").write_text("0.png\t1")
        with pytest.raises(InputError, match=r"all 1 images of .* are anomalous"):
            training_images(tmp_path / "list.txt")


class TestGlob:
    @pytest.mark.parametrize(
        ("pattern", "wanted"),
        [
            ("*.png", ["0.png", "1.png"]),
            ("[0]*", ["0.png"]),
            ("?.png", ["0.png", "1.png"]),
            ("*/*.png", ["a/2.png", "b/4.png"]),
            ("**/*.png", ["0.png", "1.png", "a/2.png", "a/c/3.png", "b/4.png"]),
            ("**", ["0.png", "1.png", "a/2.png", "a/c/3.png", "b/4.jpg", "b/4.png"]),
            ("**/**/3*", ["a/c/3.png"]),
            ("**/c/*", ["a/c/3.png"]),
            ("*/4.png", ["b/4.png"]),
            ("*/c/**/*.png", ["a/c/3.png"]),
        ],
    )
    def test_matches(self, tmp_path, pattern, wanted):
        make(tmp_path, "0.png", "1.png", "a/2.png", "a/c/3.png", "b/4.png", "b/4.jpg", "b/5.md")
        make(tmp_path, ".h/6.png", ".7.png", "ground_truth/c/8.png")
        assert names(list_images(f"{tmp_path}/{pattern}")) == wanted

    def test_a_file_that_matches_in_two_ways_is_listed_once(self, tmp_path):
        make(tmp_path, "a/a/0.png")
        assert names(list_images(f"{tmp_path}/**/a/**/*.png")) == ["a/a/0.png"]
        make(tmp_path, "a/a/notes.md")
        with pytest.raises(InputError, match="1 files, none"):
            list_images(f"{tmp_path}/**/a/**/*.md")

    def test_names_begin_below_the_part_without_wildcards(self, tmp_path):
        make(tmp_path, "a/b/0.png")
        assert list_images(tmp_path / "a" / "*" / "*.png") == [
            ImageFile(tmp_path / "a/b/0.png", "b/0.png", None)
        ]

    def test_labels(self, tmp_path):
        make(tmp_path, "good/0.png", "broken/1.png")
        wanted = {"broken/1.png": True, "good/0.png": False}
        assert labels(list_images(f"{tmp_path}/*/*.png")) == wanted
        assert labels(list_images(f"{tmp_path}/good/*.png")) == {"0.png": False}

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            ("*.jpg", "no file matches"),
            ("none/*.png", "there is no folder .*none"),
            ("*", "1 files, none of them an image"),
        ],
    )
    def test_without_images(self, tmp_path, pattern, message):
        make(tmp_path, "notes.md", "a/0.png")
        with pytest.raises(InputError, match=message):
            list_images(f"{tmp_path}/{pattern}")


class TestTextList:
    def test_paths_labels_comments(self, tmp_path):
        root = make(tmp_path / "root", "a/0.png", "1 2.png", "2.png", "#3.png", "4.png", "5.png")
        path = make(root / "lists", "6.png") / "all.LST"
        path.write_text(
            "\ufeff# a comment\n\n"
            "../a/0.png\tnormal\r\n"
            "  ../1 2.png \t good \n"
            "../2.png\t0\n"
            "../#3.png\tanomalous\n"
            "../4.png\tdefect\n"
            f"{root}/5.png\t1\n"
            "6.png",
            encoding="utf-8",
            newline="",
        )
        assert labels(list_images(path)) == {
            "../#3.png": True,
            "../1 2.png": False,
            "../2.png": False,
            "../4.png": True,
            "../a/0.png": False,
            f"{root}/5.png": True,
            "6.png": None,
        }
        assert all(file.path.is_file() for file in list_images(path))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "lists no images"),
            ("# nothing\n\n", "lists no images"),
            ("0.png\nnone.png", r"list\.txt, line 2: no such file: none\.png"),
            ("# one\n0.png\tbroken", r"line 2: label 'broken' is none of normal, good, 0, "),
            ("0.png\tgood\textra", r"line 1: label 'good\\textra' is none of"),
            ("0.png Good", r"line 1: no such file: 0\.png Good"),
            ("a", "line 1: a is a folder"),
            ("notes.md", r"line 1: notes\.md is not an image \(\.png "),
            ("0.png\n./0.png", r"line 2: \./0\.png is listed twice"),
            ("0.png\n" + "x" * 5000, "line 2: cannot read .*File name too long"),
        ],
    )
    def test_errors_name_the_line(self, tmp_path, text, message):
        path = make(tmp_path, "0.png", "a/1.png", "notes.md") / "list.txt"
        path.write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            list_images(path)
        assert "\n" not in str(caught.value)

    def test_not_text(self, tmp_path):
        path = tmp_path / "list.txt"
        path.write_bytes(b"\xff\xfe0\x00")
        with pytest.raises(InputError, match=r"list\.txt .* not UTF-8 text"):
            list_images(path)

    @fast
    @given(st.text() | st.from_regex(r"([01]\.png(\t(good|1|.))?|#.*|\s)(\n.*)*", fullmatch=True))
    def test_any_text_is_a_list_or_a_users_error(self, tmp_path, text):
        path = make(tmp_path, "0.png", "1.png") / "list.txt"
        path.write_bytes(text.encode("utf-8"))
        try:
            found = {file.path for file in list_images(path)}
        except InputError:
            found = set()
        assert found <= {tmp_path / "0.png", tmp_path / "1.png"}


class TestSingleFile:
    def test_image(self, tmp_path):
        make(tmp_path, "a/0.png", "a/1.png", "good/0.png")
        assert list_images(tmp_path / "a/0.png") == [ImageFile(tmp_path / "a/0.png", "0.png", None)]
        assert labels(list_images(tmp_path / "good/0.png")) == {"0.png": False}

    def test_other_suffix(self, tmp_path):
        make(tmp_path, "film.mp4")
        with pytest.raises(InputError, match=r"film\.mp4 is neither an image \(.*\) nor a list"):
            list_images(tmp_path / "film.mp4")


class TestMissing:
    def test_path(self, tmp_path):
        with pytest.raises(InputError, match=r"no such file or folder: .*none"):
            list_images(tmp_path / "none")

    def test_nothing(self):
        with pytest.raises(InputError, match="IMAGES is empty"):
            list_images("")

    def test_empty_folder(self, tmp_path):
        make(tmp_path, ".hidden", "a/b/.hidden.png")
        with pytest.raises(InputError, match="no files there"):
            list_images(tmp_path)

    def test_folder_without_images_tells_how_many_files_and_which_suffixes_count(self, tmp_path):
        make(tmp_path, "a.gif", "b/c.txt", "d")
        with pytest.raises(
            InputError, match=r": 3 files, none of them an image \(\.png .*webp \.dcm \.dicom\)"
        ):
            list_images(tmp_path)

    def test_folder_that_cannot_be_read(self, tmp_path, monkeypatch):
        # Tests may run as root, whom no file system refuses.
        def refuse(self):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "iterdir", refuse)
        with pytest.raises(InputError, match=f"cannot read {tmp_path}: Permission denied"):
            list_images(tmp_path)

    def test_name_too_long(self):
        with pytest.raises(InputError, match=r"cannot read .*File name too long"):
            list_images("x" * 5000)

    def test_neither_file_nor_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # socket names are short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket.png")
            with pytest.raises(InputError, match="neither a folder nor a file"):
                list_images("socket.png")


class TestLinks:
    def test_to_an_image(self, tmp_path):
        make(tmp_path, "pool/0.png", "set/a.md")
        (tmp_path / "set/good").mkdir()
        (tmp_path / "set/good/0.png").symlink_to(tmp_path / "pool/0.png")
        (tmp_path / "set/good/1.png").symlink_to(tmp_path / "pool/0.png")
        assert names(list_images(tmp_path / "set")) == ["good/0.png", "good/1.png"]

    def test_to_nowhere_is_not_passed_over(self, tmp_path):
        (make(tmp_path, "0.png") / "1.png").symlink_to("none.png")
        assert names(list_images(tmp_path)) == ["0.png", "1.png"]

    def test_to_a_folder(self, tmp_path):
        make(tmp_path, "pool/0.png", "set/1.png")
        (tmp_path / "set/linked").symlink_to(tmp_path / "pool")
        assert names(list_images(tmp_path / "set")) == ["1.png", "linked/0.png"]

    def test_a_folder_is_listed_under_its_real_name(self, tmp_path):
        (make(tmp_path, "z/good/0.png") / "a").symlink_to("z")
        assert names(list_images(tmp_path)) == ["z/good/0.png"]

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("pattern", [".", "**/*.png", "**/**/**/*.png"])
    def test_in_circles_come_to_an_end(self, tmp_path, pattern):
        for index in range(12):
            folder = make(tmp_path / f"{index}", "a.png")
            for other in range(12):
                (folder / f"to{other}").symlink_to(f"../{other}")
            (folder / "up").symlink_to("..")
            (folder / "self").symlink_to("self")
        wanted = [f"{index}/a.png" for index in range(12)]
        assert names(list_images(f"{tmp_path}/{pattern}")) == wanted


class TestNaturalOrder:
    @given(st.lists(st.text(st.sampled_from("ab0129./٣²"), max_size=6), unique=True), st.randoms())
    def test_does_not_depend_on_the_order_found(self, found, random):
        shuffled = random.sample(found, len(found))
        natural = sorted(found, key=listing._natural)
        assert sorted(shuffled, key=listing._natural) == natural

    @given(st.text("ab"), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 3))
    def test_numbers_count_as_numbers(self, prefix, one, other, zeros):
        first = listing._natural(f"{prefix}{'0' * zeros}{one}.png")
        second = listing._natural(f"{prefix}{other}.png")
        if one != other:
            assert (first < second) == (one < other)

    def test_very_long_numbers(self):
        assert listing._natural("1" * 9000) < listing._natural("2" * 9000)
