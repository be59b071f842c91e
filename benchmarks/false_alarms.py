"""False alarms: how often a difference is claimed where there is none.

Parity: float32 artifacts against their own reference, on images drawn anew for every run: crops at
random places of random cells, half of them defective. An alarm is a run in which a check falls
short.

Speed: an artifact is timed against itself, both sides and what the A/A floor takes in processes of
their own that are opened anew for every run. An alarm is a run after which the check of
`--min-speedup` holds for the least number above 1. Runs that would be alarms without the floor, and
those that were called disturbed, are counted beside.

PatchCore fitted on crops of 96 pixels of solar cells (elpv-dataset). Nothing else should run on the
machine.

    python benchmarks/false_alarms.py [--targets T,T] [--runs 200] [--rounds 100] [--threads 1]
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from math import inf, nextafter
from pathlib import Path

import numpy as np
from cells import DEFECTIVE, INTACT, shuffled_cells

from vadexport.artifact import Artifact, find_artifacts, open_artifact
from vadexport.backends.registry import opener
from vadexport.building import BuildOptions, build
from vadexport.contract import Call, ImageArray, ImageInput
from vadexport.detectors.checkpoint import save_detector
from vadexport.detectors.patchcore import PatchCoreConfig, fit
from vadexport.images import decode
from vadexport.images.colouring import save_png
from vadexport.listening import Listener
from vadexport.machine import processor_name, tool_versions
from vadexport.sources import SourceSpec, open_source, reference_opener
from vadexport.targets import Target
from vadexport.verification.contest import Contest
from vadexport.verification.drift import DriftUnit, fitted_scores
from vadexport.verification.latency import speedup
from vadexport.verification.limits import (
    Limits,
    disturbance,
    instability,
    latency_checks,
    parity_checks,
)
from vadexport.verification.parity import compare_images, figures

INPUT = ImageInput(96, 96, 1)
FITTED, CALIBRATED, TIMED_CALLS = 60, 24, 16
ONE_SIDE, OTHER_SIDE = "one", "other"


def main() -> None:
    """Print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", default="onnxruntime:fp32,openvino:fp32")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=20, help="of each run for parity")
    options = parser.parse_args()
    print(processor_name(), tool_versions(), sep="\n", flush=True)
    rng = np.random.default_rng(0)
    cells = {
        anomalous: [decode(path, 1) for path in shuffled_cells("mono", probability, rng)]
        for anomalous, probability in ((False, INTACT), (True, DEFECTIVE))
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        targets = tuple(map(Target.parse, options.targets.split(",")))
        source = make(cells[False], folder, targets, rng)
        artifacts = [open_artifact(found) for found in find_artifacts(folder / "built")]
        print(f"parity, {options.runs} runs of {options.images} images:", flush=True)
        unseen = {False: cells[False][FITTED + CALIBRATED :], True: cells[True]}
        for target, count in parity_alarms(source, artifacts, unseen, options, rng).items():
            print(f"  {target}: {count} alarms", flush=True)
        calls = [cropped(image, rng)[None] for image in cells[False][:TIMED_CALLS]]
        print(f"speed, {options.runs} runs of {options.rounds} rounds:", flush=True)
        for artifact in artifacts:
            found = speed_alarms(artifact, calls, options)
            print(f"  {artifact.manifest.target}: {found}", flush=True)


def make(
    normal: list[ImageArray],
    folder: Path,
    targets: tuple[Target, ...],
    rng: np.random.Generator,
) -> Path:
    """Fit a detector and build the artifacts; returns the checkpoint."""
    crops = [cropped(image, rng) for image in normal[: FITTED + CALIBRATED]]
    detector = fit(crops[:FITTED], PatchCoreConfig(coreset_ratio=0.05), INPUT)
    source = folder / "detector.safetensors"
    save_detector(detector, source)
    (folder / "calibration").mkdir()
    for number, crop in enumerate(crops[FITTED:]):
        save_png(crop, folder / "calibration" / f"{number}.png")
    calibration = str(folder / "calibration")
    result = build(BuildOptions(source, folder / "built", targets, calibration), Listener())
    assert all(one.error is None for one in result.targets)
    return source


def parity_alarms(
    source: Path,
    artifacts: list[Artifact],
    cells: dict[bool, list[ImageArray]],
    options: argparse.Namespace,
    rng: np.random.Generator,
) -> dict[str, int]:
    """Runs in which a float32 artifact falls short, by target."""
    detector = open_source(source).detector
    unit = DriftUnit.of(fitted_scores(detector.normal_scores.numpy())).value
    openers = {"reference": reference_opener(SourceSpec.of(source), options.threads)}
    for one in artifacts:
        target = one.manifest.target
        openers[str(target)] = opener(target, one.folder, options.threads)
    alarms = dict.fromkeys((str(one.manifest.target) for one in artifacts), 0)
    with ExitStack() as stack:
        contest = Contest(stack, openers, [np.zeros((1, 96, 96, 1), np.uint8)])
        for _ in range(options.runs):
            records = compare_images(
                contest.inference("reference"),
                {name: contest.inference(name) for name in alarms},
                drawn(cells, options.images, rng),
                INPUT,
                detector.thresholds,
            )
            for name in alarms:
                found = figures(records[name], unit)
                fallen = [
                    check.line
                    for check in parity_checks(found, Limits.of_precision("fp32"))
                    if not check.held
                ]
                alarms[name] += bool(fallen)
                for line in fallen:
                    print(f"  {name}: {line}", flush=True)
    return alarms


def drawn(
    cells: dict[bool, list[ImageArray]], count: int, rng: np.random.Generator
) -> Iterator[tuple[str, bool | None, ImageArray]]:
    """So many crops, half of them of defective cells."""
    for number in range(count):
        anomalous = bool(number % 2)
        chosen = cells[anomalous][rng.integers(len(cells[anomalous]))]
        yield str(number), anomalous, cropped(chosen, rng)


def cropped(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """A random part of an image, of the detector's size."""
    top, left = (int(rng.integers(size - 95)) for size in image.shape[:2])
    return np.ascontiguousarray(image[top : top + 96, left : left + 96])


def speed_alarms(artifact: Artifact, calls: list[Call], options: argparse.Namespace) -> str:
    """What was counted in runs of an artifact against itself."""
    target = artifact.manifest.target
    both = dict.fromkeys((ONE_SIDE, OTHER_SIDE), opener(target, artifact.folder, options.threads))
    above_one = Limits(min_speedup=nextafter(1.0, inf))
    counts: Counter[str] = Counter()
    floors = []
    ratios = []
    for _ in range(options.runs):
        with ExitStack() as stack:
            contest = Contest(stack, both, calls)
            found = contest.time(both, options.rounds, Listener(), twice=[ONE_SIDE])
        one, other = found[ONE_SIDE], found[OTHER_SIDE]
        ratio = speedup(one, other)
        (check,) = latency_checks(one, other, ratio, above_one)
        counts["alarms"] += check.held
        counts["without"] += ratio.ratio.low > 1
        counts["disturbed"] += bool(disturbance(one, other) or instability(one, other))
        floors.append(one.floor or 1.0)
        ratios.append(ratio.ratio.value)
        if check.held:
            print(f"  {target}: {check.line}", flush=True)
    spread = ", ".join(f"{value:.3f}" for value in np.quantile(ratios, [0, 0.05, 0.5, 0.95, 1]))
    return (
        f"{counts['alarms']} alarms ({counts['without']} without the floor, "
        f"{counts['disturbed']} runs disturbed); median floor {np.median(floors):.3f}; "
        f"ratios' quantiles 0, 5, 50, 95, 100%: {spread}"
    )


if __name__ == "__main__":
    main()
