"""16-bit gray cameras: TensorRT has no uint16, its engines take int32."""

import json

import numpy as np
import pytest
from PIL import Image

from vadexport.artifact import read_manifest

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deep(crops, tmp_path_factory):
    """The crops with 16 bits, the lower ones noise."""
    root = tmp_path_factory.mktemp("deep")
    random = np.random.default_rng(5)
    for number, crop in enumerate(crops):
        noise = random.integers(-128, 129, crop.shape)
        pixels = (crop.astype(int) * 257 + noise).clip(0, 65535).astype(np.uint16)[:, :, 0]
        Image.fromarray(pixels).save(root / f"{number}.png")
    return root


@pytest.mark.parametrize("target", ["tensorrt-rtx:fp32", "tensorrt-rtx:fp16@sm120"])
def test_an_engine_for_16_bits(vadexport, deep, tmp_path, target):
    checkpoint, artifact = tmp_path / "d.safetensors", tmp_path / "a"
    fitted = vadexport("fit", "patchcore", deep, "-o", checkpoint, "--coreset", "0.05")
    assert fitted.status == 0, fitted.err
    built = vadexport("build", checkpoint, "-o", artifact, "--target", target)
    assert built.status == 0, built.err
    manifest = read_manifest(artifact)
    assert manifest.image_input.dtype == "uint16"
    report = json.loads((artifact / "report" / "build.json").read_text(encoding="utf-8"))
    (image,) = report["compiled"]["inputs"]
    assert image == {"name": "image", "dtype": "int32", "shape": [1, 96, 96, 1]}
    verified = vadexport(
        *("verify", artifact, "--reference", checkpoint, "--images", deep, "--proxy", "--json"),
        *("--max-drift", "0.1"),
    )
    (found,) = json.loads(verified.out)
    assert found["parity"]["figures"]["not_finite"] == 0
    assert found["parity"]["figures"]["drift_max"] <= (1e-3 if "fp32" in target else 0.1)
