from importlib.util import find_spec

import numpy as np
import onnxruntime
import pytest
import torch

from vadexport.contract import RAW_SCORE, ImageInput
from vadexport.detectors.checkpoint import load_detector, save_detector
from vadexport.detectors.patchcore import PatchCore, PatchCoreConfig
from vadexport.errors import MissingPackageError
from vadexport.torchvision_operators import declare_torchvision_operators
from vadexport.tracing.graph import simplify, trace

PACKAGES = ("timm", "torchvision")


@pytest.fixture
def timm():
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    declare_torchvision_operators()
    return pytest.importorskip("timm")


@pytest.mark.usefixtures("timm")
def test_a_detector_on_a_timm_backbone_goes_into_a_graph(tmp_path):
    torch.manual_seed(0)
    config = PatchCoreConfig(backbone="resnet18", levels=(1, 2))
    detector = PatchCore(config, ImageInput(96, 96, 3))
    detector.memory_bank = torch.randn(50, 64 + 128)
    save_detector(detector, tmp_path / "d.safetensors")
    detector = load_detector(tmp_path / "d.safetensors")
    graph = simplify(trace(detector, detector.image_input)).model.SerializeToString()
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = detector(torch.from_numpy(image))[RAW_SCORE]
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found = session.run([RAW_SCORE], {"image": image})[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


@pytest.mark.skipif(
    find_spec("timm") is None or find_spec("torchvision") is not None,
    reason="needs timm without the torchvision that it imports",
)
def test_the_package_that_timm_lacks_is_named():
    with pytest.raises(MissingPackageError, match="torchvision"):
        PatchCore(PatchCoreConfig(backbone="resnet18"), ImageInput(96, 96, 3))
