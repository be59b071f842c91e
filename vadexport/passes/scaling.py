"""Tensors of a graph whose channels were scaled, and by how much, noted in the graph itself."""

import base64
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

#: Entry of a model's metadata.
_ENTRY: Final = "vadexport.scaled"


def scaled_name(name: str) -> str:
    """What a tensor is called whose channels were scaled."""
    return f"{name}/scaled"


def note_scaling(model: onnx.ModelProto, streams: Sequence[tuple[list[str], NDArray[Any]]]) -> None:
    """Note in a graph by which factors [C] tensors were scaled, those of a stream alike.

    Args:
        model: the graph, changed.
        streams: what the tensors were called, and their factors.
    """
    told = [
        (names, base64.b64encode(factors.astype("<f4").tobytes()).decode())
        for names, factors in streams
    ]
    if told:
        model.metadata_props.add(key=_ENTRY, value=json.dumps(told))


def scaling(model: onnx.ModelProto) -> dict[str, tuple[str, NDArray[np.float64]]]:
    """By the name of each scaled tensor: what it was called, and its factors [C].

    None of a graph in which no tensor was.
    """
    noted = next((each.value for each in model.metadata_props if each.key == _ENTRY), "[]")
    return {
        scaled_name(name): (
            name,
            np.frombuffer(base64.b64decode(factors), "<f4").astype(np.float64),
        )
        for names, factors in json.loads(noted)
        for name in names
    }
