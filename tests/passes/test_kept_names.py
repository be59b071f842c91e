"""A tensor that keeps its name keeps its value: `locate` compares graphs by names."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from vadexport.contract import ImageInput
from vadexport.detectors.padim import PaDiMConfig, fit
from vadexport.passes import BEFORE_INT8, DEFAULT_PASSES, apply_passes
from vadexport.tracing.graph import simplify, trace
from vadexport.verification.locating import locate


@pytest.fixture(scope="module")
def padim(crops):
    image_input = ImageInput(96, 96, 1)
    return fit(crops, PaDiMConfig(channels=32), image_input).eval()


def parted(graph, passes, call, folder):
    """Where a graph and what passes make of it part, and the passes that found a place."""
    made, places = apply_passes(graph, passes)
    files = folder / "before.onnx", folder / "after.onnx"
    for model, path in zip((graph, made), files, strict=True):
        onnx.save(model, path)
    return locate(*files, call), {name for name, count in places.items() if count}


@pytest.mark.parametrize("passes", [DEFAULT_PASSES, BEFORE_INT8])
@pytest.mark.parametrize("name", ["plain", "resizing"])
def test_of_patchcore(graph_of, crops, coloured, tmp_path, name, passes):
    call = np.stack({"plain": crops, "resizing": coloured}[name][:1])
    found, applied = parted(graph_of(name, 1)[1].model, passes, 255 - call, tmp_path)
    assert found is None, str(found)
    assert {"map-as-matrices", "nearest-neighbours"} <= applied


def test_of_padim(padim, crops, tmp_path):
    graph = simplify(trace(padim, replace(padim.image_input, batch=1))).model
    found, applied = parted(graph, DEFAULT_PASSES, 255 - np.stack(crops[:1]), tmp_path)
    assert found is None, str(found)
    assert "mahalanobis" in applied
