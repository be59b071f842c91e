import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from vadexport.errors import InputError
from vadexport.images import ImageFile, decode
from vadexport.images.colouring import save_png
from vadexport.listening import Listener
from vadexport.predicting import PredictOptions, _heatmap_paths, predict


@pytest.fixture
def two(crops, tmp_path):
    """A folder of two images, one of them in a folder of its own."""
    folder = tmp_path / "two"
    (folder / "inner").mkdir(parents=True)
    save_png(crops[0], folder / "0.png")
    save_png(crops[1], folder / "inner" / "1.png")
    return folder


@pytest.fixture
def options(artifact, two):
    return PredictOptions(artifact, str(two))


def run(options):
    return list(predict(options, Listener()))


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class TestJsonl:
    def test_a_line_an_image(self, options, tmp_path):
        found = run(replace(options, jsonl=tmp_path / "a.jsonl"))
        lines = (tmp_path / "a.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [one.to_json() for one in found]
        assert [json.loads(line)["image"] for line in lines] == ["0.png", "inner/1.png"]

    def test_an_old_file_stays_where_an_image_is_wrong(self, options, two, tmp_path):
        (tmp_path / "a.jsonl").write_text("old")
        save_png(np.zeros((5, 5), np.uint8), two / "small.png")
        with pytest.raises(InputError, match="small"):
            run(replace(options, jsonl=tmp_path / "a.jsonl"))
        assert (tmp_path / "a.jsonl").read_text() == "old"

    def test_a_link_stays(self, options, tmp_path):
        (tmp_path / "real.jsonl").write_text("old")
        (tmp_path / "a.jsonl").symlink_to("real.jsonl")
        run(replace(options, jsonl=tmp_path / "a.jsonl"))
        assert (tmp_path / "a.jsonl").is_symlink()
        assert len((tmp_path / "real.jsonl").read_text().splitlines()) == 2

    @pytest.mark.skipif(not os.path.islink("/dev/stdout"), reason="no /dev/stdout")  # noqa: PTH114
    def test_standard_output(self, options, tmp_path):
        # A link of our own: were it replaced, /dev/stdout of this machine would stay.
        link = tmp_path / "stdout"
        link.symlink_to("/dev/stdout")
        words = ["predict", options.artifact, options.images, "--jsonl", link, "--quiet"]
        done = subprocess.run(
            [sys.executable, "-m", "vadexport", *words], check=True, capture_output=True, text=True
        )
        assert link.is_symlink()
        lines = done.stdout.splitlines()
        # The line for people comes after that for machines, image by image.
        assert [json.loads(line)["image"] for line in lines[::2]] == ["0.png", "inner/1.png"]
        assert [line.split()[-1] for line in lines[1::2]] == ["0.png", "inner/1.png"]


class TestHeatmaps:
    def test_each_is_named_after_its_image(self, options, tmp_path):
        run(replace(options, heatmaps=tmp_path / "maps"))
        assert files(tmp_path / "maps") == {"0.png.heatmap.png", "inner/1.png.heatmap.png"}
        assert decode(tmp_path / "maps" / "0.png.heatmap.png", 3).shape == (96, 96, 3)

    def test_images_that_differ_in_their_suffix_have_one_each(self, options, two, tmp_path):
        (two / "0.PNG").write_bytes((two / "0.png").read_bytes())
        run(replace(options, heatmaps=tmp_path / "maps"))
        assert {"0.png.heatmap.png", "0.PNG.heatmap.png"} < files(tmp_path / "maps")

    def test_into_the_folder_of_the_images(self, options, two):
        before = {name: (two / name).read_bytes() for name in files(two)}
        run(replace(options, heatmaps=two))
        assert {name: (two / name).read_bytes() for name in before} == before
        assert files(two) == {*before, "0.png.heatmap.png", "inner/1.png.heatmap.png"}

    def test_a_link_to_the_image_where_its_heatmap_goes(self, options, two):
        before = (two / "0.png").read_bytes()
        (two / "0.png.heatmap.png").symlink_to("0.png")
        with pytest.raises(InputError, match="would replace an image"):
            run(replace(options, images=str(two / "0.png"), heatmaps=two))
        assert (two / "0.png").read_bytes() == before

    def test_an_older_heatmap_among_the_images_stays(self, options, crops, two):
        save_png(crops[2], two / "0.png.heatmap.png")
        before = {name: (two / name).read_bytes() for name in files(two)}
        with pytest.raises(InputError, match=r"0\.png\.heatmap\.png would replace an image"):
            run(replace(options, heatmaps=two))
        assert {name: (two / name).read_bytes() for name in files(two)} == before

    @pytest.mark.parametrize(
        ("name", "wanted"),
        [
            ("../../0.png", "0.png"),
            ("a/../0.png", "a/0.png"),
            ("/abs/0.png", "abs/0.png"),
            ("//abs/0.png", "abs/0.png"),  # POSIX gives two slashes a meaning of their own
        ],
    )
    def test_no_name_leads_out_of_the_folder(self, tmp_path, name, wanted):
        image = tmp_path / "0.png"
        paths = _heatmap_paths(tmp_path / "maps", [ImageFile(image, name, label=None)])
        assert paths == {image: tmp_path / "maps" / f"{wanted}.heatmap.png"}

    def test_two_images_do_not_share_one(self, tmp_path):
        files = [ImageFile(tmp_path / name, name, label=None) for name in ("../a.png", "a.png")]
        with pytest.raises(InputError, match="the same heatmap"):
            _heatmap_paths(tmp_path / "maps", files)

    def test_a_list_of_paths_elsewhere(self, options, two, tmp_path):
        lists = tmp_path / "lists"
        lists.mkdir()
        (lists / "new.txt").write_text(f"../two/0.png\n{two / 'inner' / '1.png'}\n")
        before = files(tmp_path)
        run(replace(options, images=str(lists / "new.txt"), heatmaps=tmp_path / "maps"))
        made = files(tmp_path) - before
        assert len(made) == 2
        assert all(name.startswith("maps/") and name.endswith(".heatmap.png") for name in made)

    def test_a_file_in_the_way(self, options, tmp_path):
        (tmp_path / "maps").write_text("mine")
        with pytest.raises(InputError, match=r"cannot write .*maps"):
            run(replace(options, heatmaps=tmp_path / "maps"))
        assert (tmp_path / "maps").read_text() == "mine"
