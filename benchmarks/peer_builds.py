"""Builds of benchmarks/peers.py: each in a process of its own, its time and memory watched."""

import contextlib
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import psutil
from peer_rows import Row

#: Artifacts of vadexport, by their names in tables: those of their targets.
TARGETS: Final = (
    *("openvino:fp32", "openvino:int8", "openvino:auto"),
    *("onnxruntime:fp32", "onnxruntime:int8"),
)
#: What peers make, see peer_exports.py; anomalib's only of its own models.
EXPORTS: Final = ("anomalib-openvino", "anomalib-onnx", "plain", "nncf")
#: Of each search for INT8 layers, so that a row of the table takes minutes.
SEARCH_MINUTES: Final = 1.0
TIMEOUT_S: Final = 900
_EVERY_S: Final = 0.25


def commands(
    row: Row, source: Path, images: Path, folder: Path, size: int = 256
) -> dict[str, list[str]]:
    """The command that makes each, by name, into `folder`/NAME with `-` in place of `:`."""
    calibration = str(images / "calibration")
    found = {}
    for kind in EXPORTS:
        if row.model is None and kind.startswith("anomalib"):
            continue
        script = str(Path(__file__).parent / "peer_exports.py")
        command = [sys.executable, script, kind, str(source), str(folder / kind), calibration]
        command += ["--size", str(size)]
        found[kind] = command + (["--model", row.model] if row.model else [])
    for target in TARGETS:
        command = [sys.executable, "-m", "vadexport", "build", str(source), "--target", target]
        command += ["-o", str(place(folder, target)), "--calibration", calibration, "-q"]
        if row.model:
            command += ["--image-size", str(size)]
        if target.endswith("auto"):
            command += ["--search-minutes", str(SEARCH_MINUTES)]
        found[target] = command
    return found


def place(folder: Path, name: str) -> Path:
    """Where a build goes."""
    return folder / name.replace(":", "-")


def build(name: str, command: list[str], folder: Path) -> dict[str, Any]:
    """Run a build; its seconds and peak memory, or why it failed."""
    into = place(folder, name)
    shutil.rmtree(into, ignore_errors=True)
    started = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        watch = _MemoryWatch(process.pid)
        watch.start()
        try:
            _, errors = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            errors = f"took longer than {TIMEOUT_S} s"
        watch.ended.set()
        watch.join()
    found = {"seconds": time.monotonic() - started, "gigabytes": watch.most / 1e9}
    # 1: it was built, and a check fell short.
    if process.returncode not in (0, 1) or not into.exists():
        lines = [line for line in errors.strip().splitlines() if line.strip()] or ["no word"]
        return {"error": lines[-1].strip()[:200], **found}
    return found


class _MemoryWatch(threading.Thread):
    """Looks at the resident memory of a process and all that it started, added up.

    What two of them share, as a library's code, counts twice.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._first = psutil.Process(pid)
        self.ended = threading.Event()
        self.most = 0

    def run(self) -> None:
        """Until the process has ended."""
        while not self.ended.wait(_EVERY_S):
            total = 0
            with contextlib.suppress(psutil.Error):
                for process in (self._first, *self._first.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        total += process.memory_info().rss
            self.most = max(self.most, total)
