"""What this machine is, for manifests and reports."""

import importlib.metadata
import math
import os
import platform
from pathlib import Path
from typing import Any, Final

from vadexport import __version__

_VNNI: Final = {"avx512_vnni", "avx_vnni", "amx_int8"}
#: Largest INT8 weight for processors without VNNI, which add two products by uint8 in an int16:
#: 2 × 255 × 64 < 2¹⁵ ("7 bits").
MOST_WITHOUT_VNNI: Final = 64
_PROCESSORS = Path("/sys/devices/system/cpu")
#: Packages that shape artifacts and figures, each by the names that its builds are installed by.
_TOOLS: Final = {
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "torch": ("torch",),
    "timm": ("timm",),
    "anomalib": ("anomalib",),
    "onnx": ("onnx",),
    "onnxsim": ("onnxsim",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
}


def processor_name() -> str:
    """Model name of the processor, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Whether the system says that the processor adds INT8 products in int32 (Linux on x86).

    False where it does not, or says nothing.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not _VNNI.isdisjoint(flags.partition(":")[2].split())


def tool_versions() -> dict[str, str]:
    """Versions of vadexport and of the packages that shape an artifact, without local parts.

    Of packages, those that are installed; none is imported.
    """
    found = {tool: _installed(names) for tool, names in _TOOLS.items()}
    known = {tool: version for tool, version in found.items() if version is not None}
    return {"vadexport": __version__, **known}


def _installed(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def processors() -> dict[str, Any]:
    """Which processors there are, and which of them this process may use.

    Keys are `processors` (their number), `affinity` (numbers of those that may be used, such as
    `0-3,8`), `quota` (how many of them at a time, of a container) and `governor` (of their clocks;
    several are joined). None where the system does not say, or there is no quota; a virtual machine
    mostly has no governor.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "processors": os.cpu_count(),
        "affinity": None if usable is None else _as_ranges(usable),
        "quota": processor_quota(),
        "governor": _governor(usable or []),
    }


def available_processors() -> int:
    """How many processors this process may use at a time, by affinity and quota; at least 1."""
    affine = hasattr(os, "sched_getaffinity")
    usable = len(os.sched_getaffinity(0)) if affine else os.cpu_count() or 1
    quota = processor_quota()
    return usable if quota is None else max(1, min(usable, math.ceil(quota)))


def processor_quota(
    mounts: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Processors' worth of time that the control groups of this process grant (Linux).

    The smallest of the group's and of those above it: `cpu.max` of version 2, `cpu.cfs_quota_us`
    over `cpu.cfs_period_us` of version 1. None without a limit.

    Args:
        mounts: where the groups are mounted; a container sees its own group right there.
        own: names the groups of this process, `ID:CONTROLLERS:/PATH` a line.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None
    quotas = []
    for line in lines:
        if len(line) < 3 or (line[1] and "cpu" not in line[1].split(",")):
            continue
        # The group may lie elsewhere than it says, where only a part of the tree is mounted.
        roots = [mounts / line[1], mounts / "cpu"] if line[1] else [mounts, mounts / "unified"]
        for root in roots:
            folder = root / line[2].lstrip("/")
            above = [each for each in folder.parents if each.is_relative_to(root)]
            quotas += [_quota_of(each) for each in (folder, *above)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((group / name).read_text(encoding="ascii") for name in names)
        found = float(quota) / float(period)  # version 2 says "max" where there is no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return found if found > 0 else None  # version 1 says -1


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
