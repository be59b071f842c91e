"""Every family at batch 1, 8 and dynamic, at 256x256 and 320x192: image by image against PyTorch.

Ends with 1 where a drift is above a thousandth of the unit, or a decision differs.
Detectors are fitted for a few steps on noise, for agreement needs weights, not good ones. Each
graph runs in ONNX Runtime and OpenVINO; the tables hold the largest drift of a raw score, in units
of the interquartile range of the reference's scores of twelve other images, and the largest
difference of a map, as a fraction of the maps' mean range. The last table holds the largest of each
case.

    python benchmarks/batches.py [--cases 'padim;diffusion, loop']
"""

import argparse
import copy
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from noise import camera_noise

from vadexport.backends.onnxruntime import compile_graph as compile_onnx
from vadexport.backends.onnxruntime import open_runner as open_onnx
from vadexport.backends.openvino import compile_graph as compile_openvino
from vadexport.backends.openvino import open_runner as open_openvino
from vadexport.contract import ANOMALY_MAP, PRED_LABEL, RAW_SCORE, Dtype, ImageArray, ImageInput
from vadexport.detectors.base import Detector
from vadexport.detectors.families import FAMILIES
from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.targets import Target
from vadexport.telemetry import forbid_telemetry
from vadexport.tracing.graph import simplify, trace
from vadexport.verification.statistics import interquartile_range

SIZES = ((256, 256), (320, 192))
BATCHES = (1, 8, None)
IMAGES = 12
MOST_DRIFT = 1e-3
FEW_STEPS = {"steps": 3}


class Case(NamedTuple):
    """A row: the family, its choices and its camera."""

    family: str
    choices: dict[str, Any]
    dtype: Dtype = "uint8"

    @property
    def channels(self) -> int:
        """Of the camera: 16 bits are gray."""
        return 1 if self.dtype == "uint16" else 3


CASES = {
    "patchcore": Case("patchcore", {"coreset_ratio": 0.002}),
    "patchcore, uint16": Case("patchcore", {"coreset_ratio": 0.002}, "uint16"),
    # With nine neighbours all weights are next to 1: some of these are always further off.
    "patchcore, re-weighted": Case("patchcore", {"coreset_ratio": 0.002, "neighbours": 2}),
    "padim": Case("padim", {"channels": 20}),
    "student_teacher": Case("student_teacher", FEW_STEPS),
    "efficient_ad": Case("efficient_ad", {**FEW_STEPS, "teacher_steps": 3}),
    "autoencoder": Case("autoencoder", FEW_STEPS),
    "autoencoder, uint16": Case("autoencoder", FEW_STEPS, "uint16"),
    "diffusion, unrolled": Case("diffusion", {**FEW_STEPS, "denoise_steps": 3}),
    "diffusion, loop": Case("diffusion", {**FEW_STEPS, "denoise_steps": 11}),
}
BACKENDS = {
    "onnxruntime": (compile_onnx, open_onnx),
    "openvino": (compile_openvino, open_openvino),
}


class Difference(NamedTuple):
    """Largest drift in the unit, largest map difference as a fraction of the range, flips."""

    drift: float
    moved: float
    flips: int


def main() -> int:
    """Print a row for each case, size and batch; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", help="separated by semicolons")
    chosen = parser.parse_args().cases
    forbid_telemetry()
    held = True
    print("| case | size | batch | drift, onnxruntime | openvino | map, onnxruntime | openvino |")
    print("|---|---|---|---|---|---|---|")
    worst: dict[str, list[float]] = {}
    for case in chosen.split(";") if chosen else CASES:
        for size in SIZES:
            detector = fitted(CASES[case], size)
            images = noise(CASES[case], size, seed=1)  # scores of fitted images may hardly differ
            if "neighbours" in CASES[case].choices:
                check_weights(detector, images)
            for batch in BATCHES:
                found = differences(detector, images, batch)
                held &= all(each.drift <= MOST_DRIFT and each.flips == 0 for each in found)
                figures = [*(each.drift for each in found), *(each.moved for each in found)]
                worst[case] = [
                    max(pair) for pair in zip(worst.get(case, figures), figures, strict=True)
                ]
                words = " | ".join(f"{each:.1e}" for each in figures)
                shown = batch or "dynamic"
                print(f"| {case} | {size[0]}x{size[1]} | {shown} | {words} |", flush=True)
    print("\n| case | drift, onnxruntime | openvino | map, onnxruntime | openvino |")
    print("|---|---|---|---|---|")
    for case, figures in worst.items():
        print(f"| {case} | {' | '.join(f'{each:.1e}' for each in figures)} |")
    print(f"\nall within {MOST_DRIFT:g} of the unit, no flips" if held else "\nfell short")
    return 0 if held else 1


def noise(case: Case, size: tuple[int, int], seed: int) -> list[ImageArray]:
    """Images of the case's camera."""
    return camera_noise(IMAGES, size, case.channels, case.dtype, seed)


def fitted(case: Case, size: tuple[int, int]) -> Detector:
    """A detector of that family for images of that size, at that size."""
    found = FAMILIES[case.family]
    config = found.load(found.config)(**case.choices)
    image_input = ImageInput(*size, case.channels, dtype=case.dtype)
    detector: Detector = found.load("fit")(
        noise(case, size, seed=0), config, image_input, size=size
    )
    return detector.eval()


def check_weights(detector: Detector, images: list[ImageArray]) -> None:
    """See that re-weighting changes the scores of a third of the images by a hundredth or more."""
    plain = copy.deepcopy(detector)
    plain.method = replace(plain.method, neighbours=0)
    batch = torch.from_numpy(np.stack(images))
    with torch.inference_mode():
        weights = detector(batch)[RAW_SCORE] / plain(batch)[RAW_SCORE]
    assert int((weights < 0.99).sum()) >= len(images) // 3, f"re-weighting does nothing: {weights}"


def differences(
    detector: Detector, images: list[ImageArray], batch: int | None
) -> list[Difference]:
    """Of each backend; PyTorch scores each image alone."""
    image_input = replace(detector.image_input, batch=batch)
    model, _ = apply_passes(simplify(trace(detector, image_input)).model, DEFAULT_PASSES)
    with torch.inference_mode():
        alone = [detector(torch.from_numpy(image)[None]) for image in images]
    expected = np.array([float(one[RAW_SCORE]) for one in alone])
    decided = np.array([bool(one[PRED_LABEL]) for one in alone])
    expected_maps = np.concatenate([one[ANOMALY_MAP].numpy() for one in alone])
    spread = float(np.ptp(expected_maps, axis=(1, 2, 3)).mean())
    unit = interquartile_range(expected)
    found = []
    for backend, (compile_graph, open_runner) in BACKENDS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            onnx.save(model, folder / "graph.onnx")
            target = Target(backend, "fp32")
            compile_graph(folder / "graph.onnx", folder, target)
            runner = open_runner(folder, target, 2)
            parts = [(runner.infer(c), n) for c, n in image_input.batches(np.stack(images))]
        raw = np.concatenate([outputs[RAW_SCORE][:count] for outputs, count in parts])
        maps = np.concatenate([outputs[ANOMALY_MAP][:count] for outputs, count in parts])
        labels = np.concatenate([outputs[PRED_LABEL][:count] for outputs, count in parts])
        found.append(
            Difference(
                drift=float(np.abs(raw - expected).max() / unit),
                moved=float(np.abs(maps - expected_maps).max() / spread),
                flips=int((labels != decided).sum()),
            )
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
