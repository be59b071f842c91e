import fcntl
import os
import pickle
import shutil
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from vadexport.telemetry import forbid_telemetry

# No test fails for a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Importing OpenVINO with it would fork a process that sends usage data.
forbid_telemetry()
# PyTorch's threads wait for each other in busy loops: on a machine with other work to do, tests of
# small tensors take ten times as long with two threads as with one. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests that run side by side each keep to a processor, and so does what they start: backends would
# take all of them, and wait for each other.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(worker[2:]) % len(processors)]})


class Here:
    """A child that is this process; what it returns goes through a pickle all the same."""

    def __init__(self, what, **_):
        self.what, self.held = what, None

    def open(self, function, *arguments):
        self.held = function(*arguments)

    def apply(self, function, *arguments):
        return self.run(function, self.held, *arguments)

    def run(self, function, *arguments, progress=None):
        named = {} if progress is None else {"progress": progress}
        return pickle.loads(pickle.dumps(function(*arguments, **named)))

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """What searches keep goes into a folder of the tests, not into the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@contextmanager
def _children_here():
    import torch

    import vadexport.building
    import vadexport.verifying  # noqa: F401 - all that starts a child must be loaded
    from tests.exports import remembered_exports
    from vadexport.backends.child import Child
    from vadexport.verification import stepping

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, remembered_exports():
        for name, module in list(sys.modules.items()):
            if name.startswith("vadexport.") and getattr(module, "Child", None) is Child:
                patch.setattr(module, "Child", Here)
        patch.setattr(stepping, "_MOST_SECONDS", 0.0)  # as few rounds as there may be
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def children_here():
    """A context in which what `build` and `verify` start runs in this process.

    Processes take seconds to start, most of it to import torch: tests of what `verify` finds do
    without; those of the command lines, and of what backends do, have them.
    """
    return _children_here


@pytest.fixture
def in_process():
    """As `children_here`, for a test."""
    with _children_here():
        yield


@pytest.fixture(scope="session")
def crops():
    """Twelve gray crops of real solar cells, uint8 [96, 96, 1]."""
    from PIL import Image

    folder = Path(find_spec("elpv_dataset").origin).parent / "data" / "images"
    images = []
    for number in range(1, 13):
        with Image.open(folder / f"cell{number:04}.png") as image:
            images.append(np.array(image)[100:196, 100:196, None])
    return images


@pytest.fixture(scope="session")
def plain(crops):
    """PatchCore on gray 96×96 images: no resize, no re-weighting."""
    from vadexport.contract import ImageInput
    from vadexport.detectors.patchcore import PatchCoreConfig, fit

    detector = fit(crops, PatchCoreConfig(coreset_ratio=0.05), ImageInput(96, 96, 1))
    return detector.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="session")
def images(crops, tmp_path_factory):
    """Twelve normal images, and four of them with a bright scratch, in labelled folders."""
    from vadexport.images.colouring import save_png

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
    from vadexport.detectors.checkpoint import save_detector

    path = tmp_path_factory.mktemp("checkpoint") / "detector.safetensors"
    save_detector(plain, path)
    return path


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A folder that takes long to make: one worker makes it, the others wait and read it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name, make):
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            place = root / name
            if not (place / "made").exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                make(place / "artifacts")
                (place / "made").touch()
        return place / "artifacts"

    return made


@pytest.fixture(scope="session")
def artifacts(checkpoint, images, made_once):
    """A build of every target that runs on the processor, by the command's own pipeline."""
    from vadexport.building import BuildOptions, build
    from vadexport.listening import Listener
    from vadexport.targets import all_targets

    def make(folder):
        targets = tuple(
            target for target in all_targets() if not target.device and not target.on_gpu
        )
        options = BuildOptions(
            *(checkpoint, folder, targets, str(images / "good")), search_minutes=0.1
        )
        result = build(options, Listener())
        assert [str(one.error) for one in result.targets if one.error] == []

    return made_once("all-targets", make)


@pytest.fixture(scope="session")
def artifact(checkpoint, images, made_once):
    """One artifact for ONNX Runtime: what a test takes that needs no other target."""
    from vadexport.building import BuildOptions, build
    from vadexport.listening import Listener
    from vadexport.targets import Target

    def make(folder):
        target = Target("onnxruntime", "fp32")
        build(BuildOptions(checkpoint, folder, (target,), str(images / "good")), Listener())

    return made_once("one-target", make)


@pytest.fixture(scope="session")
def dicom_bytes():
    """Makes DICOM files: `dicom_bytes(pixels [H, W], stored=bits, Element=value, …)`."""
    import io

    from pydicom import DataElement, Dataset, dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

    def make(pixels, stored=None, syntax=ExplicitVRLittleEndian, **elements):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
        dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        dataset.PatientName = "Nobody"
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.BitsAllocated = 8 * pixels.itemsize
        dataset.BitsStored = stored or dataset.BitsAllocated
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        padded = data + bytes(len(data) % 2)
        kind = "OB" if pixels.itemsize == 1 else "OW"
        dataset["PixelData"] = DataElement(0x7FE00010, kind, padded)
        for name, value in elements.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        buffer = io.BytesIO()
        dcmwrite(buffer, dataset, enforce_file_format=True)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def coloured():
    """Twelve RGB images that are not square, uint8 [88, 112, 3], smooth and unlike each other."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:88, :112] / 20
    images = []
    for _ in range(12):
        phase, slope = rng.uniform(0, 6, 3), rng.uniform(0.5, 2, 3)
        waves = 128 + 70 * np.sin(slope * x[..., None] + phase + y[..., None] * slope[::-1])
        images.append((waves + rng.normal(0, 20, waves.shape)).clip(0, 255).astype(np.uint8))
    return images


@pytest.fixture(scope="session")
def resizing(coloured):
    """PatchCore with all that `plain` lacks: RGB, resize, not square, re-weighting."""
    from vadexport.contract import ImageInput
    from vadexport.detectors.patchcore import PatchCoreConfig, fit

    config = PatchCoreConfig(coreset_ratio=0.02, levels=(1, 2), neighbours=4, blur_sigma=2.0)
    detector = fit(coloured, config, ImageInput(88, 112, 3), size=(64, 80))
    return detector.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="session")
def graph_of(plain, resizing):
    """Traced and simplified graphs of the two detectors by name and batch, each made once."""
    from dataclasses import replace

    from vadexport.tracing.graph import simplify, trace

    made = {}

    def make(name, batch):
        if (name, batch) not in made:
            detector = {"plain": plain, "resizing": resizing}[name]
            traced = trace(detector, replace(detector.image_input, batch=batch))
            made[name, batch] = (traced, simplify(traced))
        return made[name, batch]

    return make


@pytest.fixture(scope="session")
def float32_eps():
    return float(np.finfo(np.float32).eps)
