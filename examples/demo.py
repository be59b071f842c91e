"""The main job on real images: fit, build, verify, predict on solar cells.

Electroluminescence images of monocrystalline solar cells from the package `elpv-dataset` (Buerhop-
Lutz et al. 2018, CC BY-NC-SA 4.0): intact ones to train, calibrate and test, surely defective ones
to test only. Everything lands in `demo-output/`.
"""

import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

OUTPUT = Path("demo-output")
#: Folder of each part, and how many images it takes; no image is in two of them.
INTACT = {"train/good": 100, "calibration/good": 80, "test/good": 150}
DEFECTIVE = {"test/defective": 150}
TARGETS = ("openvino:fp32", "openvino:int8", "onnxruntime:fp32")


def main() -> int:
    """Run the demo; returns the exit status of the first command that could not run."""
    started = time.monotonic()
    images = lay_out_images()
    targets = [option for target in TARGETS for option in ("--target", target)]
    detector, artifacts = OUTPUT / "detector.safetensors", OUTPUT / "artifacts"
    calibration, test = images / "calibration", images / "test"
    commands = [
        ["fit", "patchcore", images / "train", "-o", detector],
        ["build", detector, "-o", artifacts, *targets, "--calibration", calibration],
        ["verify", artifacts, "--reference", detector, "--images", test],
        [
            *["predict", artifacts / "openvino-fp32", test / "defective", "-q"],
            *["--heatmaps", OUTPUT / "heatmaps", "--jsonl", OUTPUT / "scores.jsonl"],
        ],
    ]
    for command in commands:
        status = run([str(word) for word in command], quiet=command[0] == "predict")
        # 1 says that a check fell short, which is a result, and shown.
        if status not in (0, 1):
            return status
    print(f"\ndemo: {time.monotonic() - started:.0f} s; all of it lies in {OUTPUT}/")
    return 0


def lay_out_images() -> Path:
    """Copy the images of each part into a folder of its own; returns the folder of all."""
    spec = find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        sys.exit("the demo needs the package elpv-dataset: pip install 'vadexport[demo]'")
    data = Path(spec.origin).parent / "data"
    labels = (data / "labels.csv").read_text(encoding="utf-8")
    rows = [line.split() for line in labels.splitlines()]  # file, defect probability, kind
    rng = np.random.default_rng(0)
    for parts, probability in ((INTACT, 0.0), (DEFECTIVE, 1.0)):
        names = [row[0] for row in rows if row[2] == "mono" and float(row[1]) == probability]
        chosen = iter(rng.permutation(names))
        for part, count in parts.items():
            folder = OUTPUT / "images" / part
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for _ in range(count):
                shutil.copy(data / next(chosen), folder)
    print(f"{sum(INTACT.values())} intact and {sum(DEFECTIVE.values())} defective solar cells")
    return OUTPUT / "images"


def run(words: list[str], *, quiet: bool) -> int:
    """Run one command as a user would; returns its exit status."""
    print(f"\n$ vadexport {shlex.join(words)}", flush=True)
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(
        [sys.executable, "-m", "vadexport", *words], stdout=output, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
