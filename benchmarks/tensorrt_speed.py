"""Latency and throughput on an NVIDIA GPU: engines and ONNX Runtime beside PyTorch.

PatchCore fitted on solar cells (elpv-dataset). Contestants, all on the first GPU, copies of images
and results counted: PyTorch eager in float32 (TF32 off), eager under float16 autocast,
`torch.compile` in float32, engines of TensorRT-RTX in fp32, fp16 and int8, and ONNX Runtime's CUDA
provider in fp16 where it is there. Rounds time each contestant once, in random order; speed-ups are
medians of paired ratios over eager float32, with a bootstrap 95% interval. The GPU's name, driver,
clocks and temperature are printed before and after.

Wants a GPU, PyTorch for CUDA and the extras tensorrt-rtx, demo. It has not been run yet: no
GPU was at hand. What it does was rehearsed on a processor, with an artifact of ONNX Runtime in the
place of engines; what that prints are no figures.

    python benchmarks/tensorrt_speed.py [--batches 1,32] [--rounds 200]
    python benchmarks/tensorrt_speed.py --rehearse --batches 1 --rounds 5
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from autocast import AutocastRunner
from detectors import lay_out
from numpy.typing import NDArray

from vadexport.artifact import open_artifact
from vadexport.backends.base import Runner
from vadexport.backends.cuda import Cuda
from vadexport.backends.registry import opener
from vadexport.contract import ImageInput
from vadexport.images import load_images, training_images
from vadexport.listening import Listener
from vadexport.machine import processor_name, tool_versions
from vadexport.reporting.wording import figure
from vadexport.sources import SourceSpec, reference_opener
from vadexport.verification.contest import Contest
from vadexport.verification.latency import speedup

#: Those whose library or provider is not here are left out by the build.
TARGETS = (
    "tensorrt:fp32",
    "tensorrt:fp16",
    "tensorrt:int8",
    "tensorrt-rtx:fp32",
    "tensorrt-rtx:fp16",
    "tensorrt-rtx:int8",
    "onnxruntime:fp16@cuda",
)
REHEARSED = ("onnxruntime:fp32",)
BASELINE = "PyTorch eager, float32"
CALLS = 16


def main() -> None:
    """Print a table for each batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--rehearse", action="store_true", help="on the processor: no figures")
    options = parser.parse_args()
    gpu = None if options.rehearse else Cuda()
    print(processor_name(), gpu and gpu.state(), tool_versions(), sep="\n")
    images = lay_out("mono")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = folder / "detector.safetensors"
        vadexport("fit", "patchcore", images / "train", "-o", source)
        for batch in map(int, options.batches.split(",")):
            targets = REHEARSED if options.rehearse else TARGETS
            show(source, images, folder / str(batch), batch, options.rounds, targets)
    print(gpu and gpu.state())


def show(
    source: Path, images: Path, folder: Path, batch: int, rounds: int, targets: tuple[str, ...]
) -> None:
    """Build for one batch, time all, and print."""
    vadexport(
        *("build", source, "-o", folder, "--calibration", images / "calibration"),
        *("--batch", batch, *(word for target in targets for word in ("--target", target))),
    )
    artifacts = [open_artifact(path.parent) for path in sorted(folder.rglob("manifest.json"))]
    image_input = artifacts[0].manifest.image_input
    chosen = calls(images, image_input)
    spec = SourceSpec.of(source)
    openers: dict[str, Callable[[], Runner]] = {
        BASELINE: reference_opener(spec, 1, on_gpu=True),
        "PyTorch autocast, float16": partial(AutocastRunner, spec),
        "torch.compile, float32": reference_opener(spec, 1, on_gpu=True, sample=chosen[0]),
    }
    for artifact in artifacts:
        target = artifact.manifest.target
        openers[str(target)] = opener(target, artifact.folder, 1)
    with ExitStack() as stack:
        contest = Contest(stack, openers, chosen)
        found = contest.time(list(openers), rounds, Listener())
    print(f"\nbatch {batch}")
    print(f"{'contestant':28} {'median ms':>10} {'p90 ms':>8} {'images/s':>10}  speed-up, where")
    for name, one in found.items():
        ratio = speedup(one, found[BASELINE]).ratio
        print(
            f"{name:28} {one.median_ms:10.3f} {figure(one.p90_ms, '.3f'):>8} "
            f"{1e3 * batch / one.median_ms:10.0f}"
            f"  {ratio.value:.2f} [{ratio.low:.2f}–{ratio.high:.2f}], {one.execution.device}"
        )


def calls(images: Path, image_input: ImageInput) -> list[NDArray[Any]]:
    """Calls of the graph, on images in memory."""
    size = image_input.batch or 1
    files = training_images(str(images / "calibration"))
    loaded = [image for _, image in load_images(files, image_input)]
    chosen = [loaded[number % len(loaded)] for number in range(CALLS * size)]
    return [np.stack(chosen[start : start + size]) for start in range(0, len(chosen), size)]


def vadexport(*words: object) -> None:
    """Run a command; where a rung falls short (1) or a library is missing (3), go on."""
    done = subprocess.run([sys.executable, "-m", "vadexport", *map(str, words)], check=False)
    if done.returncode not in (0, 1, 3):
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
