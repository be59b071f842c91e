"""An engine of a large PatchCore: wide_resnet50_2 and a memory bank of 16,384 rows of 1,536 values.

Weights are random (ImageNet's come from a hub), and the bank is patches of noise with noise added:
neither changes what there is to build. Goal: less than 2 minutes and 6 GB of memory for the engine,
which a child process builds without a GPU.

    python benchmarks/tensorrt_bank.py
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from noise import rgb_noise

from vadexport.contract import ImageInput
from vadexport.detectors import patchcore
from vadexport.detectors.backbones import timm_model
from vadexport.detectors.checkpoint import save_detector
from vadexport.machine import processor_name, tool_versions

ROWS, SIDE, IMAGES = 16_384, 256, 4
PRECISIONS = ("fp32", "fp16")


def main() -> None:
    """Build, and print what it took."""
    print(processor_name(), tool_versions())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = large_patchcore(folder / "detector.safetensors")
        for precision in PRECISIONS:
            graph = folder / precision
            started = time.monotonic()
            vadexport(
                *("build", source, "-o", graph, "--target", f"tensorrt-rtx:{precision}@sm86"),
                "--quiet",
            )
            whole = time.monotonic() - started
            facts = json.loads((graph / "report" / "build.json").read_text())["compiled"]
            # Of all processes that have ended, the largest: tracing's and the reference's too.
            most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
            seconds, memory = facts["build_seconds"], facts["peak_megabytes"] / 1e3
            print(
                f"{precision}: engine of {facts['engine_bytes'] / 1e6:.0f} MB built in "
                f"{seconds} s with at most {memory:.1f} GB of memory; the whole build took "
                f"{whole:.0f} s, its largest process {most:.1f} GB"
            )


def large_patchcore(path: Path) -> Path:
    """The checkpoint of a detector whose bank is filled up with noisy copies."""
    create = timm_model.create
    untrained = lambda name, levels, *, pretrained: create(name, levels, pretrained=False)  # noqa: ARG005, E731
    with mock.patch.object(timm_model, "create", untrained):
        config = patchcore.PatchCoreConfig(
            backbone="wide_resnet50_2", levels=(2, 3), coreset_ratio=1.0
        )
        torch.manual_seed(0)
        detector = patchcore.fit(
            rgb_noise(IMAGES, SIDE, SIDE, seed=0), config, ImageInput(SIDE, SIDE, 3)
        )
    bank = detector.memory_bank
    copies = bank.repeat(-(-ROWS // len(bank)), 1)[:ROWS]
    detector.memory_bank = copies + bank.std(0) * torch.randn_like(copies)
    save_detector(detector, path)
    return path


def vadexport(*words: object) -> None:
    """Run a command."""
    subprocess.run(
        [sys.executable, "-m", "vadexport", *map(str, words)], check=True, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
