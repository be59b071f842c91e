"""What a larger bank and larger images cost: a part of benchmarks/peers.py.

The search is PatchCore's alone, as benchmarks/search_heads.py draws it: 1,024 queries of 384
values, and a bank of the same cloud; its INT8 form lets no distance grow by more than a twentieth
of the interquartile range of the queries' distances. Images are given to anomalib's STFPM with
resnet18 and random weights, at their whole size.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from noise import rgb_noise
from openvino_steps import openvino_steps
from peer_builds import build, commands, place
from peer_exports import OPENVINO_FILE
from peer_measuring import time_calls
from peer_rows import Row, stfpm_of_size
from peer_runners import OpenVinoFile, normalisation_of
from search_heads import cloud, search

from vadexport.backends.base import available_threads
from vadexport.backends.registry import opener
from vadexport.contract import ImageInput
from vadexport.images.colouring import save_png
from vadexport.machine import processor_name, tool_versions
from vadexport.passes import BEFORE_INT8, DEFAULT_PASSES
from vadexport.passes.base import apply_passes
from vadexport.passes.quantised_search import QuantisedSearch, search_inputs
from vadexport.passes.search_plan import plan_search
from vadexport.sources import SourceSpec, reference_opener
from vadexport.targets import Target
from vadexport.verification.statistics import interquartile_range

BANKS: Final = tuple(1024 * 2**power for power in range(7))
IMAGES: Final = (128, 256, 512, 1024)
QUERIES, WIDTH = 1024, 384
#: As a build's searches have it.
SHARE: Final = 0.05
_BUILT: Final = ("anomalib-openvino", "plain", "openvino:fp32", "openvino:int8")
_CALIBRATION: Final = 12


def run(work: Path, rounds: int | None, *, quick: bool, again: bool) -> None:
    """Measure what is not measured yet, into growth.json."""
    path = work / "growth.json"
    found: dict[str, Any] = {"bank": {}, "image": {}}
    if path.exists() and not again:
        found = json.loads(path.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
    found["conditions"] = f"{processor_name()}, {available_threads()} threads; {versions}"
    for key, sizes, time_one in (("bank", BANKS, bank), ("image", IMAGES, image)):
        for size in sizes[:2] if quick else sizes:
            if str(size) not in found[key]:
                found[key][str(size)] = time_one(size, work / "growth", rounds)
                path.write_text(json.dumps(found, indent=1) + "\n")
            print(key, size, {name: one["ms"] for name, one in found[key][str(size)].items()})


# -------------------------------------------------------------------------------- banks
def bank(rows: int, folder: Path, rounds: int | None) -> dict[str, Any]:
    """Latency of a bank's search: as traced, by the passes, and in INT8."""
    values, queries = cloud(rows, QUERIES, WIDTH)
    traced = search(values, QUERIES)
    graphs = {
        "as traced": traced,
        "float32": apply_passes(traced, DEFAULT_PASSES)[0],
        "INT8": in_int8(traced, values, queries[0]),
    }
    openers = {}
    for name, graph in graphs.items():
        if graph is not None:
            path = folder / f"bank-{name.replace(' ', '-')}.onnx"
            path.parent.mkdir(exist_ok=True)
            onnx.save(graph, path)
            openers[name] = partial(OpenVinoFile, path, available_threads(), pinned=True)
    openers["as traced, default precision"] = partial(
        OpenVinoFile, folder / "bank-as-traced.onnx", available_threads(), pinned=False
    )
    return time_calls(openers, [queries], rounds)


def in_int8(
    traced: onnx.ModelProto, values: np.ndarray, queries: np.ndarray
) -> onnx.ModelProto | None:
    """The search in INT8; None where no plan is worth it."""
    graph, _ = apply_passes(traced, BEFORE_INT8)
    ((name, found),) = search_inputs(graph).items()
    nearest = [float(np.square(values - one).sum(axis=1).min()) ** 0.5 for one in queries[::16]]
    limit = SHARE * interquartile_range(np.array(nearest))
    plan = plan_search(found.bank, queries, limit, openvino_steps())
    if plan is None:
        return None
    rewritten: onnx.ModelProto = apply_passes(graph, (QuantisedSearch({name: plan}),))[0]
    return rewritten


# ------------------------------------------------------------------------------- images
def image(size: int, folder: Path, rounds: int | None) -> dict[str, Any]:
    """Latency of STFPM on images of this many pixels: eager, anomalib's, and vadexport's."""
    folder = folder / f"image-{size}"
    images = folder / "images" / "calibration" / "good"
    images.mkdir(parents=True, exist_ok=True)
    for number, noise in enumerate(rgb_noise(_CALIBRATION, size, size, seed=size)):
        save_png(noise, images / f"{number}.png")
    source = folder / "Stfpm.ckpt"
    stfpm_of_size(size, source)
    row = Row("", 0, None, "Stfpm", lambda *_: None)
    made = commands(row, source, folder / "images", folder, size)
    for name in _BUILT:
        found = build(name, made[name], folder)
        if "error" in found:
            print(f"  {name} at {size} pixels: {found['error']}", flush=True)
    threads, spec = available_threads(), SourceSpec.of(source)
    file = partial(OpenVinoFile, folder / "anomalib-openvino" / OPENVINO_FILE, threads)
    openers = {
        "PyTorch eager": reference_opener(spec, threads),
        "anomalib's OpenVINO": partial(file, pinned=False, normalisation=normalisation_of(spec)),
    }
    for target in ("openvino:fp32", "openvino:int8"):
        if place(folder, target).exists():
            openers[target] = opener(Target.parse(target), place(folder, target), threads)
    camera = ImageInput(size, size, 3)
    calls = [call for call, _ in camera.batches(np.stack(rgb_noise(4, size, size, seed=1)))]
    return time_calls(openers, calls, rounds)
