"""What only a GPU can show. Elsewhere all of it is skipped, with the reason."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.integration.test_families import TINY
from vadexport.artifact import open_artifact
from vadexport.backends import onnxruntime
from vadexport.backends.cuda import Cuda
from vadexport.backends.registry import opener
from vadexport.backends.tensorrt.settings import TensorRTSettings
from vadexport.building import BuildOptions, build
from vadexport.errors import MissingDeviceError, MissingPackageError
from vadexport.images import decode
from vadexport.images.colouring import save_png
from vadexport.listening import Listener
from vadexport.targets import COMPUTE_CAPABILITIES, Target
from vadexport.verification.proxy import proxy_opener
from vadexport.verifying import VerifyOptions, verify

_FITTED, _UNSEEN = 48, 16


@pytest.fixture(scope="session", autouse=True)
def gpu():
    """CUDA on the GPU at hand."""
    try:
        return Cuda()
    except (MissingDeviceError, MissingPackageError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=["tensorrt_rtx", "tensorrt"])
def engine_for(request, gpu):
    """The target of an engine of either library for the GPU at hand, by its precision."""
    pytest.importorskip(request.param)
    if request.param == "tensorrt":
        return "tensorrt:{}".format
    here = gpu.compute_capability()
    if here not in COMPUTE_CAPABILITIES:
        known = ", ".join(COMPUTE_CAPABILITIES)
        pytest.skip(f"TensorRT-RTX compiles for {known}, and this GPU is {here}")
    return lambda precision: f"tensorrt-rtx:{precision}@{here}"


@pytest.fixture(scope="session")
def _onnxruntime_on_cuda():
    try:
        onnxruntime.check_device(Target("onnxruntime", "fp32", "cuda"))
    except MissingDeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """Solar cells without a defect, gray 96×96: `train` to fit, `test` unseen, some scratched."""
    data = Path(find_spec("elpv_dataset").origin).parent / "data"
    rows = [line.split() for line in (data / "labels.csv").read_text(encoding="utf-8").splitlines()]
    good = [name for name, probability, kind in rows if (float(probability), kind) == (0, "mono")]
    root = tmp_path_factory.mktemp("cells")
    for number, name in enumerate(good[: _FITTED + _UNSEEN]):
        crop = decode(data / name, 1)[100:196, 100:196]
        where = root / ("train" if number < _FITTED else "test") / "good" / f"{number}.png"
        where.parent.mkdir(parents=True, exist_ok=True)
        save_png(crop, where)
        if number >= _FITTED and number % 4 == 0:
            scratched = crop.copy()
            scratched[40:44, 10:80] = 255
            (root / "test" / "scratch").mkdir(exist_ok=True)
            save_png(scratched, root / "test" / "scratch" / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def unseen(cells):
    """The images that nothing was fitted on, uint8 [20, 96, 96, 1]."""
    return np.stack([decode(path, 1) for path in sorted((cells / "test").rglob("*.png"))])


@pytest.fixture(scope="session")
def detector_of(cells, tmp_path_factory):
    """A checkpoint of a family, each fitted once."""
    made = {}

    def fit(family):
        if family not in made:
            path = tmp_path_factory.mktemp(family) / "d.safetensors"
            words = ["fit", family, cells / "train", "-o", path, *TINY[family], "-q"]
            ended = subprocess.run(
                [sys.executable, "-m", "vadexport", *map(str, words)],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            assert ended.returncode == 0, ended.stderr
            made[family] = path
        return made[family]

    return fit


@pytest.fixture(scope="session")
def built_for(detector_of, cells, tmp_path_factory):
    """An artifact of a family for a target, each built once; `batch` None is dynamic."""
    made = {}

    def make(family, target, batch=1, **settings):
        key = (family, target, batch, *sorted(settings.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("artifact") / "a"
            options = BuildOptions(
                detector_of(family),
                folder,
                (Target.parse(target),),
                str(cells / "train"),
                batch=batch,
                tensorrt=TensorRTSettings(**settings),
            )
            (found,) = build(options, Listener()).targets
            assert found.error is None
            made[key] = SimpleNamespace(folder=folder, built=found)
        return made[key]

    return make


@pytest.fixture
def runner_of():
    """Open an artifact, in this process."""

    def open_it(folder):
        return opener(open_artifact(folder).manifest.target, folder, 4)()

    return open_it


@pytest.fixture
def emulated():
    """Outputs of the ONNX graph behind an artifact, run on the processor."""

    def run(folder, images):
        precision = open_artifact(folder).manifest.target.precision
        runner = proxy_opener(folder, precision, 4)()
        calls = [runner.infer(image[None]) for image in images]
        return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}

    return run


@pytest.fixture
def verified(detector_of, cells, tmp_path):
    """Hold an artifact of a family against its reference; gives the verification and its files."""

    def hold(family, folder, rounds=20):
        options = VerifyOptions(
            folder,
            detector_of(family),
            str(cells / "test"),
            rounds=rounds,
            report=tmp_path,
        )
        (found,) = verify(options, Listener()).verifications
        parity = json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))
        latency = json.loads((tmp_path / "latency.json").read_text(encoding="utf-8"))
        return SimpleNamespace(found=found, parity=parity, latency=latency)

    return hold
