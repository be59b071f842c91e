"""What is refused before, and what fails during a build; the other targets are still built."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.integration.refusals import assert_refused

pytest.importorskip("tensorrt_rtx")

BOTH = ("--target", "tensorrt-rtx:fp32", "--target", "onnxruntime:fp32")
SCORE = ("ReduceMean", ["x", "axes"], ["score"], {"keepdims": 0})
DETERMINANT = [
    ("AveragePool", ["x"], ["four"], {"kernel_shape": [48, 48], "strides": [48, 48]}),
    ("Det", ["four"], ["det"], {}),
    ("Reshape", ["det", "one"], ["score"], {}),
]
LARGEST = [
    ("Flatten", ["x"], ["flat"], {}),
    ("TopK", ["flat", "count"], ["largest", "where"], {"axis": -1}),
    ("ReduceMean", ["largest", "axes"], ["score"], {"keepdims": 0}),
]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("speed=1", ["unknown tensorrt setting 'speed'", "workspace_mb"]),
        ("level", ["--tensorrt 'level' is not of the form NAME=VALUE"]),
        ("=1", ["unknown tensorrt setting ''"]),
        ("level=9", ["tensorrt level 9 is outside 0 … 5"]),
        ("level=two", ["tensorrt level 'two' is no whole number"]),
        ("batches=3:2:1", ["tensorrt batches (3, 2, 1) are not smallest, usual and largest"]),
        ("batches=1:2", ["not three numbers", "such as 1:8:32"]),
        ("tf32=maybe", ["tensorrt tf32 'maybe' is neither true nor false"]),
        ("workspace_mb=0", ["tensorrt workspace_mb 0 is outside"]),
        ("time_limit_s=0", ["tensorrt time_limit_s 0 is outside"]),
        ("timing_cache=", ["tensorrt timing_cache '' is no path"]),
    ],
)
def test_a_wrong_setting_ends_before_any_work(vadexport, checkpoint, tmp_path, setting, words):
    refused = vadexport(
        *("build", checkpoint, "-o", tmp_path / "a", "--target", "tensorrt-rtx:fp32"),
        *("--tensorrt", setting),
    )
    assert_refused(refused, 2, *words)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("speed = 1", ["speed"]),
        ("level = 9", ["level 9 is outside 0 … 5"]),
        ("batches = [1, 2]", ["batches", "not three numbers"]),
        ('tf32 = "maybe"', ["tf32", "neither true nor false"]),
    ],
)
def test_a_wrong_setting_of_a_file(vadexport, checkpoint, tmp_path, line, words):
    file = tmp_path / "vadexport.toml"
    file.write_text(f"[build.tensorrt]\n{line}\n")
    refused = vadexport("build", checkpoint, "-o", tmp_path / "a", "--config", file)
    assert_refused(refused, 2, *words)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["timing_cache=x", "hardware_compatible=true"])
def test_a_setting_of_the_other_library(vadexport, save_graph, images, tmp_path, setting):
    path = save_graph([SCORE], axes=[1, 2, 3])
    refused = vadexport(
        *("build", path, "-o", tmp_path / "a", "--target", "tensorrt-rtx:fp32"),
        *("--calibration", images / "good", "--camera", "gray", "--tensorrt", setting),
    )
    assert_refused(refused, 2, f"tensorrt setting {setting.split('=')[0]} is for targets tensorrt:")
    assert not (tmp_path / "a").exists()


def test_a_missing_package_names_the_extra(vadexport, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    words = ("build", checkpoint, "-o", tmp_path / "a", "--target")
    assert_refused(vadexport(*words, "tensorrt:fp16"), 3, "pip install 'vadexport[tensorrt]'")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    refused = vadexport(*words, "tensorrt-rtx:fp16")
    assert_refused(refused, 3, "pip install 'vadexport[tensorrt-rtx]'")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("target", ["tensorrt-rtx:fp16@sm87", "tensorrt:fp16@sm86", "tensorrt:fp8"])
def test_an_unknown_target(vadexport, checkpoint, tmp_path, target):
    refused = vadexport("build", checkpoint, "-o", tmp_path / "a", "--target", target)
    assert_refused(refused, 2, target)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "words"),
    [
        pytest.param(
            (DETERMINANT, {"one": [1]}),
            ["TensorRT-RTX has no operator Det", "_Det", "use another target"],
            id="an operator that it has not",
        ),
        pytest.param(
            (LARGEST, {"count": [4000], "axes": [1]}),
            ["_TopK", "takes the 4000 largest values, its limit is 3840"],
            id="more than it sorts",
        ),
    ],
)
def test_a_graph_that_it_cannot_build(vadexport, save_graph, images, tmp_path, own, words):
    nodes, constants = own
    path = save_graph(nodes, **constants)
    ended = vadexport(
        *("build", path, "-o", tmp_path / "a", *BOTH),
        *("--calibration", images / "good", "--camera", "gray"),
    )
    assert ended.status == 4, ended.err
    (line,) = (line for line in ended.err.splitlines() if "was not built" in line)
    assert line.startswith("warning: tensorrt-rtx:fp32 was not built: ")
    for word in words:
        assert word in line
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["onnxruntime-fp32"]


def builder_of(parent):
    """Id of the child of a process that has the builder's library loaded; None before."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = (process / "stat").read_text().rpartition(")")[2].split()
            line = (process / "cmdline").read_text()  # still the parent's, right after a fork
            loaded = "serve()" in line and "tensorrt_rtx" in (process / "maps").read_text()
        except OSError:  # it has ended
            continue
        if int(status[1]) == parent and loaded:
            return int(process.name)
    return None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the builder in /proc")
@pytest.mark.parametrize(
    ("sent", "limit", "words"),
    [
        pytest.param(signal.SIGABRT, 100, "tensorrt-rtx:fp32 crashed (SIGABRT)", id="aborts"),
        pytest.param(signal.SIGKILL, 100, "tensorrt-rtx:fp32 crashed (SIGKILL)", id="is killed"),
        pytest.param(signal.SIGSTOP, 5, "did not answer within 5 s", id="hangs"),
    ],
)
def test_a_builder_that_ends_or_hangs(save_graph, images, tmp_path, sent, limit, words):
    nodes, name = [("Reshape", ["x", "shape"], ["n0"], {})], "n0"
    for number in range(100):  # what keeps the builder busy while it is looked for
        name, product = f"n{number + 1}", f"p{number}"
        nodes.append(("MatMul", [f"n{number}", f"n{number}"], [product], {}))
        nodes.append(("Softmax", [product], [name], {"axis": -1}))
    nodes.append(("ReduceMax", [name, "maps"], ["largest"], {"keepdims": 0}))
    nodes.append(("ReduceMean", ["x", "axes"], ["mean"], {"keepdims": 0}))
    nodes.append(("Add", ["largest", "mean"], ["score"], {}))
    path = save_graph(nodes, shape=[1, 96, 96], maps=[1, 2], axes=[1, 2, 3])
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "vadexport", "build", path, "-o", tmp_path / "a", *BOTH),
            *("--calibration", images / "good", "--camera", "gray"),
            *("--tensorrt", f"time_limit_s={limit}"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TMPDIR": str(tmp_path),  # where the log of a failure stays
        },
    ) as process:
        over = threading.Event()

        def strike():
            while not over.wait(0.005):
                builder = builder_of(process.pid)
                if builder is not None:
                    os.kill(builder, sent)
                    return

        thread = threading.Thread(target=strike)
        thread.start()
        _, err = process.communicate(timeout=200)
        over.set()
        thread.join()
    assert process.returncode == 4, err
    assert "Traceback" not in err
    line, last = (line for line in err.splitlines() if words in line)
    assert line.startswith("warning: tensorrt-rtx:fp32 was not built: ")
    assert last == err.splitlines()[-1]
    assert Path(line.rpartition("(log: ")[2].rstrip(")")).is_file()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["onnxruntime-fp32"]
