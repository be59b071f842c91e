"""What `verify` costs: time beyond that of the inferences, and memory of all its processes.

PatchCore at its defaults, fitted on 100 intact solar cells of 300 x 300 pixels, is verified on
others, intact and defective. Its time is taken without timing calls (`--rounds 0`): the time of the
inferences is that of one call of reference and of artifact for each image, the mean of once before
and once after verify; verify's is counted from when both are loaded to the end, reports written.
Memory is that of the command, calls timed as it does by itself: the proportional set size of its
process and all that it starts, looked at ten times a second. Looking stops those that are looked
at, so that run is not timed.

    python benchmarks/verify_cost.py [--images 1000] [--masks] [--target openvino:fp32]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from cells import copy_cells
from PIL import Image

from vadexport.artifact import open_artifact
from vadexport.backends.base import available_threads
from vadexport.backends.child import Child
from vadexport.backends.registry import opener
from vadexport.building import BuildOptions, build
from vadexport.fitting import FitOptions, fit
from vadexport.images import load_images
from vadexport.images.listing import test_images as images_to_test
from vadexport.listening import Listener
from vadexport.machine import processor_name
from vadexport.sources import SourceSpec, reference_opener
from vadexport.targets import Target
from vadexport.verification.ladder import child_inference
from vadexport.verifying import VerifyOptions, verify


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--masks", action="store_true", help="mark defects, for AUPRO")
    parser.add_argument("--target", default="openvino:fp32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        defective = options.images // 3
        good = options.images - defective
        parts = {"train/good": 100, "test/good": good, "test/defective": defective}
        copy_cells(folder / "cells", "poly", parts)
        if options.masks:
            mark(folder / "cells")
        checkpoint = folder / "detector.safetensors"
        fit(FitOptions("patchcore", str(folder / "cells"), checkpoint), Listener())
        target = Target.parse(options.target)
        build(BuildOptions(checkpoint, folder / "artifact", (target,)), Listener())
        cells = folder / "cells"
        before = bare_seconds(checkpoint, folder / "artifact", cells)
        whole = verify_seconds(checkpoint, folder / "artifact", cells)
        bare = (before + bare_seconds(checkpoint, folder / "artifact", cells)) / 2
        most = memory_of(checkpoint, folder / "artifact", cells)
    print(f"{processor_name()}, {available_threads()} threads, {options.target}")
    print(f"inferences {bare:.1f} s, verify {whole:.1f} s: {100 * (whole / bare - 1):+.1f}%")
    print(f"memory of all processes: {most / 1e6:.0f} MB at most")


def mark(cells: Path) -> None:
    """Mark something in each defective cell: the cost does not depend on what."""
    masks = cells / "ground_truth" / "defective"
    masks.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for path in sorted((cells / "test" / "defective").iterdir()):
        mask = np.zeros((300, 300), np.uint8)
        y, x = rng.integers(0, 250, 2)
        mask[y : y + 40, x : x + 20] = 255
        Image.fromarray(mask).save(masks / f"{path.stem}_mask.png")


def bare_seconds(checkpoint: Path, folder: Path, cells: Path) -> float:
    """Time of a call of reference and artifact for each image."""
    manifest = open_artifact(folder).manifest
    threads = available_threads()
    with Child("reference") as reference, Child("artifact") as artifact:
        reference.open(reference_opener(SourceSpec.of(checkpoint), threads))
        artifact.open(opener(manifest.target, folder, threads))
        infer = [child_inference(reference), child_inference(artifact)]
        total = 0.0
        for _, image in load_images(images_to_test(str(cells)), manifest.image_input):
            call, _ = next(manifest.image_input.batches(image[None]))
            start = time.perf_counter()
            for one in infer:
                one(call)
            total += time.perf_counter() - start
    return total


class Loaded(Listener):
    """Notes when everything was loaded."""

    at = 0.0

    def step(self, name: str, done: int, total: int, detail: str = "") -> None:
        """See the base class."""
        del total, detail
        if (name, done) == ("load", 1):
            self.at = time.perf_counter()


def verify_seconds(checkpoint: Path, folder: Path, cells: Path) -> float:
    """From when all is loaded to the end."""
    listener = Loaded()
    verify(VerifyOptions(folder, checkpoint, str(cells), rounds=0), listener)
    return time.perf_counter() - listener.at


def memory_of(checkpoint: Path, folder: Path, cells: Path) -> int:
    """Bytes that the command and all that it starts take at most."""
    words = ["verify", folder, "--reference", checkpoint, "--images", cells, "-q"]
    with subprocess.Popen(
        [sys.executable, "-m", "vadexport", *map(str, words)], stdout=subprocess.DEVNULL
    ) as process:
        most = 0
        while process.poll() is None:
            most = max(most, sum(map(proportional_size, family(process.pid))))
            time.sleep(0.1)
    assert process.returncode in (0, 1), "it ran"
    return most


def family(process: int) -> list[int]:
    """A process and its descendants."""
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return [process]
    return [process, *(one for child in text.split() for one in family(int(child)))]


def proportional_size(process: int) -> int:
    """Of a process in bytes; 0 of one that has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
