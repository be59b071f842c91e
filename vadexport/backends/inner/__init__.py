"""What goes on inside of artifacts, for those who look into them: the runtime needs none of it."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vadexport.backends.base import ExecutedLayer
from vadexport.targets import Target

#: By backend, of those whose files show their tensors: an engine of TensorRT does not, and tells of
#: its layers only where it was built to, which makes it larger.
_MODULES: Final = {
    "onnxruntime": "vadexport.backends.inner.onnxruntime",
    "openvino": "vadexport.backends.inner.openvino",
}


def executed_layers(folder: Path, target: Target, threads: int) -> tuple[ExecutedLayer, ...]:
    """Load the files of an artifact, and tell what runs in which precision.

    To be run in a child process, as `isolated_values` is.

    Args:
        folder: of the artifact.
        target: of it.
        threads: that it may use.

    Returns:
        The layers that compute, in order of execution; none where that is not told, as on a GPU.
    """
    if target.on_gpu or target.backend not in _MODULES:
        return ()
    module = importlib.import_module(_MODULES[target.backend])
    layers: tuple[ExecutedLayer, ...] = module.executed_layers(folder, target, threads)
    return layers


def isolated_values(
    artifact: tuple[Path, Target, int],
    fed: Mapping[str, NDArray[np.float32]],
    call: NDArray[Any],
) -> dict[str, NDArray[np.float32]]:
    """What each part of an artifact's files makes of what it is fed.

    Args:
        artifact: its folder and target, and threads that it may use.
        fed: tensors by name. Those of them that the files have too, and of the same shape, are the
            parts' ends.
        call: of the graph.

    Returns:
        Those of these tensors that the parts make, also in another shape; none where files do not
        show any, or run on a GPU.
    """
    folder, target, threads = artifact
    if target.on_gpu or target.backend not in _MODULES:
        return {}
    module = importlib.import_module(_MODULES[target.backend])
    values: dict[str, NDArray[np.float32]] = module.isolated_values(
        folder, target, threads, fed, call
    )
    return values
