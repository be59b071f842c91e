import pytest

from vadexport.artifact import CalibrationEntry, FileEntry, Manifest, write_manifest
from vadexport.contract import ImageInput
from vadexport.targets import Target
from vadexport.thresholds import Thresholds


@pytest.fixture
def manifest():
    return Manifest(
        target=Target("openvino", "int8"),
        image_input=ImageInput(300, 280, 1, batch=None),
        outputs=("pred_score", "raw_score", "pred_label", "anomaly_map", "pred_mask"),
        map_size=(256, 240),
        source={"kind": "native", "family": "patchcore", "name": "d.safetensors", "sha256": "ab"},
        options={"image_size": [300, 280]},
        thresholds=Thresholds(1.5, 1.25, 0.5, 2.0, "0.95"),
        drift_unit=0.125,
        drift_unit_from="40 normal images",
        precision={"network": "int8", "score head": "fp32"},
        calibration=CalibrationEntry("cd" * 32, 0, ("ab" * 8, "cd" * 8)),
        parity=[{"rung": "traced", "held": True, "drift_max": 1e-6}],
        proven_on="artifact",
        tools={"torch": "2.13.0"},
        processor="Some CPU",
        files={"model.xml": FileEntry("0" * 64, 5)},
    )


@pytest.fixture
def artifact(tmp_path, manifest):
    """A folder with two model files and its manifest."""
    folder = tmp_path / "artifact"
    (folder / "weights").mkdir(parents=True)
    (folder / "model.xml").write_text("<net/>")
    (folder / "weights" / "model.bin").write_bytes(bytes(range(256)))
    write_manifest(folder, manifest)
    return folder
