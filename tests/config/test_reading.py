import tomllib
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from vadexport.backends.tensorrt.settings import TensorRTSettings
from vadexport.config import Config, SourceChoices, location_in, read_config
from vadexport.config.choices import CAMERAS, INTERPOLATIONS
from vadexport.config.reading import LAYOUTS, SCHEMA
from vadexport.contract import Layout
from vadexport.detectors.steps import CenterCrop, Interpolation, Normalise, Resize, SwapChannels
from vadexport.images import list_images
from vadexport.images.colouring import save_png
from vadexport.sources import SourceSpec
from vadexport.sources.spec import Camera
from vadexport.targets import Target
from vadexport.verification.limits import Limits

WHOLE = """
[source]
location = "models/d.onnx"
model = "Patchcore"
image_size = [480, 640]
camera = "gray"
outputs = "score=s,map=m"
threshold = 3
pixel_threshold = -0.5
[source.preprocess]
resize = [256, 320]
interpolation = "bicubic"
antialias = false
crop = [224, 224]
mean = [0.5, 0.25, 0]
std = [1, 0.5, 0.25]
colour_order = "bgr"
[calibration]
images = "train"
[build]
output = "out"
targets = ["openvino:int8", "onnxruntime:fp32"]
batch = "dynamic"
input_layout = "float-nchw"
threads = 3
search_minutes = 2.5
no_pass = ["search-tiles", "mahalanobis"]
approximate = 0.02
[build.tensorrt]
batches = [1, 4, 16]
workspace_mb = 512
level = 4
tf32 = true
timing_cache = "kept/timings"
version_compatible = true
hardware_compatible = false
time_limit_s = 60
[verify]
images = "/abs/test"
[limits]
max_drift = 1e-3
max_flips = 0
max_map_drift = 0.5
min_spearman = 0.95
min_speedup = 2
max_latency_ms = 7.5
min_auroc_delta = -0.002
max_size_mb = 50
max_memory_mb = 500.5
[limits.int8]
max_drift = 0.75
"""


def test_every_key(read, tmp_path):
    found = read(WHOLE)
    assert found.source.spec() == SourceSpec(
        location=str(tmp_path / "models" / "d.onnx"),
        model="Patchcore",
        image_size=(480, 640),
        camera="gray",
        steps=(
            Resize((256, 320), "bicubic", antialias=False),
            CenterCrop((224, 224)),
            SwapChannels(),
            Normalise((0.5, 0.25, 0.0), (1.0, 0.5, 0.25)),
        ),
        outputs="score=s,map=m",
        threshold=3.0,
        pixel_threshold=-0.5,
    )
    assert found.calibration == str(tmp_path / "train")
    assert found.verify == "/abs/test"
    assert found.build.output == tmp_path / "out"
    assert found.build.targets == (Target("openvino", "int8"), Target("onnxruntime", "fp32"))
    assert found.build.batch == "dynamic"
    assert found.build.input_layout == "float-nchw"
    assert found.build.threads == 3
    assert found.build.search_minutes == 2.5
    assert found.build.no_pass == ("search-tiles", "mahalanobis")
    assert found.build.approximate == 0.02
    assert found.tensorrt == {
        "batches": (1, 4, 16),
        "workspace_mb": 512,
        "level": 4,
        "tf32": True,
        "timing_cache": tmp_path / "kept" / "timings",
        "version_compatible": True,
        "hardware_compatible": False,
        "time_limit_s": 60,
    }
    assert set(found.tensorrt) == {each.name for each in fields(TensorRTSettings)}
    assert found.limits.of_precision == {"int8": {"max_drift": 0.75}}
    assert found.limits.everywhere == {
        "max_drift": 1e-3,
        "max_flips": 0,
        "max_map_drift": 0.5,
        "min_spearman": 0.95,
        "min_speedup": 2,
        "max_latency_ms": 7.5,
        "min_auroc_delta": -0.002,
        "max_size_mb": 50.0,
        "max_memory_mb": 500.5,
    }


def test_that_text_names_every_key_there_is():
    content = tomllib.loads(WHOLE)
    held = {
        **content,
        "source.preprocess": content["source"].pop("preprocess"),
        "build.tensorrt": content["build"].pop("tensorrt"),
    }
    assert content["limits"].pop("int8").keys() <= SCHEMA["limits.int8"].keys()
    assert {name: set(table) for name, table in held.items()} == {
        name: set(table) for name, table in SCHEMA.items() if not name.startswith("limits.")
    }


def test_names_are_those_of_the_parts_that_take_them():
    assert get_args(Camera) == CAMERAS
    assert get_args(Interpolation) == INTERPOLATIONS
    assert get_args(Layout) == LAYOUTS
    assert set(SCHEMA["limits"]) <= {each.name for each in fields(Limits)}


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "[build]\n[limits]\n", b"\xef\xbb\xbf[build]\r\n"]
)
def test_a_file_that_leaves_all_open(read, text):
    assert read(text) == Config()


def test_the_shorter_side_and_a_fixed_batch(read):
    found = read("source.preprocess.resize = 256\nbuild.batch = 8\n")
    assert found.source.resize == 256
    assert found.build.batch == 8


@pytest.mark.parametrize("side", [[3, 5], 7])
def test_what_interpolates_nothing_is_not_antialiased(side):
    size = tuple(side) if isinstance(side, list) else side
    (step,) = SourceChoices("d", resize=size, interpolation="nearest").spec().steps
    assert step == Resize(size, "nearest", antialias=False)


def test_defaults_of_a_resize():
    assert SourceChoices("d", resize=(3, 4)).spec().steps == (
        Resize((3, 4), "bilinear", antialias=True),
    )
    assert SourceChoices("d").spec() == SourceSpec("d")
    assert SourceChoices("d", bgr=False).spec() == SourceSpec("d")


def test_relative_paths_start_from_the_files_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    Path("sub/vadexport.toml").write_text(
        'source.location = "../d"\ncalibration.images = "*.png"\nverify.images = "/x/*.png"\n'
        'build.output = "out"\n'
    )
    found = read_config(Path("sub/vadexport.toml"))
    assert found.source.location == "sub/../d"
    assert found.calibration == "sub/*.png"
    assert found.verify == "/x/*.png"
    assert found.build.output == Path("sub/out")


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    folder = tmp_path / "line[1]"
    (folder / "train").mkdir(parents=True)
    save_png(np.zeros((4, 4, 1), np.uint8), folder / "train" / "a.png")
    for images in ("train", "train/*.png"):
        (folder / "vadexport.toml").write_text(f'calibration.images = "{images}"')
        (found,) = list_images(read_config(folder / "vadexport.toml").calibration)
        assert found.path == folder / "train" / "a.png"


def test_locations_written_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/er")
    (tmp_path / "d.ckpt").write_text("here")
    (tmp_path / "latest.ckpt").symlink_to("d.ckpt")
    for folder in (Path(), Path("deep"), Path("link")):
        inside = location_in(folder, "latest.ckpt")
        assert Path(inside).name == "latest.ckpt"
        assert not Path(inside).is_absolute()
        assert (folder / inside).read_text() == "here"
    assert location_in(Path("deep"), str(tmp_path / "d.ckpt")) == str(tmp_path / "d.ckpt")
    assert location_in(Path("deep"), "python:a.b:c") == "python:a.b:c"
