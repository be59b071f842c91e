"""Builds for TensorRT-RTX on a machine without a GPU, each made once."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

TARGETS = (
    "tensorrt-rtx:fp32",
    "tensorrt-rtx:fp16@sm86+sm89",
    "tensorrt-rtx:int8",
    "openvino:fp32",
    "onnxruntime:fp16@cuda",
)


@pytest.fixture(scope="session", autouse=True)
def _without_gpu():
    """What is tested here is what a machine without a GPU does; tests/gpu has the others."""
    from vadexport.backends.cuda import Cuda
    from vadexport.errors import MissingDeviceError, MissingPackageError

    try:
        Cuda()
    except (MissingDeviceError, MissingPackageError):
        return
    pytest.skip("there is a GPU here")


@pytest.fixture(scope="session")
def command():
    """Run a command line in a process of its own; gives its exit status, output and errors."""

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", "vadexport", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def built(command, checkpoint, images, tmp_path_factory):
    """A build for engines of every precision, and for others beside them."""
    folder = tmp_path_factory.mktemp("engines") / "artifacts"
    targets = [word for target in TARGETS for word in ("--target", target)]
    ended = command(
        *("build", checkpoint, "-o", folder, *targets),
        *("--calibration", images / "good", "--threads", "1"),
    )
    assert ended.status in (0, 1), ended.err  # of so few images, fp16 and INT8 may fall short
    return SimpleNamespace(folder=folder, out=ended.out, err=ended.err)


@pytest.fixture(scope="session")
def engine(built):
    """The artifact of a target."""
    return lambda target: (
        built.folder / target.replace(":", "-").replace("@", "-").replace("+", "-")
    )


@pytest.fixture
def save_graph(tmp_path):
    """Save nodes from `x` [1, 1, 96, 96] to `score` [1] as an ONNX file, a detector of its own."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def save(nodes, **constants):
        values = [
            numpy_helper.from_array(np.array(value), name) for name, value in constants.items()
        ]
        graph = helper.make_graph(
            [helper.make_node(*node[:3], **node[3]) for node in nodes],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 96, 96])],
            [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1])],
            values,
        )
        opset = helper.make_opsetid("", 18)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
        onnx.checker.check_model(model)
        path = tmp_path / "own.onnx"
        onnx.save(model, path)
        return path

    return save
