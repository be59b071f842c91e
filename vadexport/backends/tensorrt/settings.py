"""What a user may set about the builder of engines."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

from vadexport.errors import InputError

_FLAGS: Final = {"true": True, "false": False}
_LARGEST_BATCH: Final = 1024


@dataclass(frozen=True)
class TensorRTSettings:
    """Settings of the builder; None leaves a choice to it.

    Attributes:
        batches: smallest, most usual and largest number of images in a call, for a graph whose
            batch is dynamic.
        workspace_mb: most megabytes of GPU memory that one layer may use beside its tensors.
        level: the builder's optimisation level, 0 to 5: higher takes longer to build.
        tf32: whether float32 layers may multiply in TF32, which keeps 10 bits of each factor.
        timing_cache: file that keeps the timings which chose the kernels; where it exists, the
            same kernels are chosen again. TensorRT only.
        version_compatible: whether newer versions of TensorRT shall run the engine. TensorRT only.
        hardware_compatible: whether other GPUs from Ampere on shall run it. TensorRT only.
        time_limit_s: after which a build counts as hanging.
    """

    batches: tuple[int, int, int] = (1, 8, 32)
    workspace_mb: int | None = None
    level: int | None = None
    tf32: bool = False
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    time_limit_s: int = 1800

    def __post_init__(self) -> None:
        smallest, usual, largest = self.batches
        if not 1 <= smallest <= usual <= largest <= _LARGEST_BATCH:
            raise InputError(
                f"tensorrt batches {self.batches} are not smallest, usual and largest, from 1 to "
                f"{_LARGEST_BATCH}"
            )
        bounds = {"workspace_mb": (1, 1 << 20), "level": (0, 5), "time_limit_s": (1, 86400)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"tensorrt {name} {value} is outside {low} … {high}")

    def to_json(self) -> dict[str, Any]:
        """What shaped the engine, as JSON values: no path, no time limit."""
        values = asdict(self)
        del values["timing_cache"], values["time_limit_s"]
        return values

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Settings by name, as TOML gives them or as texts.

        Raises:
            InputError: a name is not known, or a value is none of its kind.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"unknown tensorrt setting {name!r}; known: {', '.join(known)}")
        return cls(**{name: _READERS[name](name, value) for name, value in values.items()})


#: Of those who set nothing.
DEFAULT_SETTINGS: Final = TensorRTSettings()


def _whole(name: str, value: Any) -> int:
    if isinstance(value, int) and value.bit_length() > 64:  # Python refuses to print huge ones
        raise InputError(f"tensorrt {name} is a huge number")
    try:
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    raise InputError(f"tensorrt {name} {value!r} is no whole number")


def _flag(name: str, value: Any) -> bool:
    found = value if isinstance(value, bool) else _FLAGS.get(str(value))
    if found is None:
        raise InputError(f"tensorrt {name} {value!r} is neither true nor false")
    return found


def _batches(name: str, value: Any) -> tuple[int, int, int]:
    parts = value if isinstance(value, (list, tuple)) else str(value).split(":")
    if len(parts) != 3:
        raise InputError(
            f"tensorrt {name} {value!r} are not three numbers: smallest, usual and largest batch, "
            "such as 1:8:32"
        )
    smallest, usual, largest = (_whole(name, part) for part in parts)
    return smallest, usual, largest


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise InputError(f"tensorrt {name} {value!r} is no path")
    return Path(value)


_READERS: Final[dict[str, Any]] = {
    "batches": _batches,
    "workspace_mb": _whole,
    "level": _whole,
    "tf32": _flag,
    "timing_cache": _path,
    "version_compatible": _flag,
    "hardware_compatible": _flag,
    "time_limit_s": _whole,
}
