"""What this machine is, for manifests and reports."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_PROCESSORS = Path("/sys/devices/system/cpu")
_TOOLS = ("numpy", "torch", "onnx", "onnxsim", "onnxruntime", "openvino")


def processor_name() -> str:
    """Model name of the processor, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def tool_versions() -> dict[str, str]:
    """Installed versions of the packages that shape an artifact, without local parts."""
    versions = {}
    for tool in _TOOLS:
        try:
            versions[tool] = importlib.metadata.version(tool).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def processors() -> dict[str, Any]:
    """Which processors there are, and which of them this process may use.

    Keys are `processors` (their number), `affinity` (numbers of those that may be used, such as
    `0-3,8`) and `governor` (of their clocks; several are joined). None where the system does not
    say; a virtual machine mostly has no governor.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "processors": os.cpu_count(),
        "affinity": None if usable is None else _as_ranges(usable),
        "governor": _governor(usable or []),
    }


def load_average() -> float | None:
    """Processes that ran or waited to, on average over the last minute; None where unknown."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _as_ranges(numbers: list[int]) -> str:
    """Ascending numbers in the way of Linux: `0-3,8`."""
    starts = [each for each in numbers if each - 1 not in numbers]
    ends = [each for each in numbers if each + 1 not in numbers]
    pairs = zip(starts, ends, strict=True)
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in pairs)


def _governor(numbers: list[int]) -> str | None:
    found = set()
    for number in numbers:
        try:
            found.add((_PROCESSORS / f"cpu{number}/cpufreq/scaling_governor").read_text().strip())
        except (OSError, ValueError):
            continue
    return ", ".join(sorted(found)) or None


def peak_megabytes() -> float | None:
    """Largest resident memory that this process had so far, in 10^6 bytes.

    None where the system does not say (only Linux does). `getrusage` would not do: what it counts
    begins with the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 / 1e6
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def seconds_waited() -> float | None:
    """How long this process's threads were ready to run and got no processor, added up.

    It grows when others take the processors. None where the system does not say (only Linux does).
    """
    total = 0
    try:
        for thread in Path("/proc/self/task").iterdir():
            total += int((thread / "schedstat").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return total / 1e9
