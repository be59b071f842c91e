"""Compiling for a backend, behind the passes that only this backend gains from."""

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import onnx

from vadexport.backends.registry import get_backend
from vadexport.backends.tensorrt.settings import DEFAULT_SETTINGS, TensorRTSettings
from vadexport.passes.base import GraphPass
from vadexport.passes.group_normalisation import GroupNormalisation
from vadexport.targets import Target
from vadexport.verification.proxy import GRAPH_FILE

#: OpenVINO keeps channels last, ONNX Runtime first.
_PASSES: Final[dict[str, tuple[GraphPass, ...]]] = {"openvino": (GroupNormalisation(),)}
#: Names of all of them.
BACKEND_PASSES: Final = tuple(each.name for passes in _PASSES.values() for each in passes)
#: Of what `compile_graph` says: in how many places each applied.
PASSES: Final = "passes"


def compile_graph(
    model: Path,
    folder: Path,
    target: Target,
    settings: TensorRTSettings = DEFAULT_SETTINGS,
    left_out: Collection[str] = (),
) -> dict[str, Any]:
    """Compile an ONNX file for a target. To be run in a child process.

    Args:
        model: the ONNX file.
        folder: where what was compiled is written.
        target: that it is compiled for.
        settings: of TensorRT's targets.
        left_out: names of passes that are not applied.

    Returns:
        What the backend says of it, and under `PASSES` where passes for it alone applied.

    Raises:
        MissingPackageError: the backend is not installed.
        BackendError: it cannot read the graph.
    """
    backend = get_backend(target.backend)
    passes = [each for each in _PASSES.get(target.backend, ()) if each.name not in left_out]
    places: dict[str, int] = {}
    if passes:
        graph = onnx.load(model)
        places = {each.name: count for each in passes if (count := each.apply(graph))}
        if not places:
            del graph  # as large as the weights
    if not places:
        return backend.compile_graph(model, folder, target, settings)
    with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as place:
        rewritten = Path(place) / GRAPH_FILE
        onnx.save(graph, rewritten)
        del graph
        return {**backend.compile_graph(rewritten, folder, target, settings), PASSES: places}
